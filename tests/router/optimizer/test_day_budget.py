"""A quality budget over a day, request by request: plans, decisions, and what the day's requests kept in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.decide import Facts, decide
from router.directives.levels import L0, SEEDED
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget
from router.optimizer.costs import Cost, CostBook, Mean, Observed
from router.optimizer.grants import Class, Day, Hour, Served
from router.optimizer.plan import Plan
from router.optimizer.problem import make_plan

DAY = datetime(2026, 1, 1, tzinfo=UTC)
MODEL, TASKS, LEVELS = "m@1", ("qa", "sums", "prose"), ("L1", "L2")
FLOOR, DIRECTIVE_FLOOR = 0.95, 0.8
POLICY = Policy(
    "p",
    mode=Mode.ON,
    floor=FLOOR,
    quality_budget=QualityBudget(DIRECTIVE_FLOOR, BudgetScope.DAY),
    directives=LEVELS,
    holdback_share=0.02,
)
PLANS_AN_HOUR = 4

Bounds = Mapping[tuple[str, str], float]
"""By task and directive."""


@dataclass
class Simulation:
    """One day of a policy. `expected` are requests an hour by task, `traffic` those that come, [hours, tasks]."""

    rng: np.random.Generator
    bounds: Bounds
    intensities: np.ndarray
    expected: np.ndarray
    traffic: np.ndarray
    joules: Mapping[tuple[str, str], float]
    served: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_hour: list[Counter[tuple[str, str]]] = field(default_factory=lambda: [Counter() for _ in range(24)])
    explained: float = 0.0
    """Of the mean's shortfall, in requests' quality: traffic that was other than expected."""
    snapshot: Snapshot = field(init=False)

    def __post_init__(self) -> None:
        self.snapshot = Snapshot({d.name: d for d in (L0, *SEEDED)}, (POLICY,), {}, Plan({}, DAY))
        self.costs = CostBook(
            {Cell(MODEL, *of): Observed(energy_joules=Mean(value, 100_000)) for of, value in self.joules.items()}
        )

    def run(self, at_hour: Callable[[int, Simulation], None] = lambda hour, simulation: None) -> None:
        for hour in range(24):
            at_hour(hour, self)
            for part in range(PLANS_AN_HOUR):
                now = DAY + timedelta(hours=hour + part / PLANS_AN_HOUR)
                self.plan(now)
                coming = self.part_of(hour, part)
                self.count_unexpected(hour, part, coming)
                for place, task in enumerate(TASKS):
                    for number in range(coming[place]):
                        key = f"{task} {hour} {part} {number} {self.rng.integers(2**62)}"
                        decision = decide(Facts("acme", task, MODEL, key, key), self.snapshot, now)
                        self.served[task, decision.directive.name] += 1
                        self.by_hour[hour][task, decision.directive.name] += 1

    def part_of(self, hour: int, part: int) -> list[int]:
        """Requests that come between two plans, by task."""
        at = self.traffic[hour] * part // PLANS_AN_HOUR
        return [int(n) for n in self.traffic[hour] * (part + 1) // PLANS_AN_HOUR - at]

    def plan(self, now: datetime) -> None:
        snapshot = self.snapshot
        in_force = {
            (cell := Cell(MODEL, *of)): QualityBound(cell, lower, 1.0, 1.0, lower, 100, "judge", "1", DAY)
            for of, lower in self.bounds.items()
        }
        snapshot = Snapshot(snapshot.directives, snapshot.policies, in_force, snapshot.plan)
        plan = make_plan(snapshot, self.costs, lambda cost: cost.energy_joules, now, None, day=self.day(now))
        self.snapshot = Snapshot(snapshot.directives, snapshot.policies, in_force, plan)

    def day(self, now: datetime) -> Day:
        hours = [Hour(1.0, float(g)) for g in self.intensities[now.hour :]]
        hours[0] = hours[0]._replace(hours=1.0 - now.minute / 60)

        def of_task(place: int, task: str) -> tuple[Class, Served]:
            today = {directive: self.served[task, directive] for directive in ("L0", *LEVELS)}
            return (MODEL, task), Served(today, float(self.expected[place]))

        served = dict(of_task(*numbered) for numbered in enumerate(TASKS))
        return Day(hours, {"p": served}, _grams)

    def count_unexpected(self, hour: int, part: int, coming: list[int]) -> None:
        """A plan that is expected to keep the floor overdraws by no more than L0 keeps beyond the floor for the
        requests that it expects afterwards. Of these some may not come, and of those before the next plan more."""
        before = self.expected / PLANS_AN_HOUR
        more = np.maximum(np.array(coming) - before, 0.0).sum()
        afterwards = 24 - hour - (part + 1) / PLANS_AN_HOUR
        gone = (self.traffic[hour] * (part + 1) // PLANS_AN_HOUR).sum()
        fewer = max(self.expected.sum() * afterwards - (self.traffic[hour:].sum() - gone), 0.0)
        self.explained = max(self.explained, fewer * (1 - FLOOR) + more * (FLOOR - DIRECTIVE_FLOOR))

    @property
    def requests(self) -> int:
        return self.served.total()

    @property
    def kept(self) -> float:
        """Mean of the bounds of the end of the day."""
        kept = sum(count * (1.0 if of[1] == "L0" else self.bounds[of]) for of, count in self.served.items())
        return kept / self.requests

    @property
    def kept_or_closed(self) -> float:
        """As `kept`; what has closed since counts as the least that it could have kept."""
        of_closed = {of: max(lower, DIRECTIVE_FLOOR) for of, lower in self.bounds.items()}
        kept = sum(count * (1.0 if of[1] == "L0" else of_closed[of]) for of, count in self.served.items())
        return kept / self.requests

    @property
    def least(self) -> float:
        return min((self.bounds[of] for of in self.served if of[1] != "L0"), default=1.0)

    @property
    def carbon(self) -> float:
        return sum(
            float(g) * count * self.joules[of]
            for g, counts in zip(self.intensities, self.by_hour, strict=True)
            for of, count in counts.items()
        )


def _grams(cost: Cost, g_per_kwh: float) -> float:
    return cost.energy_joules * g_per_kwh / 3.6e6


def drawn(seed: int, steady: bool) -> Simulation:
    """A day of random bounds, energies and intensities; each hour's requests are as expected, or from none to three
    times as many."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(20, 2000, len(TASKS))
    joules, bounds = {}, {}
    for task, of_l0 in zip(TASKS, base, strict=True):
        joules[task, "L0"] = float(of_l0)
        for level in LEVELS:
            joules[task, level] = float(of_l0 * rng.uniform(0.1, 0.95))
            bounds[task, level] = float(rng.uniform(0.75, 1.02))
    expected = rng.integers(4, 40, len(TASKS)).astype(float) * PLANS_AN_HOUR
    traffic = np.tile(expected, (24, 1)) if steady else rng.poisson(expected * rng.choice([0, 0.3, 1, 3], (24, 1)))
    return Simulation(rng, bounds, rng.uniform(20, 700, 24), expected, traffic.astype(int), joules)


