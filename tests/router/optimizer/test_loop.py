"""The planner: on its timer, after changes, and never to the harm of what is being served."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from common.carbon.accounting import CarbonSettings
from common.carbon.daily_profile import DailyProfile
from common.clock import ManualClock
from common.quality.bound import Cell, QualityBound
from router.directives.policy import Mode, Policy
from router.optimizer import loop
from router.optimizer.costs import Cost, CostBook
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


def planner_of(keeper: SnapshotKeeper, clock: ManualClock) -> Planner:
    return Planner(keeper, CostBook(), PROFILE, CARBON, clock, interval_seconds=300)


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
