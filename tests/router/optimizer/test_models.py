"""Directives that name a model: what their requests cost, at which grid, and when they are planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.levels import L0, SEEDED, Directive
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget
from router.optimizer.costs import Cost, CostBook, Mean, Observed
from router.optimizer.grants import Day, Hour, Served
from router.optimizer.plan import Entry, Plan
from router.optimizer.pricing import EnergyModel, Lengths, Price
from router.optimizer.problem import make_plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LARGE, TINY, OTHER = "large@1", "tiny@2", "other@3"
"""The first is the one that is asked for."""
DIRECTIVES = {
    directive.name: directive
    for directive in (
        L0,
        *SEEDED,
        Directive("tiny", model=TINY),
        Directive("tiny-brief", text="Be brief", model=TINY),
        Directive("tiny-capped", max_output_tokens=9, model=TINY),
        Directive("other", model=OTHER),
    )
}
SPOTS = {
    LARGE: SweetSpot(input_joules=1.0, output_shared_joules=8.0, output_squared_joules=0.01),
    TINY: SweetSpot(input_joules=0.2, output_shared_joules=0.5, pair_joules=0.001),
}
BATCHES = {LARGE: 4.0, TINY: 2.0}


def price(model: str, models: Collection[str] = tuple(SPOTS)) -> Price | None:
    if model not in models:
        return None
    return Price(EnergyModel(SPOTS[model], EnergySource.MEASURED, NOW, 2.1, 16, 8192, 8192), BATCHES[model])


def joules(model: str, prompt_tokens: int, output_tokens: float) -> float:
    return SPOTS[model].energy_joules(prompt_tokens, output_tokens, BATCHES[model])


def book(price_of: Callable[[str], Price | None] = price, **observed: Observed) -> CostBook:
    """Of task qa; what is observed is by directive, with `_` for `-`."""
    cells = {Cell(LARGE, "qa", name.replace("_", "-")): seen for name, seen in observed.items()}
    return CostBook(cells, price_of, DIRECTIVES.get)


def lengths(prompt_tokens: int, output_tokens: int, requests: int = 50, seconds: float = 0.0) -> Observed:
    busy = Mean(seconds, requests) if seconds else Mean()
    return Observed(Lengths.of(prompt_tokens, 0, output_tokens), requests, busy_seconds=busy)


def energy(value: float, seconds: float = 1.0, requests: int = 100_000) -> Observed:
    return Observed(energy_joules=Mean(value, requests), busy_seconds=Mean(seconds, requests))


def predicted(of: CostBook, *names: str) -> dict[str, Cost]:
    return of.predicted(LARGE, "qa", ("L0", *names))


def test_what_another_model_answers_is_priced_by_that_models_calibration() -> None:
    """The same lengths, at its own batch; L0 and what names no model stay at the price of the one asked for."""
    enough = 10**9
    of = book(L0=lengths(100, 60), L1=lengths(110, 30, enough), tiny=lengths(110, 30, enough))
    costs = predicted(of, "L1", "tiny")
    assert costs["L0"].energy_joules == pytest.approx(joules(LARGE, 100, 60))
    assert costs["L1"].energy_joules == pytest.approx(joules(LARGE, 110, 30))
    assert costs["tiny"].energy_joules == pytest.approx(joules(TINY, 110, 30))
    assert "priced at a batch of 2 " in costs["tiny"].priced_by
    assert {name: cost.model for name, cost in costs.items()} == {"L0": LARGE, "L1": LARGE, "tiny": TINY}


def test_before_it_is_served_another_model_is_taken_to_answer_at_the_length_of_l0() -> None:
    costs = predicted(book(L0=lengths(100, 60, seconds=3.0)), "tiny")
    expected = joules(TINY, 100, 60)
    assert costs["tiny"].energy_joules == pytest.approx(expected)
    assert costs["tiny"].busy_seconds == pytest.approx(3.0 * expected / joules(LARGE, 100, 60))
    start = "lengths of L0's 50 requests with 100 % of their output tokens, priced at a batch of 2 "
    assert costs["tiny"].priced_by.startswith(start)


@pytest.mark.parametrize("name", ["tiny-brief", "tiny-capped"])
def test_one_that_is_told_something_as_well_is_taken_to_answer_at_half_that_length(name: str) -> None:
    cost = predicted(book(L0=lengths(100, 60)), name)[name]
    assert (cost.energy_joules, cost.model) == (pytest.approx(joules(TINY, 100, 30)), TINY)


def test_what_was_served_beats_the_length_of_l0_the_more_of_it_there_is() -> None:
    cost = predicted(book(L0=lengths(100, 60), tiny=lengths(90, 200, requests=5)), "tiny")["tiny"]
    assert cost.energy_joules == pytest.approx((5 * joules(TINY, 90, 200) + 20 * joules(TINY, 100, 60)) / 25)


OBSERVED = Observed(Lengths.of(100, 0, 60), 100_000, Mean(40.0, 100_000), Mean(2.0, 100_000))
"""Of L0."""


def test_where_the_model_asked_for_has_no_price_none_has() -> None:
    """All directives are set beside each other by the joules that were observed."""
    others = replace(OBSERVED, energy_joules=Mean(30.0, 10**9))
    of = book(lambda model: price(model, {TINY}), L0=OBSERVED, L1=others, tiny=others)
    found = {name: (cost.energy_joules, cost.model) for name, cost in predicted(of, "L1", "tiny").items()}
    expected = {"L0": (40.0, LARGE), "L1": (30.0, LARGE), "tiny": (30.0, TINY)}
    assert found == {name: (pytest.approx(value, rel=1e-4), model) for name, (value, model) in expected.items()}


def test_a_directive_whose_own_model_has_no_price_is_to_l0_as_what_was_observed_of_both() -> None:
    """The others stay priced; its observed joules are three quarters of L0's."""
    others = replace(OBSERVED, energy_joules=Mean(30.0, 10**9), requests=10**9)
    of = book(lambda model: price(model, {LARGE}), L0=OBSERVED, L1=others, tiny=others)
    costs = predicted(of, "L1", "tiny")
    priced = joules(LARGE, 100, 60)
    found = {name: (cost.energy_joules, cost.model) for name, cost in costs.items()}
    expected = {"L0": (priced, LARGE), "L1": (priced, LARGE), "tiny": (0.75 * priced, TINY)}
    assert found == {name: (pytest.approx(value, rel=1e-4), model) for name, (value, model) in expected.items()}
    assert ["priced at a batch" in costs[name].priced_by for name in ("L0", "L1", "tiny")] == [True, True, False]