NOISE = 0.0005
"""Of the mean: by what draw requests of the last plan are served."""


@pytest.mark.parametrize("seed", range(12))
def test_the_days_mean_keeps_the_floor_where_requests_come_as_expected(seed: int) -> None:
    day = drawn(seed, steady=True)
    day.run()
    assert day.kept >= FLOOR - NOISE
    assert day.least >= DIRECTIVE_FLOOR


@pytest.mark.parametrize("seed", range(12))
def test_it_falls_short_by_no_more_than_requests_that_came_otherwise_than_expected(seed: int) -> None:
    day = drawn(seed, steady=False)
    day.run()
    assert day.kept >= FLOOR - NOISE - day.explained / day.requests
    assert day.least >= DIRECTIVE_FLOOR


@pytest.mark.parametrize("seed", range(8))
def test_bounds_that_change_at_noon_change_what_is_left_of_the_budget(seed: int) -> None:
    """What was served before counts by the bounds of the afternoon, in which L0 makes up for it as far as it can."""
    day = drawn(seed, steady=True)
    kept_by_noon: list[float] = []

    def at_noon(hour: int, day: Simulation) -> None:
        if hour == 12:
            day.bounds = {of: lower + float(day.rng.uniform(-0.06, 0.06)) for of, lower in day.bounds.items()}
            kept_by_noon.append(day.kept_or_closed)

    day.run(at_noon)
    # As many come before noon as after it.
    assert day.kept_or_closed >= min(FLOOR, (kept_by_noon[0] + 1.0) / 2) - NOISE


