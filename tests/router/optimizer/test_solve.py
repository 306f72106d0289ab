"""The linear programme against exhaustive search, and its edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from router.optimizer.solve import Candidate, solve


def grams_of(candidates: list[Candidate], shares: dict[str, float]) -> float:
    return sum(candidate.grams * shares.get(candidate.directive, 0.0) for candidate in candidates)


def best_by_search(candidates: list[Candidate], floor: float) -> float:
    """Least carbon of all mixes of at most two levels: a vertex of the problem has no more."""
    best = min(c.grams for c in candidates if c.quality >= floor)
    for a in candidates:
        for b in candidates:
            if a.quality >= floor > b.quality:
                share = (floor - b.quality) / (a.quality - b.quality)
                best = min(best, share * a.grams + (1 - share) * b.grams)
    return best


levels = st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0.0, 1.0)), min_size=0, max_size=4).map(
    lambda drawn: [
        Candidate("L0", 1.0, 1.0),
        *(Candidate(f"L{index}", grams, quality) for index, (grams, quality) in enumerate(drawn, start=1)),
    ]
)


@settings(deadline=None)
@given(levels, st.floats(0.01, 1.0))
def test_it_finds_the_least_carbon_that_keeps_the_floor(candidates: list[Candidate], floor: float) -> None:
    shares = dict(solve(candidates, floor))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0 < share <= 1 + 1e-9 for share in shares.values())
    quality = sum(candidate.quality * shares.get(candidate.directive, 0.0) for candidate in candidates)
    assert quality >= floor - 1e-6
    assert grams_of(candidates, shares) == pytest.approx(best_by_search(candidates, floor), abs=1e-6)


@settings(deadline=None)
@given(levels, st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5))
def test_a_higher_floor_never_saves_carbon(candidates: list[Candidate], floors: list[float]) -> None:
    grams = [grams_of(candidates, dict(solve(candidates, floor))) for floor in sorted(floors)]
    assert all(low <= high + 1e-6 for low, high in pairwise(grams))


def earliest_by_search(candidates: list[Candidate], floor: float) -> float:
    """Least late share of all mixes of at most two levels."""
    best = min(c.late for c in candidates if c.quality >= floor)
    for a in candidates:
        for b in candidates:
            if a.quality >= floor > b.quality:
                share = (floor - b.quality) / (a.quality - b.quality)
                best = min(best, share * a.late + (1 - share) * b.late)
    return best


late_levels = st.tuples(
    st.floats(0.0, 1.0), st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0)), max_size=4)
).map(
    lambda drawn: [
        Candidate("L0", 1.0, 1.0, drawn[0]),
        *(Candidate(f"L{index}", *level) for index, level in enumerate(drawn[1], start=1)),
    ]
)


@settings(deadline=None)
@given(late_levels, st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_no_more_is_late_than_may_be_or_as_little_as_the_floor_lets(
    candidates: list[Candidate], floor: float, most_late: float
) -> None:
    shares = dict(solve(candidates, floor, most_late))
    quality = sum(candidate.quality * shares.get(candidate.directive, 0.0) for candidate in candidates)
    late = sum(candidate.late * shares.get(candidate.directive, 0.0) for candidate in candidates)
    assert quality >= floor - 1e-6
    assert late <= max(most_late, earliest_by_search(candidates, floor)) + 1e-6


@settings(deadline=None)
@given(late_levels, st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_an_objective_costs_carbon_only_where_it_binds(
    candidates: list[Candidate], floor: float, most_late: float
) -> None:
    free, bound = dict(solve(candidates, floor)), dict(solve(candidates, floor, most_late))
    assert grams_of(candidates, bound) >= grams_of(candidates, free) - 1e-6
    if sum(candidate.late * free.get(candidate.directive, 0.0) for candidate in candidates) <= most_late:
        assert grams_of(candidates, bound) == pytest.approx(grams_of(candidates, free), abs=1e-6)


@settings(deadline=None)
@given(late_levels, st.floats(0.01, 1.0), st.floats(0.0, 1.0) | st.none())
def test_no_solver_finds_a_better_mix(candidates: list[Candidate], floor: float, most_late: float | None) -> None:
    shares = dict(solve(candidates, floor, most_late))
    rows, limits = [[-candidate.quality for candidate in candidates]], [-floor]
    if most_late is not None:
        rows.append([candidate.late for candidate in candidates])
        limits.append(max(most_late, earliest_by_search(candidates, floor)) + 1e-9)
    found = linprog(
        [candidate.grams for candidate in candidates], rows, limits, [[1.0] * len(candidates)], [1.0], method="highs"
    )
    # A solver keeps constraints to within a tolerance, so it may be a little below.
    assert found.success
    assert grams_of(candidates, shares) <= found.fun + 1e-5


def test_a_mix_is_as_late_as_it_may_be() -> None:
    """L2 saves most but is late; half of it is what 0.3 leaves room for."""
    candidates = [Candidate("L0", 1.0, 1.0, 0.1), Candidate("L2", 0.2, 1.0, 0.5)]
    assert dict(solve(candidates, 0.95, 0.3)) == {"L0": pytest.approx(0.5), "L2": pytest.approx(0.5)}


def test_of_the_earliest_the_least_carbon_is_taken() -> None:
    candidates = [
        Candidate("L0", 1.0, 1.0, 0.9),
        Candidate("L1", 0.5, 1.0, 0.4),
        Candidate("L2", 0.4, 1.0, 0.4),
        Candidate("L3", 0.1, 1.0, 0.6),
    ]
    assert dict(solve(candidates, 0.95, 0.1)) == {"L2": pytest.approx(1.0)}


def test_a_mix_spends_the_quality_that_the_floor_leaves() -> None:
    """0.95 = 5/6 of 1.0 and 1/6 of 0.7."""
    shares = dict(solve([Candidate("L0", 1.0, 1.0), Candidate("L2", 0.2, 0.7)], 0.95))
    assert shares == {"L0": pytest.approx(5 / 6), "L2": pytest.approx(1 / 6)}


def test_a_floor_out_of_reach_is_said() -> None:
    with pytest.raises(ValueError, match=r"floor 0\.99 cannot be reached: the best level keeps 0\.9"):
        solve([Candidate("L0", 1.0, 0.9)], 0.99)
