"""Continuous batching over a backend that reads every context back through the block tables."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.energy.modelled import Work
from common.energy.reading import EnergySource
from common.scheduling import SchedulingLimits
from engine.backends.base import DecodeBatch, PrefillBatch
from engine.batching import ContinuousBatch
from engine.request import Finished, FinishReason, GenerationRequest
from engine.sampling import SamplingParams
from engine.tokenizer import Detokenizer

BLOCKS, BLOCK_SIZE, VOCABULARY = 9, 4, 50
END = 0
LIMITS = SchedulingLimits(max_batch=3, max_prefill_tokens=20)
STEP_SECONDS = 3.0


def next_token(tokens: Sequence[int], seed: int, index: int) -> int:
    """A token that everything before it decides."""
    digest = hashlib.sha256(repr((list(tokens), seed, index)).encode()).digest()
    return digest[0] % VOCABULARY


class RecordingBackend:
    """Keeps token ids where a model would keep keys and values."""

    name, device, blocks, block_size, bytes_per_parameter, bytes_per_kv = "fake", "none", BLOCKS, BLOCK_SIZE, 4, 4

    def __init__(self) -> None:
        self.cache = np.full((BLOCKS, BLOCK_SIZE), -1, np.int64)
        self.fails = False

    def _answer(self, table: npt.NDArray[np.int64], new: Sequence[int], context: int, seed: int, index: int) -> int:
        for position, token_id in enumerate(new, start=context):
            self.cache[table[position // BLOCK_SIZE], position % BLOCK_SIZE] = token_id
        tokens = [
            int(self.cache[table[position // BLOCK_SIZE], position % BLOCK_SIZE])
            for position in range(context + len(new))
        ]
        return next_token(tokens, seed, index)

    def prefill(self, batch: PrefillBatch) -> npt.NDArray[np.int64]:
        parts = np.split(batch.token_ids, np.cumsum(batch.new_tokens)[:-1])
        return self._run(batch, [part.tolist() for part in parts])

    def decode(self, batch: DecodeBatch) -> npt.NDArray[np.int64]:
        return self._run(batch, [[token_id] for token_id in batch.token_ids.tolist()])

    def _run(self, batch: PrefillBatch | DecodeBatch, new: list[list[int]]) -> npt.NDArray[np.int64]:
        if self.fails:
            raise RuntimeError("planted")
        rows = zip(
            batch.block_tables,
            new,
            batch.context_tokens.tolist(),
            batch.sampling.seed.tolist(),
            batch.sampling.output_index.tolist(),
            strict=True,
        )
        return np.array([self._answer(*row) for row in rows])

    def warm_up(self, max_batch: int) -> None:
        pass


class Tokens:
    """Stands for a tokenizer: the text of token n is the character n."""

    def detokenizer(self) -> Detokenizer:
        return Detokenizer([chr(token_id + 64).encode() for token_id in range(VOCABULARY)], False)


class SharesEqually:
    """One joule a new token."""

    source, idle_watts = EnergySource.ATTRIBUTED, None

    def __init__(self) -> None:
        self.joules = 0.0

    def step(self, work: Sequence[Work]) -> Sequence[float]:
        self.joules += sum(one.new_tokens for one in work)
        return [float(one.new_tokens) for one in work]


class Ticks:
    """A clock that moves by STEP_SECONDS at every look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += STEP_SECONDS
        return self.seconds


class Batching(RuleBasedStateMachine):
    """Requests of any length, aborts and faults at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.backend, self.meter = RecordingBackend(), SharesEqually()
        self.batch = ContinuousBatch(
            self.backend,
            Tokens(),
            self.meter,
            LIMITS,
            frozenset([END]),
            Ticks(),  # type: ignore[arg-type]
        )
        self.open: dict[int, GenerationRequest] = {}
        self.token_ids: dict[int, list[int]] = {}
        self.text: dict[int, str] = {}
        self.charged_joules = 0.0
        self.keys = 0

    @rule(
        prompt=st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=16),
        max_output_tokens=st.integers(1, 20),
        seed=st.integers(0, 5),
    )
    def submit(self, prompt: list[int], max_output_tokens: int, seed: int) -> None:
        request = GenerationRequest(self.keys, prompt, SamplingParams(seed=seed), max_output_tokens, (), 0.0)
        self.keys += 1
        self.open[request.key] = request
        self.token_ids[request.key] = []
        self.text[request.key] = ""
        self.batch.submit(request)

    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        (update,) = self.batch.abort(key)
        assert update.finished is not None and update.finished.reason == FinishReason.ABORTED
        assert self.batch.abort(key) == []
        self.charged_joules += joules(update.finished)
        del self.open[key]

    @precondition(lambda self: self.open)
    @rule()
    def fault(self) -> None:
        self.backend.fails = True
        try:
            self.batch.step()
        except RuntimeError:
            assert {update.key for update in self.batch.abandon() if update.failed} == set(self.open)
            self.open.clear()
            assert self.batch.allocator.free_blocks == BLOCKS
            # What the failed had been charged went down with them.
            self.charged_joules = self.meter.joules
        self.backend.fails = False

    @invariant()
    def running_and_waiting_are_all_that_is_open(self) -> None:
        assert self.batch.running + self.batch.waiting == len(self.open)
        assert self.batch.running <= LIMITS.max_batch
        if not self.batch.running:
            assert self.batch.allocator.free_blocks == BLOCKS

    def teardown(self) -> None:
        # Nothing starves: each step gives every running request a token.
        for _ in range(25 * (len(self.open) + 1)):
            self.step()
        assert not self.open
        assert self.batch.allocator.free_blocks == BLOCKS
        assert self.charged_joules == self.meter.joules

    def step(self) -> None:
        running = self.batch.running
        updates = self.batch.step()
        assert len({update.key for update in updates}) == len(updates) >= running
        for update in updates:
            request = self.open[update.key]
            taken = self.token_ids[update.key]
            (token_id,) = update.token_ids
            assert token_id == next_token([*request.prompt_token_ids, *taken], request.sampling.seed, len(taken))
            taken.append(token_id)
            self.text[update.key] += update.text
            assert self.text[update.key] == "".join(chr(taken_id + 64) for taken_id in taken)
            if token_id == END:
                self.ended(update.finished, FinishReason.STOP, update.key)
            elif len(taken) == request.max_output_tokens:
                self.ended(update.finished, FinishReason.LENGTH, update.key)
            else:
                assert update.finished is None

    def ended(self, finished: Finished | None, reason: FinishReason, key: int) -> None:
        assert finished is not None and finished.reason == reason
        assert finished.output_tokens == len(self.token_ids[key])
        # A joule for each token that was processed: all but the last.
        assert joules(finished) == finished.prompt_tokens + finished.output_tokens - 1
        self.charged_joules += joules(finished)
        del self.open[key]


def joules(finished: Finished) -> float:
    assert finished.energy is not None and finished.energy.source == EnergySource.ATTRIBUTED
    return finished.energy.joules


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