@pytest.mark.parametrize(("of_l0", "of_tiny"), [(Mean(), Mean(30.0, 10**9)), (Mean(40.0, 9), Mean())])
def test_without_joules_of_both_it_is_taken_for_half_of_l0s_energy(of_l0: Mean, of_tiny: Mean) -> None:
    seen = replace(OBSERVED, energy_joules=of_l0)
    of = book(lambda model: price(model, {LARGE}), L0=seen, tiny=replace(OBSERVED, energy_joules=of_tiny))
    cost = predicted(of, "tiny")["tiny"]
    assert (cost.energy_joules, cost.model) == (pytest.approx(0.5 * joules(LARGE, 100, 60)), TINY)
    assert predicted(book(lambda model: price(model, {LARGE}), tiny=seen), "tiny") == {}, "nor without L0"


def test_few_observed_joules_are_drawn_to_half_of_l0s_energy() -> None:
    seen = replace(OBSERVED, energy_joules=Mean(30.0, 5))
    cost = predicted(book(lambda model: price(model, {LARGE}), L0=OBSERVED, tiny=seen), "tiny")["tiny"]
    assert cost.energy_joules == pytest.approx((5 * 0.75 + 20 * 0.5) / 25 * joules(LARGE, 100, 60))


def test_a_model_without_a_price_takes_none_from_the_others() -> None:
    seen = Observed(Lengths.of(100, 0, 60), 5, Mean(9e9, 5))
    for names in (("L1", "tiny"), ("L1", "other"), ("L1", "tiny", "other")):
        costs = predicted(book(L0=seen), *names)
        assert costs["L0"].energy_joules == pytest.approx(joules(LARGE, 100, 60))
        assert costs["L1"].energy_joules == predicted(book(L0=seen), "L1")["L1"].energy_joules


@pytest.mark.parametrize("accepting", [(), (TINY,), (OTHER,)])
def test_for_a_model_that_only_callers_have_engines_of_they_say_which_others_they_have(
    accepting: Collection[str],
) -> None:
    assert dict(entry(plan(bound("tiny", 0.96), accepting=accepting)).shares) == {"tiny": pytest.approx(1.0)}