def outdoing(lower: float, expected: float) -> Simulation:
    """`qa` keeps more than L0 and saves little, `prose` saves much; the morning is dirty. Requests come as expected."""
    joules = {(task, "L0"): 1_000.0 for task in TASKS}
    joules |= {("qa", "L1"): 900.0, ("prose", "L2"): 100.0, ("sums", "L1"): 800.0}
    bounds = {("qa", "L1"): lower, ("prose", "L2"): 0.8, ("sums", "L1"): 0.97}
    an_hour = np.array([expected, 8.0, 24.0])
    intensities = np.where(np.arange(24) < 12, 600.0, 60.0)
    traffic = np.tile(an_hour, (24, 1)).astype(int)
    return Simulation(np.random.default_rng(1), bounds, intensities, an_hour, traffic, joules)


def test_what_a_task_keeps_beyond_l0s_quality_saves_carbon_in_another() -> None:
    day, without = outdoing(1.06, 40.0), outdoing(1.0, 40.0)
    for simulation in (day, without):
        simulation.run()
        assert simulation.kept >= FLOOR - NOISE
    assert day.carbon < 0.98 * without.carbon
    assert day.served["prose", "L2"] > without.served["prose", "L2"] + 50


@pytest.mark.parametrize("others", [1, 2], ids=["as-many", "twice-as-many"])
def test_what_a_task_would_have_kept_that_stopped_at_noon_was_not_spent_before(others: int) -> None:
    """The day ends no lower than with a task that keeps just L0's quality, but for one hour's requests."""
    day, without = outdoing(1.06, 40.0), outdoing(1.0, 40.0)
    for simulation in (day, without):
        simulation.traffic[12:] *= np.array([0, others, others])
        simulation.run()
    assert day.kept >= without.kept - 40 * 0.06 / day.requests - NOISE
    assert day.kept >= FLOOR - NOISE - (day.explained + 40 * 0.06) / day.requests


def test_a_bound_above_l0s_quality_that_falls_at_noon_leaves_the_days_floor_kept() -> None:
    day = outdoing(1.06, 40.0)

    def fall(hour: int, day: Simulation) -> None:
        if hour == 12:
            day.bounds = {**day.bounds, ("qa", "L1"): 0.98}

    day.run(fall)
    assert day.kept >= FLOOR - NOISE


def test_what_closed_by_noon_is_taken_for_the_least_that_it_could_have_kept() -> None:
    day = drawn(4, steady=True)

    def close(hour: int, day: Simulation) -> None:
        if hour == 12:
            day.bounds = dict.fromkeys(day.bounds, DIRECTIVE_FLOOR - 0.01)

    day.run(close)
    afterwards = sum((counts for counts in day.by_hour[12:]), Counter())
    assert {directive for _, directive in afterwards} == {"L0"}
    standing = day.snapshot.plan.budgets["p"]
    assert not standing.keeps and np.isinf(standing.grams)
    # The last plan is of a quarter of an hour before midnight.
    assert standing.kept == pytest.approx(day.kept_or_closed, abs=0.002)


@pytest.mark.parametrize("seed", range(1, 5))
def test_it_costs_less_carbon_than_one_of_each_task_and_than_one_that_is_blind_to_the_grid(seed: int) -> None:
    day, by_task, blind = (drawn(seed, steady=True) for _ in range(3))
    of_task = replace(POLICY, quality_budget=QualityBudget(DIRECTIVE_FLOOR, BudgetScope.TASK))
    by_task.snapshot = replace(by_task.snapshot, policies=(of_task,))
    blind.intensities = np.full(24, 100.0)
    for simulation in (day, by_task, blind):
        simulation.run()
    blind.intensities = day.intensities
    assert day.carbon < blind.carbon < by_task.carbon
    assert by_task.kept >= FLOOR - 0.005
