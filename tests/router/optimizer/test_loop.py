"""The planner: on its timer, after changes, and never to the harm of what is being served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from common.carbon.accounting import CarbonSettings
from common.carbon.daily_profile import DailyProfile
from common.clock import ManualClock
from common.quality.bound import Cell, QualityBound
from router.directives.levels import Directive
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget
from router.optimizer import loop
from router.optimizer.costs import Cost, CostBook, Mean, Observed
from router.optimizer.grants import Day, Hour, Served
from router.optimizer.loop import Planner
from router.optimizer.plan import Plan
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.policies import PolicyRepository
from router.store.quality import QualityRepository, Reporter
from router.store.revisions import Action

START = datetime(2026, 1, 1, tzinfo=UTC)
CARBON = CarbonSettings(pue=1.5, embodied_grams_total=31_536.0, lifetime_years=1.0)
PROFILE = DailyProfile("TEST", [100.0 + 10 * hour for hour in range(24)])
POLICY = Policy("p", "", "qa", Mode.ON, floor=0.95, directives=("L1",))
BOUND = QualityBound(Cell("m@1", "qa", "L1"), 0.99, 1.0, 1.0, 0.99, 100, "judge", "1", START)
OF_DAY = replace(POLICY, quality_budget=QualityBudget(0.8, BudgetScope.DAY))
COSTS = {Cell("m@1", "qa", name): Observed(energy_joules=Mean(joules, 9999)) for name, joules in (("L0", 9), ("L1", 3))}


class Days:
    """A day of which one more hour is left, twice as dirty as the present one."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.read_at: list[datetime] = []

    async def read(self, now: datetime) -> Day | None:
        self.read_at.append(now)
        if self.fault is not None:
            raise self.fault
        served = {"p": {("m@1", "qa"): Served({"L0": 50}, 100.0)}}
        return Day([Hour(1.0, 100.0), Hour(1.0, 200.0)], served, lambda cost, g: cost.energy_joules * g)


def planner_of(
    keeper: SnapshotKeeper, clock: ManualClock, days: Days | None = None, interval_seconds: float = 300
) -> Planner:
    return Planner(keeper, CostBook(COSTS), PROFILE, CARBON, clock, interval_seconds, days=days)


def put(keeper: SnapshotKeeper, policy: Policy, lower: float = 0.9) -> None:
    bound = replace(BOUND, lower=lower)
    keeper.snapshot = replace(keeper.snapshot, policies=(policy,), bounds={bound.cell: bound})


