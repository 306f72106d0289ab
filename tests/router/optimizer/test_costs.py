"""Observed costs are running means; what was never served is predicted from L0 by a stated prior."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.estimates import Cell
from router.optimizer.costs import MEMORY_REQUESTS, Cost, CostBook

L0, L1, OWN = Cell("m", "qa", "L0"), Cell("m", "qa", "L1"), Cell("m", "qa", "terse")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3), st.integers(0, 10_000)), min_size=1, max_size=50))
def test_means_are_means(served: list[tuple[float, float, int]]) -> None:
    book = CostBook()
    for joules, seconds, tokens in served:
        book.observe(L0, joules, seconds, tokens)
    cost = book.observed(L0)
    assert cost is not None and cost.requests == len(served)
    columns = list(zip(*served, strict=True))
    assert (cost.energy_joules, cost.busy_seconds, cost.output_tokens) == tuple(
        pytest.approx(sum(column) / len(served), rel=1e-6, abs=1e-6) for column in columns
    )


def test_old_traffic_is_forgotten() -> None:
    book = CostBook({L0: Cost(100.0, 1.0, 10.0, 1_000_000)})
    for _ in range(10 * MEMORY_REQUESTS):
        book.observe(L0, 1.0, 1.0, 10)
    cost = book.observed(L0)
    assert cost is not None and cost.energy_joules == pytest.approx(1.0, abs=0.01)


def test_the_prior_is_a_share_of_l0() -> None:
    book = CostBook({L0: Cost(100.0, 10.0, 1_000.0, 5)})
    assert book.predicted(L1) == Cost(pytest.approx(22.4), pytest.approx(2.24), pytest.approx(224.0), 0)
    assert book.predicted(OWN) == Cost(50.0, 5.0, 500.0, 0)
    assert book.observed(L1) is None


def test_what_was_observed_beats_the_prior_the_more_of_it_there_is() -> None:
    book = CostBook({L0: Cost(100.0, 10.0, 1_000.0, 5)})
    book.observe(L1, 190.0, 19.0, 1_900)
    one = book.predicted(L1)
    expected = [(value + 20 * 0.224 * of_l0) / 21 for value, of_l0 in ((190, 100), (19, 10), (1_900, 1_000))]
    assert one == Cost(*(pytest.approx(value) for value in expected), 1)
    for _ in range(1_999):
        book.observe(L1, 190.0, 19.0, 1_900)
    many = book.predicted(L1)
    assert many is not None and many.energy_joules == pytest.approx(190.0, rel=0.01)
    assert book.predicted(L0) == book.observed(L0)


def test_nothing_is_made_up_without_l0() -> None:
    assert CostBook({L1: Cost(1.0, 1.0, 1.0, 5)}).predicted(OWN) is None
    assert CostBook().predicted(L0) is None
