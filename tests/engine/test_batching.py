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
LIMITS = SchedulingLimits(max_batch=3, max_step_tokens=10)
STEP_SECONDS = 3.0


def next_token(tokens: Sequence[int], seed: int, index: int) -> int:
    """A token that everything before it decides."""
    digest = hashlib.sha256(repr((list(tokens), seed, index)).encode()).digest()
    return digest[0] % VOCABULARY


class RecordingBackend:
    """Keeps token ids where a model would keep keys and values."""

    name, device, block_size, bytes_per_parameter, bytes_per_kv = "fake", "none", BLOCK_SIZE, 4, 4

    def __init__(self, blocks: int = BLOCKS) -> None:
        self.blocks = blocks
        self.tokens = 0
        self.cache = np.full((blocks, BLOCK_SIZE), -1, np.int64)
        self.fails = False

    def _answer(self, table: npt.NDArray[np.int64], new: Sequence[int], context: int, seed: int, index: int) -> int:
        self.tokens += len(new)
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

    def idle(self) -> None:
        pass

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
    """Requests of any length, many of which begin alike, aborts and faults at any moment.

    Blocks are so few that answers drive one another out, and steps so small that prompts come in pieces.
    """

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
        prompt=st.builds(
            lambda shared, own: [*range(1, shared + 1), *own],
            st.integers(0, 12),
            st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=4),
        ),
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
        # Nothing starves: every step brings the oldest request forward, in whatever company.
        while self.open:
            oldest = min(self.open)
            for _ in range(len(self.open[oldest].prompt_token_ids) + self.open[oldest].max_output_tokens):
                self.step()
            assert oldest not in self.open
        assert self.batch.allocator.free_blocks == BLOCKS
        assert self.charged_joules == self.meter.joules

    def step(self) -> None:
        before = self.backend.tokens
        updates = self.batch.step()
        assert len({update.key for update in updates}) == len(updates)
        assert self.backend.tokens - before <= LIMITS.max_step_tokens
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
        # Preempted in the middle of a block, an answer may find the rest of that block computed by another.
        assert finished.cached_tokens % BLOCK_SIZE == 0 or self.batch.preemptions
        assert finished.cached_tokens < finished.prompt_tokens
        # A joule for each token that was processed: all but the last and the cached, some twice after a preemption.
        processed = finished.prompt_tokens - finished.cached_tokens + finished.output_tokens - 1
        assert joules(finished) >= processed
        if not self.batch.preemptions:
            assert joules(finished) == processed
        self.charged_joules += joules(finished)
        del self.open[key]


def joules(finished: Finished) -> float:
    assert finished.energy is not None and finished.energy.source == EnergySource.ATTRIBUTED
    return finished.energy.joules


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def batch_of(
    backend: RecordingBackend, meter: SharesEqually | None = None, limits: SchedulingLimits = LIMITS
) -> ContinuousBatch:
    tokenizer = Tokens()
    return ContinuousBatch(
        backend,
        tokenizer,  # type: ignore[arg-type]
        meter or SharesEqually(),
        limits,
        frozenset(),
        Ticks(),
    )


def request(key: int, prompt: Sequence[int], max_output_tokens: int) -> GenerationRequest:
    return GenerationRequest(key, prompt, SamplingParams(), max_output_tokens, (), 0.0)


def run(batch: ContinuousBatch) -> dict[int, Finished]:
    """Steps until all is done."""
    finished: dict[int, Finished] = {}
    while batch.running or batch.waiting:
        finished |= {update.key: update.finished for update in batch.step() if update.finished}
    return finished


def test_a_prompt_that_begins_like_an_earlier_one_is_not_computed_again() -> None:
    backend = RecordingBackend()
    batch = batch_of(backend)
    batch.submit(request(0, [*range(1, 13), 13], 2))
    assert run(batch)[0].cached_tokens == 0
    before = backend.tokens
    # Three full blocks are the same; the last token of a prompt is computed whatever the cache holds.
    batch.submit(request(1, [*range(1, 13), 14], 1))
    batch.submit(request(2, range(1, 13), 1))
    finished = run(batch)
    assert (finished[1].cached_tokens, finished[2].cached_tokens) == (12, 8)
    assert backend.tokens - before == 1 + 4


def test_requests_that_run_together_share_the_blocks_of_their_beginning() -> None:
    batch = batch_of(RecordingBackend())
    batch.submit(request(0, range(1, 14), 8))
    batch.step()
    batch.step()
    free_blocks = batch.allocator.free_blocks
    batch.submit(request(1, [*range(1, 13), 40], 4))
    batch.step()
    assert batch.running == 2
    assert batch.allocator.free_blocks == free_blocks - 1


MANY = SchedulingLimits(max_batch=8, max_step_tokens=10)


