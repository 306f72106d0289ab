"""Continuous batching: requests join and leave the running batch at every step. Knows no threads and no network."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from common.energy.modelled import Work
from common.scheduling import QueuedRequest, SchedulingLimits, admit, blocks_needed
from engine.backends.base import Backend, DecodeBatch, PrefillBatch
from engine.kv_cache import BlockAllocator
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
        self._backend = backend
        self._tokenizer = tokenizer
        self._meter = meter
        self._limits = limits
        self._end_token_ids = end_token_ids
        self._now_seconds = now_seconds
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        # The running batch as arrays, kept from step to step; None once a request has joined or left.
        self._decode_batch: DecodeBatch | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

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
        """One token for each running request, then the prompts of those that can join."""
        updates = self._decode() if self._running else []
        if self._waiting:
            updates += self._prefill()
        return updates

    def _decode(self) -> list[Update]:
        batch = self._decode_batch or self._gather_running()
        began_seconds = self._now_seconds()
        token_ids = self._backend.decode(batch)
        context_tokens = batch.context_tokens.tolist()
        self._charge(self._running, [Work(1, context) for context in context_tokens], began_seconds)
        batch.token_ids[:] = token_ids
        batch.context_tokens[:] += 1
        batch.sampling.output_index[:] += np.uint64(1)
        self._decode_batch = batch
        return self._take(self._running, token_ids)

    def _prefill(self) -> list[Update]:
        queue = (
            QueuedRequest(len(answer.request.prompt_token_ids), self._blocks_needed(answer.request))
            for answer in self._waiting
        )
        count = admit(queue, len(self._running), self.allocator.free_blocks, self._limits)
        if not count:
            return []
        began_seconds = self._now_seconds()
        joining = [self._waiting.popleft() for _ in range(count)]
        # They belong to the running ones from here on, so that a fault in the backend finds them there.
        self._running.extend(joining)
        self._decode_batch = None
        for answer in joining:
            answer.admitted_seconds = began_seconds
            answer.block_table = self.allocator.allocate(self._blocks_needed(answer.request))
        lengths = [len(answer.request.prompt_token_ids) for answer in joining]
        token_ids = self._backend.prefill(
            PrefillBatch(
                token_ids=np.concatenate([np.array(answer.request.prompt_token_ids, np.int64) for answer in joining]),
                new_tokens=np.array(lengths, np.int64),
                context_tokens=np.zeros(count, np.int64),
                block_tables=_rectangular([answer.block_table for answer in joining]),
                sampling=SamplingBatch.of([answer.request.sampling for answer in joining], [0] * count),
            )
        )
        self._charge(joining, [Work(length, 0) for length in lengths], began_seconds)
        return self._take(joining, token_ids)

    def _gather_running(self) -> DecodeBatch:
        running = self._running
        return DecodeBatch(
            token_ids=np.array([answer.token_ids[-1] for answer in running], np.int64),
            context_tokens=np.array([len(answer.token_ids) - 1 for answer in running], np.int64),
            block_tables=_rectangular([answer.block_table for answer in running]),
            sampling=SamplingBatch.of(
                [answer.request.sampling for answer in running], [answer.output_tokens for answer in running]
            ),
        )

    def _charge(self, answers: Sequence[Answer], work: Sequence[Work], began_seconds: float) -> None:
        """Shares a step among its sequences: time by new tokens, energy as the meter says."""
        seconds_per_token = (self._now_seconds() - began_seconds) / sum(one.new_tokens for one in work)
        for answer, one, joules in zip(answers, work, self._meter.step(work), strict=True):
            answer.charge(one.new_tokens * seconds_per_token, joules)

    def _take(self, answers: Sequence[Answer], token_ids: npt.NDArray[np.int64]) -> list[Update]:
        now_seconds = self._now_seconds()
        self.output_tokens += len(answers)
        updates = []
        ended = []
        for answer, token_id in zip(answers, token_ids.tolist(), strict=True):
            text, reason, stop = answer.take(token_id, self._end_token_ids, now_seconds)
            if reason is None:
                updates.append(Update(answer.request.key, text, (token_id,), None))
            else:
                ended.append(answer)
                updates.append(self._end(answer, text, (token_id,), reason, stop))
        if ended:
            self._running = [answer for answer in self._running if answer not in ended]
        return updates

    def _end(self, answer: Answer, text: str, token_ids: tuple[int, ...], reason: FinishReason, stop: str) -> Update:
        self.allocator.free(answer.block_table)
        self._decode_batch = None
        finished = answer.finished(reason, stop, self._meter.source, self._now_seconds())
        return Update(answer.request.key, text, token_ids, finished)

    def _blocks_needed(self, request: GenerationRequest) -> int:
        return blocks_needed(len(request.prompt_token_ids), request.max_output_tokens, self._backend.block_size)


def _rectangular(block_tables: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Block tables as rows [sequences, longest], padded with block 0."""
    rows = np.zeros((len(block_tables), max(map(len, block_tables))), np.int64)
    for row, table in zip(rows, block_tables, strict=True):
        row[: len(table)] = table
    return rows
