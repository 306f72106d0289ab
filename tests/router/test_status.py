"""How a router says it is: counters, grid, budgets, and what it lacks."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.common.v1 import energy_pb2
from pith.router.v1 import generation_pb2, policies_pb2, reports_pb2

from common.carbon.daily_profile import ConstantIntensity, DailyProfile
from common.carbon.intensity import Intensity, SignalKind
from router.store import database as store
from router.store.database import Database, StoreUnavailable
from tests.postgres import on_both_databases
from tests.router.fake_engine import FakeEngine, delta, finished
from tests.router.running import Running, ask, running

pb: Any = reports_pb2
PLANNED = generation_pb2.DECISION_REASON_PLANNED


async def status(router: Running) -> Any:
    return await router.reports.GetStatus(pb.GetStatusRequest())


def gauge(router: Running, name: str) -> float | None:
    return router.router.metrics.registry.get_sample_value(f"pith_router_{name}")


async def test_of_a_router_that_has_done_nothing(router: Running) -> None:
    started_at = router.clock.now()
    await router.clock.advance(90)
    found = await status(router)
    assert found.version
    assert found.started_at.ToDatetime(tzinfo=started_at.tzinfo) == started_at
    assert found.now.ToDatetime(tzinfo=started_at.tzinfo) == started_at + timedelta(seconds=90)
    assert not found.draining
    intensity = found.intensity
    assert (intensity.g_per_kwh, intensity.zone, intensity.kind) == (360, "TEST", energy_pb2.SIGNAL_KIND_AVERAGE)
    for field in ("in_flight", "requests_total", "failed_total", "output_tokens_total", "ledger_waiting"):
        assert getattr(found, field) == 0, field
    assert (found.energy_joules_total, found.carbon_grams_total, found.ledger_lost) == (0.0, 0.0, 0)
    assert (list(found.served), list(found.budgets)) == ([], [])
    assert (found.outbox_in_use, found.database_away) == (False, False)
    assert found.HasField("planned_at")


async def test_counters_are_what_callers_were_told(router: Running, engine: FakeEngine) -> None:
    await router.policy(directives=["L1"])
    await router.open()
    answers = [await router.generation.Generate(ask(f"question {number}")) for number in range(3)]
    engine.script = _fails
    for request in (ask("fails"), ask(task="x" * 999)):
        with pytest.raises(grpc.aio.AioRpcError):
            await router.generation.Generate(request)
    found = await status(router)
    assert (found.requests_total, found.failed_total, found.in_flight) == (3, 2, 0)
    assert [(s.directive, s.reason, s.requests) for s in found.served] == [("L1", PLANNED, 3)]
    assert found.output_tokens_total == sum(a.finished.usage.output_tokens for a in answers) > 0
    assert found.energy_joules_total == pytest.approx(sum(a.finished.energy.joules for a in answers))
    carbon = sum(a.finished.carbon.operational_grams + a.finished.carbon.embodied_grams for a in answers)
    assert found.carbon_grams_total == pytest.approx(carbon)


async def test_carbon_is_of_the_signal_that_is_in_force(
    router: Running, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await router.generation.Generate(ask("one"))
    in_force = DailyProfile.current

    def marginal(self: DailyProfile, now: datetime) -> Intensity:
        return replace(in_force(self, now), kind=SignalKind.MARGINAL)

    monkeypatch.setattr(DailyProfile, "current", marginal)
    found = await status(router)
    assert (found.intensity.kind, found.carbon_grams_total) == (energy_pb2.SIGNAL_KIND_MARGINAL, 0.0)
    second = await router.generation.Generate(ask("two"))
    monkeypatch.undo()
    carbon = first.finished.carbon.operational_grams + first.finished.carbon.embodied_grams
    found = await status(router)
    assert (found.intensity.kind, found.carbon_grams_total) == (energy_pb2.SIGNAL_KIND_AVERAGE, pytest.approx(carbon))
    assert found.energy_joules_total == first.finished.energy.joules + second.finished.energy.joules


async def _fails(engine: FakeEngine, request: Any, context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
    yield


async def test_requests_in_flight(router: Running, engine: FakeEngine) -> None:
    going_on = asyncio.Event()

    async def waits(engine: FakeEngine, request: Any, context: Any) -> AsyncIterator[Any]:
        yield engine.started(request)
        await going_on.wait()
        yield delta("x")
        yield finished(1, 1.0)

    engine.script = waits
    calls = [asyncio.ensure_future(router.generation.Generate(ask(str(number)))) for number in range(2)]
    while len(engine.requests) < 2:
        await status(router)
    assert (await status(router)).in_flight == 2
    going_on.set()
    await asyncio.gather(*calls)
    assert (await status(router)).in_flight == 0


@on_both_databases
async def test_budgets_and_what_is_spent_of_them(router: Running) -> None:
    budget = policies_pb2.CarbonBudget(grams_per_day=5.0, when_spent=policies_pb2.WHEN_SPENT_REFUSE)
    await router.policy(name="strict", directives=["L1"], carbon_budget=budget)
    await router.policy(name="free", tenant="other")
    answer = await router.generation.Generate(ask())
    (found,) = (await status(router)).budgets
    assert (found.policy, found.grams_per_day, found.when_spent) == ("strict", 5.0, policies_pb2.WHEN_SPENT_REFUSE)
    carbon = answer.finished.carbon
    assert found.grams_spent == pytest.approx(carbon.operational_grams + carbon.embodied_grams)
    await router.clock.advance(timedelta(days=1).total_seconds())
    assert (await status(router)).budgets[0].grams_spent == 0.0


async def test_without_an_intensity_the_rest_is_told(router: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_self: ConstantIntensity, _now: Any) -> None:
        raise OSError("the grid's operator does not answer")

    monkeypatch.setattr(ConstantIntensity, "current", fails)
    found = await status(router)
    assert not found.HasField("intensity")
    assert found.HasField("planned_at")


async def test_a_database_that_is_away_is_told_and_measured(router: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(_self: Database) -> Any:
        raise StoreUnavailable("connection refused")

    with monkeypatch.context() as away:
        away.setattr(store.Database, "reading", down)
        away.setattr(store.Database, "writing", down)
        while not (found := await status(router)).database_away:
            await router.router._keeper.refresh()
        assert gauge(router, "snapshot_stale") == 1
        await router.generation.Generate(ask())
        assert not await router.router.ledger.flush()
        found = await status(router)
        assert (found.database_away, found.outbox_in_use or found.ledger_waiting > 0) == (True, True)
    await router.router._keeper.refresh()
    assert await router.router.ledger.flush()
    found = await status(router)
    assert (found.database_away, found.outbox_in_use, found.ledger_waiting, found.ledger_lost) == (False, False, 0, 0)
    assert gauge(router, "snapshot_stale") == 0


async def test_the_plans_age_is_measured(router: Running) -> None:
    made_at = (await status(router)).planned_at
    assert gauge(router, "plan_age_seconds") == 0
    # Less than the planner's interval.
    await router.clock.advance(30)
    assert gauge(router, "plan_age_seconds") == 30
    assert (await status(router)).planned_at == made_at


async def test_a_router_that_drains_says_so(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, drain_delay_seconds=30.0) as router:
        leaving = asyncio.ensure_future(router.router.server.drain())
        while not (await status(router)).draining:
            pass
        await router.router.server.drain(grace_seconds=0)
        await leaving
