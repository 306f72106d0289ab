"""Observed means are running means; lengths are priced where there is a price; the rest is a stated prior."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from common.quality.bound import Cell
from router.optimizer.costs import MAX_CELLS, MEMORY_REQUESTS, Cost, CostBook, Mean, Observed
from router.optimizer.pricing import EnergyModel, Lengths, Price

L0, L1, L2, OWN = (Cell("m", "qa", name) for name in ("L0", "L1", "L2", "terse"))
SPOT = SweetSpot(input_joules=1.0, output_shared_joules=8.0, output_squared_joules=0.01)
MODEL = EnergyModel(SPOT, EnergySource.MEASURED, datetime(2026, 11, 20, tzinfo=UTC), 2.1, 16, 4096, 4096)


def of(joules: float, seconds: float, requests: int) -> Observed:
    return Observed(energy_joules=Mean(joules, requests), busy_seconds=Mean(seconds, requests))


def lengths(n: int, m: int, requests: int = 1) -> Observed:
    return Observed(Lengths.of(n, 0, m), requests)


def priced(observed: dict[Cell, Observed] | None = None, running: float | None = 4.0) -> CostBook:
    return CostBook(observed, lambda model: Price(MODEL, running) if model == "m" else None)


def predicted(book: CostBook, cell: Cell) -> Cost | None:
    return book.predicted(cell.model, cell.task, [cell.directive]).get(cell.directive)


def told(book: CostBook, cell: Cell) -> tuple[float, float, str]:
    cost = predicted(book, cell)
    assert cost is not None
    return cost.energy_joules, cost.busy_seconds, cost.priced_by


def energy(book: CostBook, cell: Cell) -> float:
    cost = predicted(book, cell)
    assert cost is not None
    return cost.energy_joules


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6), st.floats(1e-3, 1e3), st.integers(1, 10_000), st.integers(0, 99), st.integers(0, 10_000)
        ),
        min_size=1,
        max_size=50,
    )
)
@settings(deadline=None)
def test_means_are_means(served: list[tuple[float, float, int, int, int]]) -> None:
    book = CostBook()
    for joules, seconds, n, cached, m in served:
        book.observe(L0, joules, seconds, Lengths.of(n, cached, m))
    seen = book.observed(L0)
    assert seen is not None and seen.lengths is not None
    assert seen.requests == seen.energy_joules.requests == seen.busy_seconds.requests == len(served)
    found = seen.lengths
    terms = [
        (joules, seconds, n - min(c, n), n**2 - min(c, n) ** 2, m, m**2, n * m) for joules, seconds, n, c, m in served
    ]
    means = [seen.energy_joules.value, seen.busy_seconds.value, found.input_tokens, found.input_squared]
    means += [found.output_tokens, found.output_squared, found.pairs]
    assert means == [
        pytest.approx(sum(column) / len(served), rel=1e-6, abs=1e-6) for column in zip(*terms, strict=True)
    ]


def test_what_is_not_told_is_in_no_mean() -> None:
    book = CostBook()
    book.observe(L0, 10.0, 1.0)
    book.observe(L0, None, 0.0, Lengths.of(5, 0, 3))
    book.observe(L0, None, 3.0)
    assert book.observed(L0) == Observed(Lengths.of(5, 0, 3), 1, Mean(10.0, 1), Mean(2.0, 2))


def test_old_traffic_is_forgotten() -> None:
    book = CostBook({L0: Observed(Lengths.of(1_000, 0, 1_000), 10**6, Mean(100.0, 10**6), Mean(1.0, 10**6))})
    for _ in range(10 * MEMORY_REQUESTS):
        book.observe(L0, 1.0, 1.0, Lengths.of(10, 0, 10))
    seen = book.observed(L0)
    assert seen is not None and seen.lengths is not None
    assert seen.energy_joules.value == pytest.approx(1.0, abs=0.01)
    assert seen.lengths.pairs == pytest.approx(100.0, rel=0.5)


def test_the_cell_that_was_longest_not_served_goes_first() -> None:
    book = CostBook()
    for index in range(MAX_CELLS):
        book.observe(Cell("m", str(index), "L0"), 1.0, 1.0)
    book.observe(Cell("m", "0", "L0"), 1.0, 1.0)
    book.observe(Cell("m", "new", "L0"), 1.0, 1.0)
    kept = [book.observed(Cell("m", task, "L0")) is not None for task in ("0", "1", "2", "new")]
    assert kept == [True, False, True, True]


def test_without_a_price_the_prior_is_a_share_of_l0s_energy() -> None:
    book = CostBook({L0: of(100.0, 10.0, 5)})
    words = "{} of the mean energy of L0's 5 requests"
    assert told(book, L1) == (pytest.approx(22.4), pytest.approx(2.24), words.format("22.4 %"))
    assert told(book, OWN) == (50.0, 5.0, words.format("50 %"))
    assert book.observed(L1) is None


def test_what_was_observed_beats_the_prior_the_more_of_it_there_is() -> None:
    book = CostBook({L0: of(100.0, 10.0, 5)})
    book.observe(L1, 190.0, 19.0)
    expected = [(value + 20 * 0.224 * of_l0) / 21 for value, of_l0 in ((190, 100), (19, 10))]
    words = "mean energy of 1 request, and 22.4 % of the mean energy of L0's 5 requests as 20 more"
    assert told(book, L1) == (*(pytest.approx(value) for value in expected), words)
    for _ in range(1_999):
        book.observe(L1, 190.0, 19.0)
    assert energy(book, L1) == pytest.approx(190.0, rel=0.01)
    assert told(book, L0) == (100.0, 10.0, "mean energy of 5 requests")


def test_nothing_is_made_up_without_l0() -> None:
    assert predicted(CostBook({L1: of(1.0, 1.0, 5)}), OWN) is None
    assert predicted(priced({L1: lengths(1, 1)}), OWN) is None
    for book in (CostBook(), priced(), CostBook({L0: lengths(10, 10)})):
        assert book.predicted("m", "qa", ["L0", "L1"]) == {}


def test_lengths_are_priced_and_observed_joules_are_not_looked_at() -> None:
    book = priced({L0: Observed(Lengths.of(100, 0, 50), 812, Mean(9e9, 812), Mean(2.0, 812))})
    by = "priced at a batch of 4 by the calibration of 2026-11-20 (measured energies, held-out error 2.1 %)"
    expected = SPOT.energy_joules(100, 50, 4.0)
    assert told(book, L0) == (pytest.approx(expected), 2.0, f"lengths of 812 requests, {by}")
    assert predicted(book, Cell("other", "qa", "L0")) is None


def test_the_prior_of_a_price_is_shorter_answers_to_the_same_prompts() -> None:
    book = priced({L0: Observed(Lengths.of(1_000, 0, 10), 5, busy_seconds=Mean(2.0, 5))})
    whole, shorter = SPOT.energy_joules(1_000, 10, 4.0), SPOT.energy_joules(1_000, 2.24, 4.0)
    cost = predicted(book, L1)
    assert cost is not None
    assert cost.energy_joules == pytest.approx(shorter)
    assert cost.energy_joules > 0.9 * whole, "a long prompt with a short answer hardly gains"
    assert cost.busy_seconds == pytest.approx(2.0 * shorter / whole)
    assert cost.priced_by.startswith("lengths of L0's 5 requests with 22.4 % of their output tokens, priced at a batch")


def test_the_words_of_a_prior_tell_of_the_lengths_that_were_priced() -> None:
    """5,000 output tokens are beyond what was measured, 22.4 % of them are not."""
    book = priced({L0: lengths(10, 5_000, 5)})
    told = [cost.priced_by for cell in (L0, L1) if (cost := predicted(book, cell))]
    assert ["extrapolated to outputs of" in words for words in told] == [True, False]


def test_thin_cells_are_drawn_to_the_prior_of_the_price() -> None:
    book = priced({L0: lengths(10, 1_000, 5)})
    book.observe(L1, None, 0.0, Lengths.of(20, 0, 5_000))
    prior, own = SPOT.energy_joules(10, 224, 4.0), SPOT.energy_joules(20, 5_000, 4.0)
    assert energy(book, L1) == pytest.approx((own + 20 * prior) / 21)
    cost = predicted(book, L1)
    start = "lengths of 1 request, and of L0's 5 requests with 22.4 % of their output tokens as 20 more, priced at"
    assert cost is not None and cost.priced_by.startswith(start)
    for _ in range(5_000):
        book.observe(L1, None, 0.0, Lengths.of(20, 0, 5_000))
    assert energy(book, L1) == pytest.approx(own, rel=0.01)


def test_lengths_without_energy_are_enough_for_a_price_and_for_nothing_else() -> None:
    seen = {L0: lengths(10, 100)}
    assert energy(priced(seen), L0) == pytest.approx(SPOT.energy_joules(10, 100, 4.0))
    assert predicted(CostBook(seen), L0) is None


def test_priced_directives_are_not_set_beside_an_l0_of_joules() -> None:
    """L0's requests told their energy only: then the others' joules are taken as well."""
    book = priced({L0: of(100.0, 0.0, 5), L1: Observed(Lengths.of(9, 0, 9), 10**6, Mean(40.0, 10**6))})
    assert energy(book, L0) == 100.0
    assert energy(book, L1) == pytest.approx(40.0, rel=1e-3)


def test_what_was_served_in_different_batches_is_compared_at_one() -> None:
    """The same prompts; L2's answers are half as long, and were served in an empty engine, L0's in a full one."""
    book = CostBook()
    joules = {(name, b): SPOT.energy_joules(20, m, b) for name, m, b in (("L0", 100, 16.0), ("L2", 50, 1.0))}
    for _ in range(5_000):
        book.observe(L0, joules["L0", 16.0], 1.0, Lengths.of(20, 0, 100))
        book.observe(L2, joules["L2", 1.0], 1.0, Lengths.of(20, 0, 50))
    by_joules = book.predicted("m", "qa", ["L0", "L2"])
    assert by_joules["L2"].energy_joules > by_joules["L0"].energy_joules
    seen = {cell: observed for cell in (L0, L2) if (observed := book.observed(cell))}
    for running in (None, 1.0, 5.0, 16.0, 400.0):
        by_lengths = priced(seen, running).predicted("m", "qa", ["L0", "L2"])
        assert by_lengths["L2"].energy_joules < by_lengths["L0"].energy_joules


def test_all_directives_are_priced_at_the_same_batch() -> None:
    """Reports of load come in while a plan is made."""
    batches = iter((1.0, 16.0, 3.0, 5.0))
    book = CostBook({L0: lengths(10, 100, 10**9), L1: lengths(10, 100, 10**9)}, lambda _: Price(MODEL, next(batches)))
    costs = book.predicted("m", "qa", ["L0", "L1"])
    assert costs["L0"].energy_joules == pytest.approx(costs["L1"].energy_joules)
