"""The counterfactual, against populations whose L0 carbon is known."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from router.counterfactual import BUDGET_METHOD, SHOWN_UNCOVERED, Stratum, Uncovered, estimate

Column = NDArray[np.float64]


@dataclass
class Population:
    """Requests of which everything is known: what each would have used at L0, and what it did."""

    strata: list[Stratum]
    served_grams: float
    true_grams: float


def stratum(
    joules: Column, embodied: Column, factor: Column, steered: NDArray[np.bool_], share: float, task: str
) -> tuple[Stratum, float]:
    """A stratum, and what it emitted: steered requests use `share` of their own L0 energy and device time."""
    held = ~steered
    emitted = float(share * (joules * factor + embodied)[steered].sum())
    made = Stratum(
        model="m",
        task=task,
        policy="p",
        steered_requests=int(steered.sum()),
        budget_steered_requests=0,
        steered_grams=emitted,
        grams_per_joule_sum=float(factor[steered].sum()),
        grams_per_joule_square_sum=float((factor[steered] ** 2).sum()),
        held_back_requests=int(held.sum()),
        joules_sum=float(joules[held].sum()),
        joules_square_sum=float((joules[held] ** 2).sum()),
        joules_cube_sum=float((joules[held] ** 3).sum()),
        embodied_grams_sum=float(embodied[held].sum()),
        embodied_grams_square_sum=float((embodied[held] ** 2).sum()),
        joules_embodied_grams_sum=float((joules * embodied)[held].sum()),
    )
    return made, emitted + float((joules * factor + embodied)[held].sum())


def population(random: Generator, held_back: int = 40) -> Population:
    """Two tasks of different length, hours of different intensity, and requests that were never eligible."""
    own = float(random.uniform(1, 2))
    strata, served, true = [], own, own
    for task, mean, count in (("sums", 20.0, 900), ("lists", 60.0, 500)):
        joules = random.gamma(6.0, mean / 6.0, count)
        embodied = joules * random.uniform(0.8, 1.2, count) * 1e-4
        factor = random.uniform(1e-5, 1e-4, count)
        steered = np.ones(count, dtype=bool)
        steered[random.choice(count, held_back, replace=False)] = False
        made, emitted = stratum(joules, embodied, factor, steered, 0.3, task)
        strata.append(made)
        served += emitted
        true += float((joules * factor + embodied).sum())
    return Population(strata, served, true)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = default_rng(1)
    runs = 1_000
    inside = 0
    errors = []
    for _ in range(runs):
        made = population(random)
        found = estimate(made.strata, made.served_grams, 0.0)
        assert found is not None
        interval = found.carbon_grams
        inside += interval.lower <= made.true_grams <= interval.upper
        errors.append(interval.value / made.true_grams - 1)
    # 0.95 ± 3 standard errors of a binomial share.
    assert abs(inside / runs - 0.95) < 3 * math.sqrt(0.95 * 0.05 / runs)
    # No bias: the mean error is within its own standard error, three times.
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(runs)


def skewed(random: Generator, sigma: float) -> Population:
    """50 held back of each task, whose energies are log-normal: at sigma 1 one in a hundred is six times the mean."""
    strata, served, true = [], 0.0, 0.0
    for task, mean, count in (("sums", 20.0, 1_000), ("lists", 60.0, 2_000)):
        joules = random.lognormal(math.log(mean), sigma, count)
        embodied = joules * random.uniform(0.8, 1.2, count) * 1e-6
        factor = random.uniform(1e-5, 1e-4, count)
        steered = np.ones(count, dtype=bool)
        steered[random.choice(count, 50, replace=False)] = False
        made, emitted = stratum(joules, embodied, factor, steered, 0.3, task)
        strata.append(made)
        served += emitted
        true += float((joules * factor + embodied).sum())
    return Population(strata, served, true)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
def test_the_interval_holds_the_truth_where_energies_are_skewed(sigma: float) -> None:
    random = default_rng(7)
    runs, below, above = 4_000, 0, 0
    for _ in range(runs):
        made = skewed(random, sigma)
        found = estimate(made.strata, made.served_grams, 0.0)
        assert found is not None
        below += made.true_grams < found.carbon_grams.lower
        above += made.true_grams > found.carbon_grams.upper
    covered = 1 - (below + above) / runs
    print(f"log-normal sigma {sigma:g}: {covered:.1%} covered, {below / runs:.1%} below, {above / runs:.1%} above")
    assert 0.92 <= covered <= 0.98


def test_skewed_energies_reach_further_up_than_down_and_even_ones_do_not() -> None:
    def reaches(joules: list[float]) -> tuple[float, float]:
        count = 100 + len(joules)
        energies = np.array([1.0] * 100 + joules)
        steered = np.arange(count) < 100
        made, emitted = stratum(energies, np.zeros(count), np.full(count, 1e-4), steered, 1.0, "sums")
        found = estimate([made], emitted, 0.0)
        assert found is not None
        carbon = found.carbon_grams
        return carbon.value - carbon.lower, carbon.upper - carbon.value

    down, up = reaches([9.0, 11.0] * 25)
    assert down == pytest.approx(up)
    down, up = reaches([9.0] * 45 + [30.0] * 5)
    assert up > 1.3 * down
    # By hand: a = 8/3 / √50 / √1.5, the last for the scatter, and t = 2.0096 put into Hall's inverse.
    assert up / down == pytest.approx(1.6736, rel=1e-4)


def test_few_held_back_requests_make_a_wide_interval_that_still_holds() -> None:
    random = default_rng(2)
    runs = 1_000
    few = [estimate(made.strata, made.served_grams, 0.0) for made in (population(random, 4) for _ in range(50))]
    many = [estimate(made.strata, made.served_grams, 0.0) for made in (population(random, 80) for _ in range(50))]

    def width(found: list[Any]) -> float:
        return float(np.mean([one.carbon_grams.upper - one.carbon_grams.lower for one in found]))

    assert width(few) > 3 * width(many)
    inside = 0
    for _ in range(runs):
        made = population(random, 4)
        found = estimate(made.strata, made.served_grams, 0.0)
        assert found is not None
        inside += found.carbon_grams.lower <= made.true_grams <= found.carbon_grams.upper
    assert inside / runs > 0.93


def test_the_saving_deducts_what_the_evaluation_emitted() -> None:
    made = population(default_rng(3))
    found = estimate(made.strata, made.served_grams, 0.0)
    charged = estimate(made.strata, made.served_grams, 0.1 * made.true_grams)
    assert found is not None
    assert charged is not None
    assert charged.carbon_grams == found.carbon_grams
    assert found.saving.value == pytest.approx(1 - made.served_grams / found.carbon_grams.value)
    assert found.saving.value - charged.saving.value == pytest.approx(0.1 * made.true_grams / found.carbon_grams.value)
    for interval in (charged.carbon_grams, charged.saving):
        assert interval.lower < interval.value < interval.upper
        assert interval.confidence == 0.95
        assert "hold-back" in interval.method
    assert found.held_back_requests == 80


def test_a_case_by_hand() -> None:
    """Two held back with 8 and 12 J; three steered at 0.1, 0.2 and 0.3 g/J; 5 g are not eligible."""
    joules = np.array([1.0, 1.0, 1.0, 8.0, 12.0])
    factor = np.array([0.1, 0.2, 0.3, 0.1, 0.1])
    steered = np.array([True, True, True, False, False])
    made, emitted = stratum(joules, np.zeros(5), factor, steered, 1.0, "sums")
    assert emitted == pytest.approx(0.6 + 2.0)
    found = estimate([made], 5.0 + emitted, 0.0)
    assert found is not None
    # 5 + 2 as they were, and 10 J at 0.6 g/J for the steered.
    assert found.carbon_grams.value == pytest.approx(13.0)
    # s² = 8, so 8 * (0.6² / 2 + 0.14) = 2.56; t of one degree of freedom at 0.975 is 12.706.
    assert found.carbon_grams.upper == pytest.approx(13.0 + 12.7062 * 1.6, rel=1e-4)
    # The steered cannot have emitted less than nothing.
    assert found.carbon_grams.lower == pytest.approx(7.0)


@pytest.mark.parametrize("held_back", [0, 1])
def test_a_stratum_with_fewer_than_two_held_back_is_left_out_on_both_sides_and_named(held_back: int) -> None:
    made = population(default_rng(4))
    covered, other = made.strata
    lacking = replace(other, held_back_requests=held_back)
    found = estimate([covered, lacking], made.served_grams, 0.3)
    without = estimate([covered], made.served_grams - other.steered_grams, 0.3)
    assert found is not None and without is not None
    for name in ("carbon_grams", "saving"):
        one, same = getattr(found, name), getattr(without, name)
        assert (one.lower, one.value, one.upper) == pytest.approx((same.lower, same.value, same.upper))
    assert (found.held_back_requests, without.uncovered) == (40, ())
    assert found.uncovered_requests == other.steered_requests == 460
    assert found.uncovered == (Uncovered("p", "lists", 460),)


def test_where_nothing_is_covered_nothing_is_said() -> None:
    made = population(default_rng(4))
    assert estimate([replace(one, held_back_requests=1) for one in made.strata], made.served_grams, 0.0) is None
    idle = replace(made.strata[1], steered_requests=0, steered_grams=0.0, held_back_requests=1)
    found = estimate([made.strata[0], idle], made.served_grams, 0.0)
    assert found is not None
    assert (found.uncovered_requests, found.uncovered) == (0, ())


def test_only_the_largest_uncovered_parts_are_named() -> None:
    made = population(default_rng(4))
    lacking = [
        replace(made.strata[1], model=model, policy=f"p{n}", steered_requests=n + 1, held_back_requests=0)
        for n in range(10)
        for model in ("a", "b")
    ]
    found = estimate([made.strata[0], *lacking], made.served_grams + 100.0, 0.0)
    assert found is not None
    assert found.uncovered_requests == 2 * sum(range(1, 11))
    # Of one policy and task, whatever the model.
    assert found.uncovered == tuple(Uncovered(f"p{n}", "lists", 2 * (n + 1)) for n in range(9, 9 - SHOWN_UNCOVERED, -1))


def test_requests_steered_by_a_spent_budget_bring_their_assumption_along() -> None:
    made = population(default_rng(4))
    plain = estimate(made.strata, made.served_grams, 0.0)
    of_budget = [made.strata[0], replace(made.strata[1], budget_steered_requests=9)]
    found = estimate(of_budget, made.served_grams, 0.0)
    assert plain is not None and found is not None
    assert found.carbon_grams.value == plain.carbon_grams.value
    for interval, other in ((found.carbon_grams, plain.carbon_grams), (found.saving, plain.saving)):
        assert BUDGET_METHOD in interval.method
        assert BUDGET_METHOD not in other.method
    # What is not covered rests on no assumption.
    of_budget[1] = replace(of_budget[1], held_back_requests=0)
    uncovered = estimate(of_budget, made.served_grams, 0.0)
    assert uncovered is not None and BUDGET_METHOD not in uncovered.saving.method


def test_without_steered_requests_the_counterfactual_is_what_happened() -> None:
    found = estimate([], 7.0, 0.7)
    assert found is not None
    assert (found.carbon_grams.lower, found.carbon_grams.value, found.carbon_grams.upper) == (7.0, 7.0, 7.0)
    assert found.saving.value == pytest.approx(-0.1)
    assert estimate([], 0.0, 0.0) is None


@given(
    st.lists(st.floats(0.1, 1e4), min_size=2, max_size=20),
    st.lists(st.floats(1e-9, 1e-2), min_size=1, max_size=20),
    st.floats(0.0, 10.0),
    st.floats(0.01, 1.0),
)
def test_an_estimate_lies_within_its_interval(
    held: list[float], factors: list[float], own: float, share: float
) -> None:
    count = len(held) + len(factors)
    joules = np.array([1.0] * len(factors) + held)
    factor = np.array([*factors, *([1e-4] * len(held))])
    steered = np.arange(count) < len(factors)
    made, emitted = stratum(joules, joules * 1e-5, factor, steered, share, "sums")
    found = estimate([made], own + emitted, 0.0)
    if found is not None:
        interval = found.carbon_grams
        assert 0 < interval.lower <= interval.value * (1 + 1e-9)
        assert interval.value <= interval.upper
        assert all(math.isfinite(x) for x in (interval.upper, found.saving.lower, found.saving.upper))
