"""How long answers take: histograms against the sorted answer times themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.bound import Cell
from router.optimizer.costs import MEMORY_REQUESTS, PRIOR_REQUESTS
from router.optimizer.latency import LONGEST_SECONDS, SHORTEST_SECONDS, LatencyBook

L0, L1 = Cell("m@1", "qa", "L0"), Cell("m@1", "qa", "L1")


def book(**seconds: list[float]) -> LatencyBook:
    made = LatencyBook()
    for directive, times in seconds.items():
        for time in times:
            made.observe(Cell("m@1", "qa", directive), time)
    return made


def late_share(book: LatencyBook, cell: Cell, seconds: float) -> float | None:
    return book.late_shares(cell.model, cell.task, [cell.directive], seconds).get(cell.directive)


@settings(deadline=None)
@given(
    seconds=st.lists(st.floats(SHORTEST_SECONDS / 10, 10 * LONGEST_SECONDS), min_size=1, max_size=100),
    limit=st.floats(SHORTEST_SECONDS / 10, LONGEST_SECONDS),
)
def test_a_share_is_right_but_for_the_width_of_a_bin(seconds: list[float], limit: float) -> None:
    share = late_share(book(L0=seconds), L0, limit)
    assert share is not None and 0.0 <= share <= 1.0
    bin_width = 2**0.25 * (1 + 1e-9)
    times = np.array(seconds)
    # What is within a bin of the limit may fall on either side; weights differ by what 100 requests are forgotten.
    forgotten = 100 / MEMORY_REQUESTS
    clipped = max(limit, SHORTEST_SECONDS)
    assert share >= np.mean(times > clipped * bin_width) * (1 - forgotten) - 1e-9
    if limit >= SHORTEST_SECONDS:
        assert share <= np.mean(times > limit / bin_width) * (1 + forgotten) + forgotten


@given(
    seconds=st.lists(st.floats(0.001, 4000.0), min_size=1, max_size=30),
    limits=st.lists(st.floats(0.0001, 3600.0), min_size=2, max_size=2),
)
def test_a_longer_limit_is_missed_no_more_often(seconds: list[float], limits: list[float]) -> None:
    made = book(L0=seconds)
    short, long = (late_share(made, L0, limit) for limit in sorted(limits))
    assert short is not None and long is not None and short >= long - 1e-12


def test_what_took_longer_than_the_longest_is_late_for_any_objective() -> None:
    assert late_share(book(L0=[10 * LONGEST_SECONDS]), L0, LONGEST_SECONDS) == 1.0


def test_nothing_observed_is_nothing_known() -> None:
    assert late_share(book(), L0, 1.0) is None
    assert late_share(book(L1=[1.0]), L0, 1.0) is None
    assert late_share(book(L0=[1.0]), Cell("m@2", "qa", "L1"), 1.0) is None
    assert late_share(book(L0=[1.0]), Cell("m@1", "other", "L1"), 1.0) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_not_observed(seconds: float) -> None:
    assert late_share(book(L0=[seconds]), L0, 1.0) is None


def test_what_was_never_served_is_as_late_as_l0() -> None:
    made = book(L0=[1.0, 10.0])
    assert late_share(made, L1, 4.0) == late_share(made, L0, 4.0) == pytest.approx(0.5, abs=0.01)


def test_a_few_early_answers_promise_little() -> None:
    made = book(L0=[10.0] * 100, L1=[1.0] * PRIOR_REQUESTS)
    assert late_share(made, L1, 4.0) == pytest.approx(0.5)
    for _ in range(99 * PRIOR_REQUESTS):
        made.observe(L1, 1.0)
    assert late_share(made, L1, 4.0) == pytest.approx(1 / 101)


def test_without_l0s_a_directives_own_times_are_all_there_is() -> None:
    assert late_share(book(L1=[1.0]), L1, 4.0) == 0.0
    assert late_share(book(L1=[9.0]), L1, 4.0) == 1.0


def test_what_is_long_past_is_forgotten() -> None:
    made = book(L0=[10.0] * 1_000 + [1.0] * (4 * MEMORY_REQUESTS))
    share = late_share(made, L0, 4.0)
    # 1,000 weigh as much as MEMORY_REQUESTS (1 - e^-1/2), and are forgotten to e^-4 of that.
    assert share == pytest.approx((1 - math.exp(-0.5)) * math.exp(-4), rel=0.03)
