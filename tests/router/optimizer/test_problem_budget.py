"""Plans of policies with a quality budget: mixes whose mean keeps the floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.levels import L0, SEEDED
from router.directives.policy import BudgetScope, LatencyObjective, Mode, Policy, QualityBudget
from router.optimizer.costs import Cost, CostBook, Mean, Observed
from router.optimizer.grants import Day, Hour, Served
from router.optimizer.latency import LatencyBook
from router.optimizer.plan import Entry, Plan
from router.optimizer.problem import make_plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "m@1"
ALONE = Policy("p", "", "", Mode.ON, floor=0.95, directives=("L1", "L2"))
BY_TASK = replace(ALONE, quality_budget=QualityBudget(0.8))
OVER_DAY = replace(ALONE, quality_budget=QualityBudget(0.8, BudgetScope.DAY))
JOULES = {"L0": 1_000.0, "L1": 600.0, "L2": 200.0}


def bound(directive: str, lower: float, task: str = "qa", tenant: str = "", upper: float = 1.1) -> QualityBound:
    cell = Cell(MODEL, task, directive, tenant)
    return QualityBound(cell, lower, upper, 1.0, lower, 100, "judge", "1", NOW)


def grams(cost: Cost, g_per_kwh: float) -> float:
    return cost.energy_joules * g_per_kwh


def plan(
    policies: tuple[Policy, ...],
    *bounds: QualityBound,
    joules_of: Mapping[str, Mapping[str, float]] | None = None,
    latencies: LatencyBook | None = None,
    day: Day | None = None,
) -> Plan:
    joules_of = {"qa": JOULES} if joules_of is None else joules_of
    costs = CostBook(
        {
            Cell(MODEL, task, name): Observed(energy_joules=Mean(joules, 100_000))
            for task, joules in joules_of.items()
            for name, joules in joules.items()
        }
    )
    known = {directive.name: directive for directive in (L0, *SEEDED)}
    snapshot = Snapshot(known, policies, {b.cell: b for b in bounds}, Plan({}, NOW))
    return make_plan(snapshot, costs, lambda cost: grams(cost, 300.0), NOW, 300.0, latencies, day)


def entry(made: Plan, task: str = "qa") -> Entry:
    return made.entry("p", MODEL, task)


def mean(entry: Entry, values: Mapping[str, float]) -> float:
    return sum(share * values[name] for name, share in entry.shares)


def today(*intensities: float, joules_by_task: Mapping[str, float] | None = None, **counts: int) -> Day:
    """Tasks of so many requests an hour; the counts are those of task qa so far."""
    per_hour = {"qa": 10.0} if joules_by_task is None else joules_by_task
    served = {(MODEL, task): Served(counts if task == "qa" else {}, rate) for task, rate in per_hour.items()}
    return Day([Hour(1.0, intensity) for intensity in intensities], {"p": served}, grams)


def test_a_directive_below_the_floor_is_mixed_with_those_above_it() -> None:
    bounds = bound("L1", 0.96), bound("L2", 0.85)
    made, without = entry(plan((BY_TASK,), *bounds)), entry(plan((ALONE,), *bounds))
    kept = {"L0": 1.0, "L1": 0.96, "L2": 0.85}
    assert dict(without.shares) == {"L1": pytest.approx(1.0)}
    assert mean(made, kept) == pytest.approx(0.95)
    assert dict(made.shares) == {"L0": pytest.approx(2 / 3), "L2": pytest.approx(1 / 3)} or "L1" in dict(made.shares)
    assert mean(made, JOULES) < mean(without, JOULES) - 30
    assert (made.floor, without.floor) == (0.95, 0.95)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.5, 1.1), min_size=2, max_size=2),
    st.lists(st.floats(100.0, 1_100.0), min_size=2, max_size=2),
    st.floats(0.7, 0.95),
)
def test_a_mix_keeps_the_floor_and_is_never_dearer_than_one_directive(
    lowers: list[float], joules: list[float], directive_floor: float
) -> None:
    bounds = [bound(name, lower) for name, lower in zip(("L1", "L2"), lowers, strict=True)]
    of = {"qa": {"L0": 1_000.0, "L1": joules[0], "L2": joules[1]}}
    policy = replace(ALONE, quality_budget=QualityBudget(directive_floor))
    mixed, alone = (entry(plan((one,), *bounds, joules_of=of)) for one in (policy, ALONE))
    kept = {"L0": 1.0, "L1": lowers[0], "L2": lowers[1]}
    assert sum(share for _, share in mixed.shares) == pytest.approx(1.0)
    assert mean(mixed, kept) >= 0.95 - 1e-6
    assert all(name == "L0" or kept[name] >= directive_floor for name, _ in mixed.shares)
    assert mean(mixed, of["qa"]) <= mean(alone, of["qa"]) + 1e-3


def test_what_is_below_the_directive_floor_is_in_no_mix() -> None:
    made = entry(plan((BY_TASK,), bound("L1", 0.96), bound("L2", 0.79)))
    assert dict(made.shares) == {"L1": pytest.approx(1.0)}


def times(**seconds: float) -> LatencyBook:
    book = LatencyBook()
    for name, value in seconds.items():
        for _ in range(20_000):
            book.observe(Cell(MODEL, "qa", name), value)
    return book


def test_a_mix_keeps_the_floor_and_a_latency_objective_at_once() -> None:
    policy = replace(BY_TASK, latency=LatencyObjective(2.0, 0.8))
    late = times(L0=9.0, L1=1.0, L2=1.0)
    kept = {"L0": 1.0, "L1": 0.96, "L2": 0.85}
    bounds = bound("L1", 0.96), bound("L2", 0.85)
    made = entry(plan((policy,), *bounds, latencies=late))
    assert mean(made, kept) >= 0.95 - 1e-6
    assert made.late_share is not None and made.late_share <= 0.2 + 1e-6
    free = entry(plan((BY_TASK,), *bounds, latencies=late))
    assert mean(free, JOULES) <= mean(made, JOULES) + 1e-6


def test_tenants_whose_own_bounds_open_the_same_but_keep_other_shares_have_entries_of_their_own() -> None:
    bounds = bound("L2", 0.85), bound("L2", 0.90, tenant="acme"), bound("L2", 0.85, tenant="beta")
    made = plan((BY_TASK,), *bounds)
    assert dict(entry(made).shares)["L2"] == pytest.approx(1 / 3)
    assert {tenant for *_, tenant in made.of_tenant} == {"acme"}
    assert dict(made.shares("p", MODEL, "qa", "acme"))["L2"] == pytest.approx(1 / 2)
    without = plan((replace(ALONE, floor=0.8),), *bounds)
    assert not without.of_tenant, "one entry where each directive clears the floor by itself"


@settings(deadline=None)
@given(
    st.lists(st.floats(0.8, 1.1), min_size=2, max_size=2),
    st.lists(st.floats(100.0, 1_100.0), min_size=2, max_size=2),
)
def test_a_policy_without_a_budget_is_planned_as_it_is_beside_none(lowers: list[float], joules: list[float]) -> None:
    bounds = [bound(name, lower) for name, lower in zip(("L1", "L2"), lowers, strict=True)]
    of = {"qa": {"L0": 1_000.0, "L1": joules[0], "L2": joules[1]}}
    beside = replace(OVER_DAY, name="other")
    by_itself = plan((ALONE,), *bounds, joules_of=of)
    served = {"other": {(MODEL, "qa"): Served({"L1": 50}, 10.0)}, "p": {(MODEL, "qa"): Served({"L1": 50}, 10.0)}}
    day = Day([Hour(1.0, 300.0)], served, grams)
    together = plan((ALONE, beside), *bounds, joules_of=of, day=day)
    assert entry(together) == entry(by_itself)
    assert set(together.budgets) == {"other"}


def test_without_the_day_a_budget_over_it_is_kept_by_each_task_at_any_time() -> None:
    bounds = bound("L1", 0.96), bound("L2", 0.85)
    made = plan((OVER_DAY,), *bounds)
    assert entry(made) == entry(plan((BY_TASK,), *bounds))
    assert not made.budgets


def test_over_a_day_quality_is_spent_in_the_dirty_hours() -> None:
    bounds = (bound("L2", 0.85),)
    dirty = plan((OVER_DAY,), *bounds, day=today(600.0, 100.0, 100.0))
    clean = plan((OVER_DAY,), *bounds, day=today(100.0, 600.0, 600.0))
    assert (entry(dirty).floor, dict(entry(dirty).shares)) == (pytest.approx(0.85), {"L2": pytest.approx(1.0)})
    assert (entry(clean).floor, dict(entry(clean).shares)) == (1.0, {"L0": 1.0})
    assert dirty.budgets["p"].keeps and dirty.budgets["p"].requests == 0


def test_over_a_day_quality_is_spent_on_the_tasks_that_save_most() -> None:
    of = {"qa": JOULES, "sums": {"L0": 20.0, "L1": 19.0, "L2": 15.0}}
    rates = {"qa": 10.0, "sums": 20.0}
    made = plan(
        (OVER_DAY,),
        bound("L2", 0.85),
        bound("L2", 0.85, task="sums"),
        joules_of=of,
        day=today(300.0, joules_by_task=rates),
    )
    assert dict(entry(made).shares) == {"L2": pytest.approx(1.0)}
    assert dict(entry(made, "sums").shares) == {"L0": pytest.approx(1.0)}


def test_a_day_that_has_lost_too_much_goes_on_at_l0() -> None:
    made = plan((OVER_DAY,), bound("L2", 0.85), day=today(300.0, L2=100, L0=10))
    assert (entry(made).floor, dict(entry(made).shares)) == (1.0, {"L0": 1.0})
    standing = made.budgets["p"]
    assert (standing.requests, standing.kept, standing.keeps) == (110, pytest.approx(95 / 110), False)


def test_where_no_energy_is_known_each_task_keeps_the_floor_by_itself() -> None:
    made = plan((OVER_DAY,), bound("L2", 0.85), joules_of={}, day=today(600.0, 100.0))
    assert entry(made).floor == 0.95
    assert dict(entry(made).shares)["L2"] == pytest.approx(1 / 3)
    assert not made.budgets


def test_tasks_that_nobody_asks_for_and_those_of_another_policy_are_granted_the_floor() -> None:
    other = replace(OVER_DAY, name="sums", task="sums")
    made = plan(
        (OVER_DAY, other),
        bound("L2", 0.85),
        bound("L2", 0.85, task="sums"),
        joules_of={"qa": JOULES, "sums": JOULES},
        day=today(600.0, 100.0),
    )
    assert entry(made).floor == pytest.approx(0.9), "what the clean hour leaves and the dirty one takes"
    assert entry(made, "sums").floor == 0.95
    assert made.entry("sums", MODEL, "sums").floor == 0.95
    assert made.entry("sums", MODEL, "qa") == Entry()


def test_a_policy_that_is_off_has_no_budget_and_one_in_shadow_has() -> None:
    off, shadow = replace(OVER_DAY, mode=Mode.OFF), replace(OVER_DAY, mode=Mode.SHADOW)
    assert not plan((off,), bound("L2", 0.85), day=today(300.0)).budgets
    assert set(plan((shadow,), bound("L2", 0.85), day=today(300.0)).budgets) == {"p"}


def test_a_tenants_entry_keeps_what_the_day_grants_by_the_tenants_own_bounds() -> None:
    made = plan((OVER_DAY,), bound("L2", 0.85), bound("L2", 0.82, tenant="acme"), day=today(300.0))
    assert entry(made).floor == pytest.approx(0.95)
    assert dict(made.shares("p", MODEL, "qa", "acme"))["L2"] == pytest.approx(0.05 / 0.18)


def test_what_was_served_counts_by_the_least_that_it_keeps_for_any_tenant() -> None:
    of_acme = bound("L2", 0.82, tenant="acme")
    made = plan((OVER_DAY,), bound("L2", 0.97), of_acme, day=today(300.0, L0=300, L2=100))
    assert made.budgets["p"].kept == pytest.approx((300 + 100 * 0.82) / 400)
    closed = replace(of_acme, lower=0.5, absolute_lower=0.5, upper=0.7)
    made = plan((OVER_DAY,), bound("L2", 0.97), closed, day=today(300.0, L0=300, L2=100))
    assert made.budgets["p"].kept == pytest.approx((300 + 100 * 0.97) / 400)


ABLE = {"L0": 10.0, "L1": 6.0, "L2": 2.0}
"""Of a task that saves next to nothing; with `qa`, whose L2 keeps 0.8."""


def beside_able(*bounds: QualityBound, policy: Policy = OVER_DAY, latencies: LatencyBook | None = None) -> Plan:
    rates = {"qa": 10.0, "able": 10.0}
    made = (bound("L2", 0.8), *bounds)
    of = {"qa": JOULES, "able": ABLE}
    return plan((policy,), *made, joules_of=of, latencies=latencies, day=today(300.0, joules_by_task=rates))


def test_what_one_task_keeps_beyond_l0s_quality_is_anothers_to_spend() -> None:
    made = beside_able(bound("L1", 1.04, "able"), bound("L2", 0.85, "able"))
    assert (entry(made, "able").floor, entry(made).floor) == (pytest.approx(1.04), pytest.approx(0.86))
    assert dict(entry(made, "able").shares) == {"L1": pytest.approx(1.0)}
    assert mean(entry(made), {"L0": 1.0, "L2": 0.8}) == pytest.approx(0.86)
    by_task = plan((BY_TASK,), bound("L1", 1.04, "able"), bound("L2", 0.85, "able"), joules_of={"able": ABLE})
    assert entry(by_task, "able").floor == 0.95


@pytest.mark.parametrize(
    ("own", "of_able"), [(1.02, 1.02), (0.97, 1.0), (0.5, 1.0), (1.3, 1.04)], ids=["less", "below", "closed", "more"]
)
def test_it_is_so_as_far_as_every_tenant_keeps_it(own: float, of_able: float) -> None:
    """For whom the directive is closed is served at L0."""
    acme = bound("L1", own, "able", "acme", upper=0.7 if own == 0.5 else 1.4)
    made = beside_able(bound("L1", 1.04, "able"), bound("L2", 0.85, "able"), acme)
    assert (entry(made, "able").floor, entry(made).floor) == (pytest.approx(of_able), pytest.approx(1.9 - of_able))
    kept = {"L0": 1.0, "L1": own, "L2": 0.85}
    shares = made.shares("p", MODEL, "able", "acme")
    assert sum(share * kept[name] for name, share in shares) >= of_able - 1e-6
    assert own != 0.5 or "L1" not in dict(shares)


def test_answers_in_time_go_before_quality_that_others_would_spend() -> None:
    book = LatencyBook()
    for name, seconds in (("L0", 1.0), ("L1", 9.0), ("L2", 1.0)):
        for task in ("qa", "able"):
            for _ in range(20_000):
                book.observe(Cell(MODEL, task, name), seconds)
    bounds = bound("L1", 1.04, "able"), bound("L2", 0.85, "able")
    in_time = replace(OVER_DAY, latency=LatencyObjective(2.0, 0.8))
    made = beside_able(*bounds, policy=in_time, latencies=book)
    assert (entry(made, "able").floor, entry(made).floor) == (pytest.approx(1.0), pytest.approx(0.9))
    late = entry(made, "able").late_share
    assert late is not None and late <= 0.2 + 1e-6
    assert entry(beside_able(*bounds, latencies=book), "able").floor == pytest.approx(1.04)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.8, 1.3), min_size=5, max_size=5),
    st.lists(st.floats(100.0, 1_500.0), min_size=4, max_size=4),
    st.integers(0, 200),
)
def test_no_more_is_asked_than_the_best_directive_keeps_and_every_tenant_has_a_mix_for_it(
    lowers: list[float], joules: list[float], lost: int
) -> None:
    kept = {"L0": 1.0, "L1": lowers[0], "L2": lowers[1]}
    bounds = [bound("L1", lowers[0]), bound("L2", lowers[1]), bound("L1", lowers[2], tenant="acme")]
    bounds += [bound("L1", lowers[3], "sums"), bound("L2", lowers[4], "sums")]
    of = {"qa": {"L0": 1_000.0, "L1": joules[0], "L2": joules[1]}}
    of["sums"] = {"L0": 500.0, "L1": joules[2], "L2": joules[3]}
    day = today(300.0, 100.0, joules_by_task={"qa": 10.0, "sums": 20.0}, L0=100, gone=lost)
    made = plan((OVER_DAY,), *bounds, joules_of=of, day=day)
    floor = entry(made).floor
    assert floor is not None and floor <= max(kept.values())
    assert mean(entry(made), kept) >= floor - 1e-6
    of_acme = made.entry("p", MODEL, "qa", "acme")
    assert of_acme.floor == pytest.approx(floor)
    assert mean(of_acme, {**kept, "L1": lowers[2]}) >= floor - 1e-6


def test_a_tenants_policy_goes_by_the_tenants_bounds() -> None:
    policy = replace(OVER_DAY, tenant="acme")
    made = plan((policy,), bound("L2", 0.85), bound("L2", 0.90, tenant="acme"), day=today(300.0))
    assert dict(entry(made).shares)["L2"] == pytest.approx(1 / 2)
