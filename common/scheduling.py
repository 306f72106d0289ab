"""Who runs in the next step: the pure policy that the engine follows and that planners may replay.

First come, first served, with the blocks of the whole answer reserved at admission, so that a running request never
has to give its cache back.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulingLimits:
    """What one engine step may hold."""

    max_batch: int
    """Sequences that decode together."""
    max_prefill_tokens: int
    """Prompt tokens taken in one step; a single longer prompt still runs, alone."""


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits, as far as scheduling needs to know it."""

    prompt_tokens: int
    blocks: int
    """KV-cache blocks for its prompt and its longest possible answer."""


def blocks_needed(prompt_tokens: int, max_output_tokens: int, block_size: int) -> int:
    """Blocks that hold a prompt and its answer; the last output token is never written to the cache."""
    return -(-(prompt_tokens + max_output_tokens - 1) // block_size)


def admit(queue: Iterable[QueuedRequest], running: int, free_blocks: int, limits: SchedulingLimits) -> int:
    """How many requests from the head of `queue` start in the next step, beside the `running` ones.

    Strictly in order: a request that does not fit holds those behind it, so that a long one is never starved by
    short ones that keep arriving.
    """
    admitted = 0
    prefill_tokens = 0
    for request in queue:
        prefill_tokens += request.prompt_tokens
        free_blocks -= request.blocks
        too_many = running + admitted >= limits.max_batch
        too_long = admitted > 0 and prefill_tokens > limits.max_prefill_tokens
        if too_many or too_long or free_blocks < 0:
            break
        admitted += 1
    return admitted
