"""Continuous batching: requests join and leave the running batch at every step. Knows no threads and no network."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from common.energy.modelled import Work
from common.energy.reading import Energy
from common.scheduling import QueuedRequest, RunningRequest, SchedulingLimits, blocks_needed, plan_step
from engine.backends.base import Backend, DecodeBatch, PrefillBatch
from engine.kv_cache import BlockAllocator, extend_block_keys
from engine.metering import Meter
from engine.request import Answer, FinishReason, GenerationRequest, Update
from engine.sampling import SamplingBatch
from engine.tokenizer import Tokenizer


class ContinuousBatch:
    """The waiting and the running requests of one backend, and the blocks that they hold."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        meter: Meter,
        limits: SchedulingLimits,
        end_token_ids: frozenset[int],
        now_seconds: Callable[[], float],
    ) -> None:
        self.allocator = BlockAllocator(backend.blocks)
        self.output_tokens = 0
        self.preemptions = 0
        self.busy_seconds = 0.0
        """Time in which steps ran, since the start."""
        self.idle_seconds = 0.0
        """The rest, up to the last step."""
        self._backend = backend
        self._tokenizer = tokenizer
        self._meter = meter
        self._limits = limits
        self._end_token_ids = end_token_ids
        self._now_seconds = now_seconds
        self._counted_until_seconds = now_seconds()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []  # by arrival, all of them before all that wait
        # The running batch as arrays, kept from step to step; None once a request has joined or left.
        self._decode_batch: DecodeBatch | None = None
        self._decoding: list[Answer] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle_energy(self) -> Energy | None:
        """Of `idle_seconds`; None where unknown."""
        return self._meter.idle_energy(self.idle_seconds)

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request, whose prompt and answer must fit the whole cache."""
        self._waiting.append(Answer(request, self._tokenizer.detokenizer()))

    def abort(self, key: int) -> list[Update]:
        """Ends a request, giving its blocks back at once; nothing where it has ended already."""
        for answers in (self._waiting, self._running):
            for answer in answers:
                if answer.request.key == key:
                    answers.remove(answer)
                    return [self._end(answer, "", (), FinishReason.ABORTED, "")]
        return []

    def abandon(self) -> list[Update]:
        """Gives every request up, after a fault. All blocks are free again."""
        failed = [Update(answer.request.key, "", (), None, failed=True) for answer in (*self._running, *self._waiting)]
        self._running.clear()
        self._waiting.clear()
        self._decode_batch = None
        self.allocator = BlockAllocator(self._backend.blocks)
        return failed

    def step(self) -> list[Update]:
        """Brings the running requests forward, and those of the waiting that can join: a token for each answer.

        Without any, it brings what is counted as idle up to now.
        """
        if not self._running:
            self._meter.idle()
            self._count_idle(self._now_seconds())
        self._catch_up()
        to_come: set[bytes] = set()
        plan = plan_step(
            [self._running_request(answer, to_come) for answer in self._running],
            self._queued_requests(to_come),
            self.allocator.free_blocks,
            lambda index: self.allocator.own_blocks(self._running[index].block_table),
            self._limits,
        )
        self._preempt(plan.preempted)
        self._admit(plan.admitted)
        decoding: list[Answer] = []
        prefilling: list[tuple[Answer, int]] = []
        for answer, new_tokens in zip(self._running, plan.new_tokens, strict=True):
            if answer.pending_tokens == 1:
                decoding.append(answer)
            elif new_tokens:
                prefilling.append((answer, new_tokens))
        updates = self._decode(decoding) if decoding else []
        if prefilling:
            updates += self._prefill(prefilling)
        return updates

    def _catch_up(self) -> None:
        """Prompts take over the blocks that others have computed for them since the last step."""
        for answer in self._running:
            first, apart = divmod(answer.context_tokens, self._backend.block_size)
            if answer.pending_tokens == 1 or apart:
                continue
            found = self._cached_prefix(answer)[first:]
            self.allocator.share(found)
            self.allocator.free(answer.block_table[first : first + len(found)])
            answer.block_table[first : first + len(found)] = found
            answer.find((first + len(found)) * self._backend.block_size)

    def _running_request(self, answer: Answer, to_come: set[bytes]) -> RunningRequest:
        growth_blocks = blocks_needed(len(answer.token_ids), self._backend.block_size) - len(answer.block_table)
        waits = self._waits(answer, answer.context_tokens, to_come)
        return RunningRequest(0 if waits else answer.pending_tokens, growth_blocks)

    def _queued_requests(self, to_come: set[bytes]) -> Iterator[QueuedRequest]:
        for answer in self._waiting:
            prefix = self._cached_prefix(answer)
            used = len(prefix) - self.allocator.unused(prefix)
            context_tokens = len(prefix) * self._backend.block_size
            # Looking at the next one, the plan has admitted this one.
            waits = self._waits(answer, context_tokens, to_come)
            yield QueuedRequest(
                pending_tokens=0 if waits else len(answer.token_ids) - context_tokens,
                blocks=blocks_needed(len(answer.token_ids), self._backend.block_size) - used,
            )

    def _waits(self, answer: Answer, context_tokens: int, to_come: set[bytes]) -> bool:
        """Whether an older prompt is about to compute the block that this one needs next, so that it can be shared.

        The oldest waits for none, and so each comes to its turn. Nobody else is held up by one that waits.

        `to_come`: names of the blocks that older prompts are about to compute; those of this one join them.
        """
        block_size = self._backend.block_size
        first, shareable = context_tokens // block_size, (len(answer.token_ids) - 1) // block_size
        if first >= shareable:
            return False
        extend_block_keys(answer.block_keys, answer.token_ids, block_size)
        waits = answer.block_keys[first] in to_come
        to_come.update(answer.block_keys[first:])
        return waits

    def _cached_prefix(self, answer: Answer) -> list[int]:
        """Blocks in the cache that an answer can begin with; its last token is always left to compute."""
        extend_block_keys(answer.block_keys, answer.token_ids, self._backend.block_size)
        shareable = (len(answer.token_ids) - 1) // self._backend.block_size
        return self.allocator.cached_prefix(answer.block_keys[:shareable])

    def _preempt(self, count: int) -> None:
        """The youngest give their blocks back, and keep what they have generated as part of their prompt."""
        for _ in range(count):
            answer = self._running.pop()
            self._decode_batch = None
            self._release(answer)
            self._waiting.appendleft(answer)
            answer.preemptions += 1
            self.preemptions += 1

    def _admit(self, count: int) -> None:
        now_seconds = self._now_seconds() if count else 0.0
        joining = [self._waiting.popleft() for _ in range(count)]
        # They belong to the running ones from here on, so that a fault finds them there.
        self._running += joining
        # All share before one allocates, which could drive out what the next was counting on.
        for answer in joining:
            answer.block_table = self._cached_prefix(answer)
            self.allocator.share(answer.block_table)
            answer.find(len(answer.block_table) * self._backend.block_size)
            if answer.admitted_seconds is None:
                answer.admitted_seconds = now_seconds
        for answer in joining:
            self._grow(answer)

    def _grow(self, answer: Answer) -> int:
        """Blocks for all tokens of an answer; how many of them are new."""
        missing = blocks_needed(len(answer.token_ids), self._backend.block_size) - len(answer.block_table)
        if missing:
            answer.block_table += self.allocator.allocate(missing)
        return missing

    def _release(self, answer: Answer) -> None:
        self.allocator.free(answer.block_table)
        answer.block_table = []
        answer.lose()

    def _decode(self, answers: list[Answer]) -> list[Update]:
        if self._decode_batch is None or self._decoding != answers:
            self._decoding = answers
            self._decode_batch = self._gather(answers)
        batch = self._decode_batch
        for row, answer in enumerate(answers):
            if self._grow(answer):
                batch.block_tables[row, : len(answer.block_table)] = answer.block_table
        began_seconds = self._now_seconds()
        token_ids = self._backend.decode(batch)
        work = [
            Work(1, context, not answer.begun)
            for answer, context in zip(answers, batch.context_tokens.tolist(), strict=True)
        ]
        self._charge(answers, work, began_seconds)
        batch.token_ids[:] = token_ids
        batch.context_tokens[:] += 1
        batch.sampling.output_index[:] += np.uint64(1)
        for answer in answers:
            self._advance(answer, 1)
        return self._take(answers, token_ids)

    def _prefill(self, pieces: list[tuple[Answer, int]]) -> list[Update]:
        began_seconds = self._now_seconds()
        answers = [answer for answer, _ in pieces]
        work = [Work(new_tokens, answer.context_tokens, not answer.begun) for answer, new_tokens in pieces]
        token_ids = self._backend.prefill(
            PrefillBatch(
                token_ids=np.concatenate(
                    [
                        np.array(answer.token_ids[answer.context_tokens : answer.context_tokens + count], np.int64)
                        for answer, count in pieces
                    ]
                ),
                new_tokens=np.array([count for _, count in pieces], np.int64),
                context_tokens=np.array([answer.context_tokens for answer in answers], np.int64),
                block_tables=self._block_tables(answers),
                sampling=_sampling(answers),
            )
        )
        self._charge(answers, work, began_seconds)
        for answer, count in pieces:
            self._advance(answer, count)
        # A piece that is not its prompt's last has a token too, of no meaning.
        complete = [index for index, answer in enumerate(answers) if not answer.pending_tokens]
        return self._take([answers[index] for index in complete], token_ids[complete])

    def _gather(self, answers: Sequence[Answer]) -> DecodeBatch:
        return DecodeBatch(
            token_ids=np.array([answer.token_ids[-1] for answer in answers], np.int64),
            context_tokens=np.array([answer.context_tokens for answer in answers], np.int64),
            block_tables=self._block_tables(answers),
            sampling=_sampling(answers),
        )

    def _block_tables(self, answers: Sequence[Answer]) -> npt.NDArray[np.int64]:
        """Block tables as rows [sequences, longest], padded with block 0 as far as the answers may grow."""
        tokens = max(len(answer.request.prompt_token_ids) + answer.request.max_output_tokens for answer in answers)
        rows = np.zeros((len(answers), blocks_needed(tokens, self._backend.block_size)), np.int64)
        for row, answer in zip(rows, answers, strict=True):
            row[: len(answer.block_table)] = answer.block_table
        return rows

    def _advance(self, answer: Answer, new_tokens: int) -> None:
        """Tokens of an answer have come to the cache: its blocks that are full now are there to share."""
        block_size = self._backend.block_size
        full = answer.context_tokens // block_size
        answer.context_tokens += new_tokens
        for block in range(full, answer.context_tokens // block_size):
            extend_block_keys(answer.block_keys, answer.token_ids, block_size)
            self.allocator.publish(answer.block_table[block], answer.block_keys[block])

    def _charge(self, answers: Sequence[Answer], work: Sequence[Work], began_seconds: float) -> None:
        """Shares a step among its sequences: time by new tokens, energy as the meter says."""
        ended_seconds = self._now_seconds()
        self._count_idle(began_seconds)
        self.busy_seconds += ended_seconds - began_seconds
        self._counted_until_seconds = ended_seconds
        seconds_per_token = (ended_seconds - began_seconds) / sum(one.new_tokens for one in work)
        for answer, one, joules in zip(answers, work, self._meter.step(work), strict=True):
            answer.charge(one.new_tokens * seconds_per_token, joules)

    def _count_idle(self, until_seconds: float) -> None:
        self.idle_seconds += until_seconds - self._counted_until_seconds
        self._counted_until_seconds = until_seconds

    def _take(self, answers: Sequence[Answer], token_ids: npt.NDArray[np.int64]) -> list[Update]:
        now_seconds = self._now_seconds()
        self.output_tokens += len(answers)
        updates = []
        ended = []
        for answer, token_id in zip(answers, token_ids.tolist(), strict=True):
            text, reason, stop = answer.take(token_id, self._end_token_ids, now_seconds)
            if reason is None:
                updates.append(Update(answer.request.key, text, (token_id,), None, logprobs=answer.logprobs))
            else:
                ended.append(answer)
                updates.append(self._end(answer, text, (token_id,), reason, stop))
        if ended:
            self._running = [answer for answer in self._running if answer not in ended]
        return updates

    def _end(self, answer: Answer, text: str, token_ids: tuple[int, ...], reason: FinishReason, stop: str) -> Update:
        self._release(answer)
        self._decode_batch = None
        finished = answer.finished(reason, stop, self._meter.source, self._now_seconds())
        return Update(answer.request.key, text, token_ids, finished, logprobs=answer.logprobs if token_ids else ())


def _sampling(answers: Sequence[Answer]) -> SamplingBatch:
    return SamplingBatch.of(
        [answer.request.sampling for answer in answers],
        [answer.output_tokens for answer in answers],
        [answer.history for answer in answers],
    )