def test_without_a_price_another_model_is_taken_for_half_of_l0s_energy() -> None:
    cost = predicted(book(lambda _: None, L0=energy(100.0, 10.0, requests=5)), "tiny")["tiny"]
    assert (cost.energy_joules, cost.busy_seconds, cost.model) == (50.0, 5.0, TINY)
    assert cost.priced_by == "50 % of the mean energy of L0's 5 requests"


def test_without_l0_only_what_was_served_is_known_and_by_which_model() -> None:
    costs = predicted(book(tiny=lengths(10, 10)), "L1", "tiny", "tiny-brief")
    assert {name: cost.model for name, cost in costs.items()} == {"tiny": TINY}
    assert costs["tiny"].energy_joules == pytest.approx(joules(TINY, 10, 10))


def test_a_directive_that_names_another_model_by_now_is_priced_by_that_one() -> None:
    """And by the one asked for once it is gone."""
    known = dict(DIRECTIVES)
    of = CostBook({Cell(LARGE, "qa", "L0"): lengths(100, 60)}, price, known.get)
    assert predicted(of, "L1")["L1"].model == LARGE
    known["L1"] = replace(known["L1"], model=TINY)
    assert predicted(of, "L1")["L1"].model == TINY
    del known["L1"]
    assert predicted(of, "L1")["L1"].model == LARGE


ALONE = Policy("p", "", "", Mode.ON, floor=0.95, directives=("L1", "L2", "tiny"))
BY_TASK = replace(ALONE, quality_budget=QualityBudget(0.8))
OVER_DAY = replace(ALONE, quality_budget=QualityBudget(0.8, BudgetScope.DAY))
JOULES = {"L0": 1_000.0, "L1": 600.0, "tiny": 400.0}


def bound(directive: str, lower: float, task: str = "qa") -> QualityBound:
    """Of the model that is asked for."""
    return QualityBound(Cell(LARGE, task, directive), lower, 1.1, 1.0, lower, 100, "judge", "1", NOW)


def grams_by(grids: Mapping[str, float]) -> Callable[[Cost], float]:
    """At 100 gCO2eq/kWh where a model's grid is not named."""
    return lambda cost: cost.energy_joules * grids.get(cost.model, 100.0)


def plan(
    *bounds: QualityBound,
    policy: Policy = ALONE,
    accepting: Collection[str] = (LARGE, TINY),
    grids: Mapping[str, float] | None = None,
    joules_of: Mapping[str, Mapping[str, float]] | None = None,
    day: Day | None = None,
) -> Plan:
    cells = {
        Cell(LARGE, task, name): energy(value)
        for task, by_name in (joules_of or {"qa": JOULES}).items()
        for name, value in by_name.items()
    }
    costs = CostBook(cells, directive_of=DIRECTIVES.get)
    snapshot = Snapshot(DIRECTIVES, (policy,), {b.cell: b for b in bounds}, Plan({}, NOW))
    return make_plan(snapshot, costs, grams_by(grids or {}), NOW, 100.0, day=day, accepting=accepting)


def entry(made: Plan, task: str = "qa") -> Entry:
    return made.entry("p", LARGE, task)


def mean(entry: Entry, values: Mapping[str, float]) -> float:
    return sum(share * values[name] for name, share in entry.shares)


def test_another_model_is_planned_where_it_emits_least_and_its_bound_clears_the_floor() -> None:
    assert dict(entry(plan(bound("L1", 0.97), bound("tiny", 0.96))).shares) == {"tiny": pytest.approx(1.0)}
    assert dict(entry(plan(bound("L1", 0.97), bound("tiny", 0.94))).shares) == {"L1": pytest.approx(1.0)}
    dear = {"qa": {**JOULES, "tiny": 700.0}}
    made = plan(bound("L1", 0.97), bound("tiny", 0.96), joules_of=dear)
    assert dict(entry(made).shares) == {"L1": pytest.approx(1.0)}


@pytest.mark.parametrize("accepting", [(LARGE,), (LARGE, "tiny@1"), (LARGE, OTHER)])
def test_one_that_accepts_no_requests_is_left_out_and_others_are_not(accepting: Collection[str]) -> None:
    made = entry(plan(bound("L1", 0.97), bound("tiny", 0.96), accepting=accepting))
    assert dict(made.shares) == {"L1": pytest.approx(1.0)}
    assert made.by_carbon[0] == "L2", "by the published share of L0's energy"
    assert set(made.by_carbon) == {"L0", *ALONE.directives}, "the order holds what is closed as well"
    assert dict(entry(plan(bound("tiny", 0.96), accepting=accepting)).shares) == {"L0": pytest.approx(1.0)}


