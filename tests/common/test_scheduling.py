"""Who runs next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.scheduling import QueuedRequest, SchedulingLimits, admit, blocks_needed

LIMITS = SchedulingLimits(max_batch=4, max_prefill_tokens=100)


@pytest.mark.parametrize(
    ("queue", "running", "free_blocks", "admitted"),
    [
        ([], 0, 10, 0),
        ([(10, 1)] * 6, 0, 10, 4),
        ([(10, 1)] * 6, 3, 10, 1),
        ([(10, 1)] * 6, 4, 10, 0),
        ([(10, 1)] * 6, 0, 2, 2),
        ([(60, 1), (40, 1), (1, 1)], 0, 10, 2),
        ([(500, 1), (1, 1)], 0, 10, 1),
        ([(1, 1), (500, 1)], 0, 10, 1),
        # The head does not fit: what is behind it waits too.
        ([(10, 9), (10, 1)], 0, 8, 0),
    ],
)
def test_admission(queue: list[tuple[int, int]], running: int, free_blocks: int, admitted: int) -> None:
    requests = [QueuedRequest(tokens, blocks) for tokens, blocks in queue]
    assert admit(requests, running, free_blocks, LIMITS) == admitted


@given(
    st.lists(st.builds(QueuedRequest, st.integers(1, 300), st.integers(1, 20)), max_size=8),
    st.integers(0, 4),
    st.integers(0, 40),
)
def test_admission_keeps_every_limit_and_takes_all_that_fits(
    queue: list[QueuedRequest], running: int, free_blocks: int
) -> None:
    count = admit(queue, running, free_blocks, LIMITS)

    def fits(head: list[QueuedRequest]) -> bool:
        return (
            running + len(head) <= LIMITS.max_batch
            and sum(one.blocks for one in head) <= free_blocks
            and (len(head) == 1 or sum(one.prompt_tokens for one in head) <= LIMITS.max_prefill_tokens)
        )

    assert count == 0 or fits(queue[:count])
    assert count == len(queue) or not fits(queue[: count + 1])


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 32))
def test_blocks_hold_every_token_but_the_last(prompt_tokens: int, max_output_tokens: int, block_size: int) -> None:
    blocks = blocks_needed(prompt_tokens, max_output_tokens, block_size)
    cached_tokens = prompt_tokens + max_output_tokens - 1
    assert (blocks - 1) * block_size < cached_tokens <= blocks * block_size
