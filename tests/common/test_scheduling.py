"""Who runs next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from common.scheduling import (
    QueuedRequest,
    RunningRequest,
    SchedulingLimits,
    StepPlan,
    blocks_needed,
    plan_step,
    share_step,
)

LIMITS = SchedulingLimits(max_batch=4, max_step_tokens=100)


@pytest.mark.parametrize(
    ("queue", "running", "free_blocks", "admitted"),
    [
        ([], 0, 10, 0),
        ([(10, 1)] * 6, 0, 10, 4),
        ([(10, 1)] * 6, 3, 10, 1),
        ([(10, 1)] * 6, 4, 10, 0),
        # Each that runs keeps a block to grow into.
        ([(10, 1)] * 6, 0, 3, 2),
        ([(10, 3)], 2, 4, 0),
        ([(10, 3)], 2, 5, 1),
        # Alone, a request may have all there is.
        ([(10, 8)], 0, 8, 1),
        # A long prompt takes more than one step; it holds nobody up.
        ([(500, 1), (1, 1)], 0, 10, 2),
        # The head does not fit: what is behind it waits too.
        ([(10, 9), (10, 1)], 0, 8, 0),
    ],
)
def test_admission(queue: list[tuple[int, int]], running: int, free_blocks: int, admitted: int) -> None:
    requests = [QueuedRequest(tokens, blocks) for tokens, blocks in queue]
    plan = plan_step([RunningRequest(1, 0)] * running, requests, free_blocks, lambda index: 0, LIMITS)
    assert (plan.preempted, plan.admitted) == (0, admitted)


def test_one_that_waits_for_anothers_blocks_joins_and_leaves_the_step_to_others() -> None:
    queue = [QueuedRequest(0, 5), QueuedRequest(400, 5)]
    plan = plan_step([RunningRequest(1, 0), RunningRequest(0, 0)], queue, 30, lambda index: 0, LIMITS)
    assert (plan.admitted, plan.new_tokens) == (2, (1, 0, 0, 99))


@pytest.mark.parametrize(
    ("growth", "own", "free_blocks", "preempted"),
    [
        ([1, 1, 1], [5, 5, 5], 3, 0),
        ([1, 1, 1], [5, 5, 5], 2, 1),
        # The youngest shares all that it has: giving it up frees nothing but its wish to grow.
        ([1, 1, 1], [5, 5, 0], 1, 2),
        ([1, 0, 0], [5, 0, 0], 0, 2),
        # The oldest stays.
        ([1], [5], 0, 0),
    ],
)
def test_preemption(growth: list[int], own: list[int], free_blocks: int, preempted: int) -> None:
    running = [RunningRequest(1, blocks) for blocks in growth]
    plan = plan_step(running, [QueuedRequest(1, 0)], free_blocks, own.__getitem__, LIMITS)
    assert plan.preempted == preempted
    assert not (plan.preempted and plan.admitted)


@pytest.mark.parametrize(
    ("pending", "shares"),
    [
        ([], []),
        ([1, 1], [1, 1]),
        ([40], [40]),
        ([400], [100]),
        ([1, 400, 1], [1, 98, 1]),
        # Half for the oldest prompt, then the shortest first.
        ([400, 300, 30], [50, 20, 30]),
        ([400, 10, 20], [70, 10, 20]),
        # Among equals, the oldest.
        ([400, 400, 30], [70, 0, 30]),
        ([400, 60, 60], [50, 50, 0]),
        # One that waits for another's blocks brings none, whatever its age.
        ([1, 0, 400, 0], [1, 0, 99, 0]),
        ([0], [0]),
    ],
)
def test_shares(pending: list[int], shares: list[int]) -> None:
    assert share_step(pending, 100) == shares


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(8, 100))
def test_a_step_is_used_up_and_no_more(pending: list[int], max_step_tokens: int) -> None:
    shares = share_step(pending, max_step_tokens)
    assert all(0 <= share <= tokens for share, tokens in zip(shares, pending, strict=True))
    assert sum(shares) == min(sum(pending), max_step_tokens)
    assert all(share == 1 for share, tokens in zip(shares, pending, strict=True) if tokens == 1)
    oldest_prompt = next((share for share, tokens in zip(shares, pending, strict=True) if tokens > 1), 1)
    assert oldest_prompt >= 1


@pytest.mark.parametrize(("max_batch", "max_step_tokens", "field"), [(0, 5, "max_batch"), (5, 4, "max_step_tokens")])
def test_limits_that_cannot_be_kept_are_refused(max_batch: int, max_step_tokens: int, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        SchedulingLimits(max_batch, max_step_tokens)


@given(st.integers(0, 400), st.integers(1, 32))
def test_blocks_hold_every_token(tokens: int, block_size: int) -> None:
    assert tokens <= blocks_needed(tokens, block_size) * block_size < tokens + block_size


class Planned(RuleBasedStateMachine):
    """A day of requests that follow the plan, with blocks of 4 tokens and nothing shared."""

    BLOCKS, BLOCK_SIZE = 10, 4
    LIMITS = SchedulingLimits(max_batch=3, max_step_tokens=6)

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = 0
        self.running: list[Request] = []
        self.waiting: list[Request] = []

    @rule(prompt=st.integers(1, 30), output=st.integers(1, 10))
    def arrive(self, prompt: int, output: int) -> None:
        self.waiting.append(Request(self.arrivals, prompt, prompt + output))
        self.arrivals += 1

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.running + self.waiting))
        (self.running if gone in self.running else self.waiting).remove(gone)

    @rule(count=st.integers(1, 5))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def teardown(self) -> None:
        while self.running or self.waiting:
            oldest = min(self.running + self.waiting, key=lambda one: one.arrival)
            for _ in range(oldest.ends_at):
                self.step()
            assert oldest not in self.running + self.waiting

    def step(self) -> None:
        plan = self.plan()
        oldest = self.running[:1]
        for _ in range(plan.preempted):
            self.waiting.insert(0, self.running.pop())
            self.waiting[0].computed = self.waiting[0].blocks = 0
        assert self.running[:1] == oldest
        self.running += self.waiting[: plan.admitted]
        del self.waiting[: plan.admitted]
        assert len(self.running) <= self.LIMITS.max_batch
        assert sum(plan.new_tokens) <= self.LIMITS.max_step_tokens
        for request, new_tokens in zip(self.running, plan.new_tokens, strict=True):
            request.blocks = blocks_needed(request.tokens, self.BLOCK_SIZE)
            request.computed += new_tokens
            # A running answer is never stalled.
            assert new_tokens or request.computed < request.tokens - 1
            request.tokens += request.computed == request.tokens
        assert sum(one.blocks for one in self.running) <= self.BLOCKS
        self.running = [one for one in self.running if one.tokens < one.ends_at]
        arrivals = [one.arrival for one in self.running + self.waiting]
        assert arrivals == sorted(arrivals)

    def plan(self) -> StepPlan:
        return plan_step(
            [
                RunningRequest(one.tokens - one.computed, blocks_needed(one.tokens, self.BLOCK_SIZE) - one.blocks)
                for one in self.running
            ],
            [QueuedRequest(one.tokens, blocks_needed(one.tokens, self.BLOCK_SIZE)) for one in self.waiting],
            self.BLOCKS - sum(one.blocks for one in self.running),
            lambda index: self.running[index].blocks,
            self.LIMITS,
        )


class Request:
    """Counts of one request in `Planned`."""

    def __init__(self, arrival: int, tokens: int, ends_at: int) -> None:
        self.arrival, self.tokens, self.ends_at = arrival, tokens, ends_at
        self.computed = self.blocks = 0


TestPlanned = Planned.TestCase