def test_one_below_the_floor_is_mixed_with_the_model_that_was_asked_for() -> None:
    made = entry(plan(bound("tiny", 0.85), policy=BY_TASK))
    assert dict(made.shares) == {"L0": pytest.approx(2 / 3), "tiny": pytest.approx(1 / 3)}
    assert dict(entry(plan(bound("tiny", 0.85), policy=BY_TASK, accepting=(LARGE,))).shares) == {
        "L0": pytest.approx(1.0)
    }
    assert dict(entry(plan(bound("tiny", 0.79), policy=BY_TASK)).shares) == {"L0": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("grids", "planned"),
    [
        ({}, "tiny"),
        ({TINY: 160.0}, "L1"),
        ({TINY: 290.0, LARGE: 200.0}, "tiny"),
        ({TINY: 310.0, LARGE: 200.0}, "L1"),
        ({LARGE: 50.0}, "L1"),
        ({TINY: 40.0}, "tiny"),
    ],
)
def test_the_grid_that_a_models_engines_stand_in_decides_as_much_as_its_energy(
    grids: dict[str, float], planned: str
) -> None:
    made = entry(plan(bound("L1", 0.97), bound("tiny", 0.96), grids=grids))
    assert dict(made.shares) == {planned: pytest.approx(1.0)}


def test_a_dirty_grid_leaves_even_the_model_asked_for_as_the_cleanest() -> None:
    made = entry(plan(bound("tiny", 0.96), grids={TINY: 251.0}))
    assert dict(made.shares) == {"L0": pytest.approx(1.0)}
    assert made.by_carbon.index("L0") < made.by_carbon.index("tiny")
    made = entry(plan(bound("tiny", 0.96), grids={TINY: 249.0}))
    assert dict(made.shares) == {"tiny": pytest.approx(1.0)}


unit = st.floats(0.5, 1.1)
request_joules = st.floats(50.0, 2_000.0)
intensity = st.floats(5.0, 900.0)


@settings(deadline=None)
@given(
    lowers=st.tuples(unit, unit),
    of_request=st.tuples(request_joules, request_joules, request_joules),
    grids=st.tuples(intensity, intensity),
    directive_floor=st.one_of(st.none(), st.floats(0.6, 0.95)),
)
def test_allowing_another_model_never_emits_more_and_keeps_the_floor(
    lowers: tuple[float, float],
    of_request: tuple[float, float, float],
    grids: tuple[float, float],
    directive_floor: float | None,
) -> None:
    policy = replace(ALONE, quality_budget=None if directive_floor is None else QualityBudget(directive_floor))
    policy = replace(policy, directives=("L1", "tiny"))
    by_model = dict(zip((LARGE, TINY), grids, strict=True))
    energies = dict(zip(("L0", "L1", "tiny"), of_request, strict=True))
    bounds = [bound(name, lower) for name, lower in zip(("L1", "tiny"), lowers, strict=True)]
    allowed, without = (
        entry(plan(*bounds, policy=policy, accepting=accepting, grids=by_model, joules_of={"qa": energies}))
        for accepting in ((LARGE, TINY), (LARGE,))
    )
    emitted = {name: value * by_model[TINY if name == "tiny" else LARGE] for name, value in energies.items()}
    assert mean(allowed, emitted) <= mean(without, emitted) * (1 + 1e-4)
    kept = {"L0": 1.0, **dict(zip(("L1", "tiny"), lowers, strict=True))}
    for made in (allowed, without):
        assert sum(share for _, share in made.shares) == pytest.approx(1.0)
        assert mean(made, kept) >= policy.floor - 1e-6
    assert all(name != "tiny" for name, _ in without.shares)


def of_day(hours: int, rates: Mapping[str, float], served: Mapping[str, Mapping[str, int]] | None = None) -> Day:
    """So many more hours at the default's 100 gCO2eq/kWh, with so many requests an hour of each task."""
    known = {(LARGE, task): Served((served or {}).get(task, {}), rate) for task, rate in rates.items()}
    return Day([Hour(1.0, 100.0)] * hours, {"p": known}, lambda cost, g_per_kwh: cost.energy_joules * g_per_kwh)


TWO_TASKS = {"qa": {"L0": 1_000.0, "tiny": 700.0}, "sums": {"L0": 1_000.0, "L1": 500.0}}
OF_TWO = bound("tiny", 0.9), bound("L1", 0.9, "sums")