async def test_grams_are_energy_at_the_present_intensity_and_the_devices_time(
    keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    planner = planner_of(keeper, clock)
    cost = Cost(energy_joules=3.6e6, busy_seconds=10.0)
    assert planner.grams(cost) == pytest.approx(1.5 * 100 + 0.01)
    await clock.advance(3600)
    assert planner.grams(cost) == pytest.approx(1.5 * 110 + 0.01)


async def test_a_change_is_in_the_plan_when_the_refresh_returns(
    database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    planner = planner_of(keeper, clock)
    keeper.subscribe(planner.replan)
    async with database.changing() as connection:
        await PolicyRepository(connection).add(replace(POLICY, updated_at=START), Action.CREATE, "test")
        await QualityRepository(connection).add_bounds([BOUND], Reporter("test"), START)
    await keeper.refresh()
    assert dict(keeper.snapshot.plan.shares("p", "m@1", "qa")) == {"L1": pytest.approx(1.0)}


TINY = "tiny@2"


class Fleet:
    """Engines of another model, in a grid of their own."""

    def __init__(self) -> None:
        self.models = {TINY, "m@1"}
        self.grids = {TINY: 100.0}
        self.asked_in: set[int] = set()

    def accepting(self) -> Collection[str]:
        self.asked_in.add(threading.get_ident())
        return frozenset(self.models)

    def g_per_kwh(self) -> Mapping[str, float]:
        self.asked_in.add(threading.get_ident())
        return dict(self.grids)


@pytest.fixture
def tiny(keeper: SnapshotKeeper) -> SnapshotKeeper:
    """With a directive that has TINY answer, as open as L1 is."""
    bounds = {bound.cell: bound for bound in (BOUND, replace(BOUND, cell=Cell("m@1", "qa", "tiny")))}
    keeper.snapshot = replace(
        keeper.snapshot,
        directives={**keeper.snapshot.directives, "tiny": Directive("tiny", model=TINY)},
        policies=(replace(POLICY, directives=("L1", "tiny")),),
        bounds=bounds,
    )
    return keeper


def planner_of_two(keeper: SnapshotKeeper, clock: ManualClock, fleet: Fleet | None) -> Planner:
    """L0 costs 9 J, L1 3, and TINY 2."""
    known = {**COSTS, Cell("m@1", "qa", "tiny"): Observed(energy_joules=Mean(2, 9999))}
    costs = CostBook(known, directive_of=keeper.snapshot.directives.get)
    return Planner(keeper, costs, PROFILE, CARBON, clock, 300, fleet=fleet)


async def test_grams_are_at_the_grid_of_the_model_that_answers(tiny: SnapshotKeeper, clock: ManualClock) -> None:
    planner = planner_of_two(tiny, clock, fleet := Fleet())
    fleet.grids[TINY] = 30.0
    for model, g_per_kwh in ((TINY, 30), ("m@1", 100), ("", 100)):
        assert planner.grams(Cost(3.6e6, 10.0, model=model)) == pytest.approx(1.5 * g_per_kwh + 0.01)
    fleet.grids["m@1"] = 500.0
    assert planner.grams(Cost(3.6e6, 0.0, model="m@1")) == pytest.approx(1.5 * 500)
    alone = planner_of_two(tiny, clock, None)
    assert alone.grams(Cost(3.6e6, 0.0, model=TINY)) == pytest.approx(1.5 * 100)


async def test_each_plan_goes_by_the_models_that_accept_requests_and_by_their_grids(
    tiny: SnapshotKeeper, clock: ManualClock
) -> None:
    planner = planner_of_two(tiny, clock, fleet := Fleet())

    async def planned() -> dict[str, float]:
        await planner.replan()
        return dict(tiny.snapshot.plan.shares("p", "m@1", "qa"))

    assert await planned() == {"tiny": pytest.approx(1.0)}
    fleet.models.remove(TINY)
    assert await planned() == {"L1": pytest.approx(1.0)}
    fleet.models.add(TINY)
    assert await planned() == {"tiny": pytest.approx(1.0)}
    fleet.grids[TINY] = 160.0
    assert await planned() == {"L1": pytest.approx(1.0)}
    fleet.grids["m@1"] = 120.0
    assert await planned() == {"tiny": pytest.approx(1.0)}
    assert fleet.asked_in == {threading.get_ident()}, "engines change in the event loop, never while they are looked at"


async def test_without_a_fleet_callers_say_which_models_they_have(tiny: SnapshotKeeper, clock: ManualClock) -> None:
    await planner_of_two(tiny, clock, None).replan()
    assert dict(tiny.snapshot.plan.shares("p", "m@1", "qa")) == {"tiny": pytest.approx(1.0)}


async def test_budgets_over_a_day_go_by_the_grid_of_the_model_that_answers(
    tiny: SnapshotKeeper, clock: ManualClock
) -> None:
    """Both keep 0.9. What L1 saves is granted half of what is left of the day, what TINY would save in its zone not."""
    planner = Planner(
        tiny,
        CostBook(
            {**COSTS, Cell("m@1", "qa", "tiny"): Observed(energy_joules=Mean(2, 9999))},
            directive_of=tiny.snapshot.directives.get,
        ),
        PROFILE,
        CARBON,
        clock,
        300,
        days=Days(),
        fleet=(fleet := Fleet()),
    )
    bounds = {cell: replace(bound, lower=0.9) for cell, bound in tiny.snapshot.bounds.items() if cell.directive != "L1"}
    policy = replace(OF_DAY, directives=("tiny",))
    tiny.snapshot = replace(tiny.snapshot, policies=(policy,), bounds=bounds)
    await planner.replan()
    assert tiny.snapshot.plan.entry("p", "m@1", "qa").floor == pytest.approx(0.975, abs=0.002)
    fleet.grids[TINY] = 100.0 * 9 / 2 + 1
    await planner.replan()
    entry = tiny.snapshot.plan.entry("p", "m@1", "qa")
    assert (entry.floor, dict(entry.shares)) == (pytest.approx(1.0), {"L0": pytest.approx(1.0)})
    fleet.grids[TINY] = 10.0
    fleet.models.remove(TINY)
    await planner.replan()
    assert dict(tiny.snapshot.plan.shares("p", "m@1", "qa")) == {"L0": pytest.approx(1.0)}


async def test_it_plans_on_its_timer(keeper: SnapshotKeeper, clock: ManualClock) -> None:
    planner = planner_of(keeper, clock)
    planner.start()
    await clock.asleep()
    for _ in range(3):
        before = keeper.snapshot.plan
        await clock.advance(300)
        await clock.asleep()
        assert keeper.snapshot.plan is not before
        assert keeper.snapshot.plan.made_at == clock.now()
    await planner.close()


async def test_it_plans_when_asked_to_without_waiting_for_its_timer(
    keeper: SnapshotKeeper, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = planner_of(keeper, clock)
    planned = asyncio.Event()
    put_plan = keeper.put_plan

    def put(plan: Plan) -> None:
        put_plan(plan)
        planned.set()

    monkeypatch.setattr(keeper, "put_plan", put)
    planner.start()
    for _ in range(2):
        before = keeper.snapshot.plan
        planned.clear()
        planner.replan_soon()
        await planned.wait()
        assert keeper.snapshot.plan is not before
    await planner.close()


async def test_a_fault_of_the_solver_leaves_the_last_plan_in_force(
    keeper: SnapshotKeeper, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = planner_of(keeper, clock)
    await planner.replan()
    before = keeper.snapshot.plan

    def broken(*_: object) -> Plan:
        raise ValueError("floor 0.99 cannot be reached")

    monkeypatch.setattr(loop, "make_plan", broken)
    await planner.replan()
    assert keeper.snapshot.plan is before


async def test_the_event_loop_goes_on_while_it_plans(
    keeper: SnapshotKeeper, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The solver waits for something that only the event loop can do."""
    running = asyncio.get_running_loop()
    turned = asyncio.Event()

    async def turn() -> None:
        turned.set()

    def slow(*arguments: object) -> Plan:
        asyncio.run_coroutine_threadsafe(turn(), running).result(timeout=60)
        return Plan({}, clock.now(), 42.0)

    monkeypatch.setattr(loop, "make_plan", slow)
    await planner_of(keeper, clock).replan()
    assert turned.is_set() and keeper.snapshot.plan.g_per_kwh == 42.0


async def test_what_budgets_over_a_day_go_by_is_in_the_plan(keeper: SnapshotKeeper, clock: ManualClock) -> None:
    put(keeper, OF_DAY)
    await planner_of(keeper, clock).replan()
    assert keeper.snapshot.plan.entry("p", "m@1", "qa").floor == OF_DAY.floor
    assert keeper.snapshot.plan.budgets == {}
    days = Days()
    await planner_of(keeper, clock, days).replan()
    plan = keeper.snapshot.plan
    assert (plan.budgets["p"].requests, plan.budgets["p"].kept) == (50, 1.0)
    # 250 requests may lose 12.5, of which the dirtier hour has 10.
    floor = plan.entry("p", "m@1", "qa").floor
    assert floor == pytest.approx(0.975, abs=0.002)
    assert days.read_at == [clock.now()]


async def test_a_source_of_days_that_fails_keeps_no_plan_from_being_made(
    keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    put(keeper, OF_DAY)
    days = Days()
    days.fault = ZeroDivisionError()
    with capture_logs() as logs:
        await planner_of(keeper, clock, days).replan()
    errors = [log["event"] for log in logs if log["log_level"] == "error"]
    assert errors == ["quality budgets over the day are kept by each task at any time"]
    plan = keeper.snapshot.plan
    assert plan.entry("p", "m@1", "qa").floor == OF_DAY.floor
    assert dict(plan.shares("p", "m@1", "qa")) == {"L0": pytest.approx(0.5), "L1": pytest.approx(0.5)}


@asynccontextmanager
async def planning(planner: Planner) -> AsyncIterator[None]:
    planner.start()
    try:
        yield
    finally:
        await planner.close()


async def plans_at(keeper: SnapshotKeeper, clock: ManualClock, minutes: int) -> list[int]:
    """Makes the minutes pass, and tells after which there was a new plan."""
    found = []
    for minute in range(1, minutes + 1):
        await clock.asleep()
        before = keeper.snapshot.plan
        await clock.advance(60)
        await clock.asleep()
        if keeper.snapshot.plan is not before:
            found.append(minute)
    return found


async def test_each_hour_begins_with_a_plan_where_a_budget_is_over_the_day(
    keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    put(keeper, OF_DAY)
    await clock.advance(10 * 60)
    planner = planner_of(keeper, clock, days := Days(), interval_seconds=100 * 60)
    await planner.replan()
    async with planning(planner):
        # The interval begins anew with each plan.
        assert await plans_at(keeper, clock, 240) == [50, 110, 170, 230]
        put(keeper, replace(OF_DAY, quality_budget=QualityBudget(0.8)))
        assert await plans_at(keeper, clock, 100) == [90]
        # It had no budget when the wait began.
        put(keeper, OF_DAY)
        assert await plans_at(keeper, clock, 30) == [10]
    assert [made.minute for made in days.read_at] == [10, 0, 0, 0, 0, 40, 0]


class EarlyClock(ManualClock):
    """Wakes sleepers a millisecond before their time, as timers may."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds - 0.001 if seconds > 0.001 else seconds)


async def test_a_sleep_that_ends_before_the_hour_does_makes_no_plan_for_the_hour_before(
    keeper: SnapshotKeeper,
) -> None:
    put(keeper, OF_DAY)
    clock = EarlyClock()
    planner = planner_of(keeper, clock, days := Days(), interval_seconds=3 * 3600)
    await planner.replan()
    async with planning(planner):
        for _ in range(2):
            await clock.asleep()
            await clock.advance(3600)
        await clock.asleep()
    assert days.read_at == [START + timedelta(hours=hour) for hour in range(3)]


async def test_a_plan_that_fails_as_the_hour_begins_is_not_tried_again_at_once(
    keeper: SnapshotKeeper, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(keeper, OF_DAY)
    planner = planner_of(keeper, clock, days := Days(), interval_seconds=1800)
    await planner.replan()
    make_plan = loop.make_plan

    def broken_once(*_: object) -> Plan:
        monkeypatch.setattr(loop, "make_plan", make_plan)
        raise ZeroDivisionError

    async with planning(planner):
        await clock.asleep()
        await clock.advance(1800)
        await clock.asleep()
        monkeypatch.setattr(loop, "make_plan", broken_once)
        assert await plans_at(keeper, clock, 60) == [60]
    assert [made - START for made in days.read_at] == [timedelta(minutes=minutes) for minutes in (0, 30, 60, 90)]