def test_of_prompts_that_come_at_once_one_computes_what_they_share() -> None:
    backend = RecordingBackend(blocks=80)
    batch = batch_of(backend, limits=MANY)
    prompt = [*range(1, 34)]
    for key in range(7):
        batch.submit(request(key, prompt, 4))
    batch.submit(request(7, [*range(1, 19), 49], 4))
    firsts: dict[int, int] = {}
    finished: dict[int, Finished] = {}
    tokens: dict[int, tuple[int, ...]] = dict.fromkeys(range(8), ())
    steps = 0
    while batch.running or batch.waiting:
        steps += 1
        for update in batch.step():
            firsts.setdefault(update.key, steps)
            tokens[update.key] += update.token_ids
            finished |= {update.key: update.finished} if update.finished else {}
    # Eight blocks of four; the last token, and what differs, is each one's own.
    assert [finished[key].cached_tokens for key in range(8)] == [0] + [32] * 6 + [16]
    assert backend.tokens == 33 + 6 * 1 + 3 + 8 * 3
    assert {tokens[key] for key in range(7)} == {tokens[0]} and len(tokens[7]) == 4
    # Four steps for the first prompt, at ten tokens each; then the others have only their ends to compute.
    assert firsts == {0: 4} | dict.fromkeys(range(1, 7), 5) | {7: 3}


def test_one_that_has_found_all_that_it_can_share_waits_no_more() -> None:
    batch = batch_of(RecordingBackend(blocks=80), limits=MANY)
    for key in range(2):
        batch.submit(request(key, range(1, 13), 1))
    # Ten tokens of the first, then its last two; the last block of the second is its own in any case.
    assert [{update.key for update in batch.step()} for _ in range(2)] == [set(), {0, 1}]


def test_nobody_waits_for_one_that_waits_for_another() -> None:
    def first_token(prompts: list[list[int]]) -> int:
        batch = batch_of(RecordingBackend(blocks=80), limits=MANY)
        for key, prompt in enumerate(prompts):
            batch.submit(request(key, prompt, 1))
        steps = 1
        while all(update.key != len(prompts) - 1 for update in batch.step()):
            steps += 1
        return steps

    long, unrelated = [*range(1, 41)], [*range(49, 41, -1)]
    assert first_token([long, unrelated]) == first_token([long, long, long, unrelated]) == 2


def test_one_that_waits_for_another_that_leaves_goes_on_alone() -> None:
    backend = RecordingBackend(blocks=80)
    batch = batch_of(backend, limits=MANY)
    for key in range(3):
        batch.submit(request(key, range(1, 34), 1))
    batch.step()
    batch.step()
    batch.abort(0)
    finished = run(batch)
    # Twenty tokens in two steps were the first one's: five full blocks.
    assert (finished[1].cached_tokens, finished[2].cached_tokens) == (20, 32)
    assert backend.tokens == 33 + 1
    assert batch.allocator.free_blocks == 80


def test_an_answer_goes_on_as_if_it_had_never_been_preempted() -> None:
    prompts = [[1, 2, 3], [11, 12, 13], [21, 22, 23]]
    batch = batch_of(RecordingBackend())
    for key, prompt in enumerate(prompts):
        batch.submit(request(key, prompt, 30))
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ended: dict[int, Finished] = {}
    while batch.running or batch.waiting:
        for update in batch.step():
            tokens[update.key] += update.token_ids
            ended |= {update.key: update.finished} if update.finished else {}
    assert batch.preemptions == sum(one.preemptions for one in ended.values()) > 0
    # The oldest is never preempted.
    assert list(ended) == [0, 1, 2] and not ended[0].preemptions
    for key, prompt in enumerate(prompts):
        assert tokens[key] == [next_token([*prompt, *tokens[key][:index]], 0, index) for index in range(30)]


def test_a_long_prompt_does_not_hold_up_a_running_answer_or_a_short_prompt() -> None:
    batch = batch_of(RecordingBackend())
    batch.submit(request(0, [1], 10))
    batch.step()
    batch.submit(request(1, range(1, 21), 1))
    batch.submit(request(2, [7, 8, 9], 1))
    keys = [{update.key for update in batch.step()} for _ in range(3)]
    # Nine tokens a step beside the answer's: half are the long prompt's, which comes first, and the short one fits.
    assert keys == [{0, 2}, {0}, {0, 1}]


def test_energy_counted_while_nothing_runs_is_charged_to_no_answer() -> None:
    events: list[str] = []

    class Notes(SharesEqually):
        def idle(self) -> None:
            events.append("idle")

        def step(self, work: Sequence[Work]) -> Sequence[float]:
            events.append("step")
            return super().step(work)

    batch = batch_of(RecordingBackend(), Notes())
    for key in range(2):
        batch.submit(request(key, [1, 2], 2))
        run(batch)
    assert events == ["idle", "step", "step"] * 2