@pytest.mark.parametrize(
    ("grids", "first", "last"),
    [
        ({}, "sums", "qa"),
        ({TINY: 10.0}, "qa", "sums"),
        # In zones of their own, both models; the default's is nobody's.
        ({TINY: 40.0, LARGE: 50.0}, "sums", "qa"),
        ({TINY: 2.0, LARGE: 50.0}, "qa", "sums"),
    ],
)
def test_a_budget_over_the_day_goes_first_where_it_saves_most_grams(
    grids: dict[str, float], first: str, last: str
) -> None:
    """Two tasks of as many requests, of which the budget lets one fall to 0.9. In joules, sums save more."""
    day = of_day(1, {"qa": 10.0, "sums": 10.0})
    made = plan(*OF_TWO, policy=OVER_DAY, grids=grids, joules_of=TWO_TASKS, day=day)
    assert (entry(made, first).floor, entry(made, last).floor) == (pytest.approx(0.9), pytest.approx(1.0))
    assert dict(entry(made, last).shares) == {"L0": pytest.approx(1.0)}


def test_what_is_saved_in_a_dirtier_zone_is_no_saving() -> None:
    """Then the other task alone is left to spend on, and the budget is not spent on what emits more than L0."""
    day = of_day(1, {"qa": 10.0, "sums": 10.0})
    made = plan(*OF_TWO, policy=OVER_DAY, grids={TINY: 200.0}, joules_of=TWO_TASKS, day=day)
    assert (entry(made, "sums").floor, entry(made, "qa").floor) == (pytest.approx(0.9), pytest.approx(1.0))
    made = plan(OF_TWO[0], policy=OVER_DAY, grids={TINY: 200.0}, joules_of=TWO_TASKS, day=day)
    assert dict(entry(made).shares) == {"L0": pytest.approx(1.0)}


@pytest.mark.parametrize("away", [range(0), range(6, 12), range(12, 24)], ids=["never", "morning", "from-noon"])
@pytest.mark.parametrize("tiny_g_per_kwh", [10.0, 100.0, 400.0])
def test_the_days_floor_holds_with_another_model_in_its_budget(tiny_g_per_kwh: float, away: range) -> None:
    """Requests come as expected, and are served by the shares of each hour's plan."""
    kept = {"qa": {"L0": 1.0, "tiny": 0.85}, "sums": {"L0": 1.0, "L1": 0.9}}
    bounds = bound("tiny", 0.85), bound("L1", 0.9, "sums")
    rates, grids = {"qa": 1_000.0, "sums": 600.0}, {TINY: tiny_g_per_kwh}
    served: dict[str, Counter[str]] = {task: Counter() for task in rates}
    for hour in range(24):
        accepting = (LARGE,) if hour in away else (LARGE, TINY)
        day = of_day(24 - hour, rates, served)
        made = plan(*bounds, policy=OVER_DAY, accepting=accepting, grids=grids, joules_of=TWO_TASKS, day=day)
        for task, rate in rates.items():
            shares = dict(entry(made, task).shares)
            assert "tiny" not in shares or hour not in away
            for name, share in shares.items():
                served[task][name] += round(rate * share)
    requests = sum(counts.total() for counts in served.values())
    quality = sum(count * kept[task][name] for task, counts in served.items() for name, count in counts.items())
    assert quality / requests >= OVER_DAY.floor - 0.0005
    assert (served["qa"]["tiny"] > 0) == (tiny_g_per_kwh < 1_000 / 700 * 100), "used where it saves any grams"


def test_what_a_model_answered_that_is_away_by_now_still_counts_by_its_bound() -> None:
    """An engine that restarts takes nothing from what its answers of the morning have kept, nor from other tasks."""
    served = {"qa": {"tiny": 12_000}, "sums": {"L0": 7_200}}
    day = of_day(12, {"qa": 1_000.0, "sums": 600.0}, served)
    bounds = bound("tiny", 0.96), bound("L1", 0.9, "sums")
    there, away = (
        plan(*bounds, policy=OVER_DAY, accepting=accepting, joules_of=TWO_TASKS, day=day)
        for accepting in ((LARGE, TINY), (LARGE,))
    )
    assert dict(entry(there).shares) == {"tiny": pytest.approx(1.0)}
    assert dict(entry(away).shares) == {"L0": pytest.approx(1.0)}
    for made in (there, away):
        standing = made.budgets["p"]
        assert (standing.kept, standing.keeps) == (pytest.approx((12_000 * 0.96 + 7_200) / 19_200), True)
        assert dict(entry(made, "sums").shares) == {"L1": pytest.approx(1.0)}
