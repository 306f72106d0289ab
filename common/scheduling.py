"""Who runs in the next step: the pure policy that the engine follows and that planners may replay.

Requests rank by arrival. Blocks are taken as an answer grows; where they run out, the youngest running requests give
theirs back and go to the head of the queue. The oldest is never among them, and every step brings it forward, so
each request in turn becomes the oldest and ends: none starves.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulingLimits:
    """What one engine step may hold.

    Raises ValueError, naming the field, where max_batch is below 1 or max_step_tokens below max_batch.
    """

    max_batch: int
    """Sequences that run together."""
    max_step_tokens: int
    """Tokens that one step processes, of running answers and of prompts together."""

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"max_batch: {self.max_batch} is not at least 1")
        if self.max_step_tokens < self.max_batch:
            raise ValueError(f"max_step_tokens: {self.max_step_tokens} is not at least max_batch, {self.max_batch}")


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request that runs, as far as scheduling needs to know it."""

    pending_tokens: int
    """Tokens that are not in the cache yet: 1 while it decodes, more in prefill.

    0 where it waits for an older one to compute what both begin with: it sits the step out.
    """
    growth_blocks: int
    """Blocks that its next step needs beyond those that it holds."""


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits, as far as scheduling needs to know it."""

    pending_tokens: int
    """Tokens of its prompt, and of an answer begun before a preemption, that the cache does not hold.

    0 as in RunningRequest.
    """
    blocks: int
    """Free blocks that it takes to hold all its tokens: all but those of its prefix that others use already."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The next step."""

    preempted: int
    """Running requests that give their blocks back first, counted from the youngest."""
    admitted: int
    """Requests that join, counted from the head of the queue."""
    new_tokens: tuple[int, ...]
    """Tokens that each request brings to the step: those still running, then the admitted. 0 sits it out."""


def blocks_needed(tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // block_size)


def plan_step(
    running: Sequence[RunningRequest],
    queue: Iterable[QueuedRequest],
    free_blocks: int,
    own_blocks: Callable[[int], int],
    limits: SchedulingLimits,
) -> StepPlan:
    """The next step, for requests in the order of their arrival: all of `running` came before all of `queue`.

    `own_blocks(index)`: blocks that become free if that running request is preempted, those that it shares with none.

    Admission is strictly in order: a request that does not fit holds those behind it, so that a long one is never
    starved by short ones that keep arriving. It leaves a block for each running request to grow into, and rests in
    a step that preempts; else a request would be preempted as soon as it was back.
    """
    kept, growth_blocks = len(running), sum(one.growth_blocks for one in running)
    while kept > 1 and growth_blocks > free_blocks:
        kept -= 1
        growth_blocks -= running[kept].growth_blocks
        free_blocks += own_blocks(kept)
    free_blocks -= growth_blocks
    pending_tokens = [one.pending_tokens for one in running[:kept]]
    if kept == len(running):
        for request in queue:
            count = len(pending_tokens)
            if count == limits.max_batch or request.blocks + count > free_blocks:
                break
            free_blocks -= request.blocks
            pending_tokens.append(request.pending_tokens)
    return StepPlan(
        preempted=len(running) - kept,
        admitted=max(0, len(pending_tokens) - len(running)),
        new_tokens=tuple(share_step(pending_tokens, limits.max_step_tokens)),
    )


def share_step(pending_tokens: Sequence[int], max_step_tokens: int) -> list[int]:
    """Tokens that each request, oldest first, brings to a step of at most `max_step_tokens`.

    Every answer gets its one token, so that no prompt stalls it. Of the rest, the oldest prompt has half, so that it
    always comes to its end; then the prompts with the fewest tokens left, so that a short one need not wait for a
    long one; what they leave is the oldest's again.
    """
    shares = [int(pending == 1) for pending in pending_tokens]
    left = max_step_tokens - sum(shares)
    prompts = [index for index, pending in enumerate(pending_tokens) if pending > 1]
    if not prompts:
        return shares
    shortest_first = sorted(prompts, key=lambda index: pending_tokens[index])
    for index, most in [(prompts[0], -(-left // 2)), *((index, left) for index in shortest_first)]:
        tokens = min(pending_tokens[index] - shares[index], most, left)
        shares[index] += tokens
        left -= tokens
    return shares
