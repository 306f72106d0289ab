"""An engine and a router on a port: what requests are charged and what is idle add up to all that a counter counts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from pith.engine.v1 import control_pb2
from sqlalchemy import func, select

from common.carbon.intensity import Scope, Signal, SignalKind
from common.clock import ManualClock
from router.store.idle import IdleRepository, IdleTotals
from router.store.reports import Window
from router.store.tables import ledger
from tests.integration.served_engine import Served, request_of, serving
from tests.postgres import on_both_databases
from tests.router.running import Running, ask, running

SIGNAL = Signal(SignalKind.AVERAGE, Scope.DIRECT)


class Ticking:
    """A counter that moves by 3 J at each reading, until it is stopped."""

    def __init__(self) -> None:
        self.total_joules = 1000.0
        self.step_joules = 3.0

    def joules(self) -> float:
        self.total_joules += self.step_joules
        return self.total_joules


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticking]:
    counter = Ticking()
    monkeypatch.setattr("engine.engine.find_counter", lambda device: counter)
    monkeypatch.setattr("engine.worker.IDLE_STEP_SECONDS", 0.01)
    monkeypatch.setattr("engine.service.TOTALS_SECONDS", 0.0)
    yield counter


async def idle_of(router: Running) -> IdleTotals:
    await router.router.idle.write()
    async with router.router._database.reading() as connection:
        (total,) = await IdleRepository(connection).totals(Window(), SIGNAL)
    return total


async def charged_to_requests(router: Running) -> tuple[float, float]:
    """Joules and device seconds in the ledger, evaluation's included."""
    await router.router.ledger.flush()
    async with router.router._database.reading() as connection:
        query = select(func.sum(ledger.c.energy_joules), func.sum(ledger.c.busy_seconds))
        return tuple((await connection.execute(query)).one())  # type: ignore[return-value]


async def test_a_watcher_is_told_of_time_that_goes_by_now_and_then(
    model_path: Path, counter: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = control_pb2.WatchLoadRequest(interval=Duration(nanos=50_000_000))
    async with serving(model_path) as served:
        watch = served.control.WatchLoad(often)
        loads = [await watch.read() for _ in range(4)]
        watch.cancel()
        for before, after in itertools.pairwise(loads):
            assert before.instance_id == after.instance_id
            assert before.idle_seconds_total < after.idle_seconds_total
            assert before.idle_energy_total.joules < after.idle_energy_total.joules
        # Otherwise only what changes beside it is worth a report.
        monkeypatch.setattr("engine.service.TOTALS_SECONDS", 1e9)
        watch = served.control.WatchLoad(often)
        first = await watch.read()
        while (await load_of(served)).idle_seconds_total < first.idle_seconds_total + 0.2:
            pass
        await served.inference.Generate(request_of())
        assert (await watch.read()).requests_total == 1
        watch.cancel()


async def test_metrics_tell_how_busy_the_device_was(model_path: Path, counter: Ticking) -> None:
    async with serving(model_path) as served:
        await served.inference.Generate(request_of())
        await served.until_idle()
        busy = served.sample("pith_engine_device_seconds_total", state="busy")
        idle = served.sample("pith_engine_device_seconds_total", state="idle")
        joules = served.sample("pith_engine_idle_energy_joules_total", source="MEASURED")
        load = await load_of(served)
        assert busy == load.busy_seconds_total
        assert idle and joules
        assert (0 < idle <= load.idle_seconds_total) and (0 < joules <= load.idle_energy_total.joules)


async def load_of(served: Served) -> control_pb2.Load:
    return await served.control.GetLoad(control_pb2.GetLoadRequest())


@on_both_databases
async def test_requests_and_idle_time_add_up_to_the_counter(
    model_path: Path, tmp_path: Path, database_url: str, counter: Ticking
) -> None:
    clock = ManualClock()
    async with (
        serving(model_path) as served,
        running(tmp_path, {"e1": served}, clock=clock, database_url=database_url) as router,  # type: ignore[dict-item]
        running(tmp_path / "second", {"e1": served}, clock=clock, database_url=database_url) as second,  # type: ignore[dict-item]
    ):
        for turn in range(4):
            requests = [ask(request_id=f"r{turn}-{number}", task="") for number in range(3)]
            for number, request in enumerate(requests):
                request.limits.max_output_tokens = 1 + 3 * turn + 4 * number
            requests[turn % 3].evaluation.sample_id, requests[turn % 3].evaluation.directive = f"s{turn}", "L0"
            answering = zip((router, second, router), requests, strict=True)
            await asyncio.gather(*(one.generation.Generate(request) for one, request in answering))
            await asyncio.gather(router.router.idle.write(), second.router.idle.write())
        counter.step_joules = 0.0
        await second.router.ledger.flush()
        joules, busy_seconds = await charged_to_requests(router)
        load = await load_of(served)
        # The decode loop's next look takes what passed until the counter stopped.
        while (await load_of(served)).idle_seconds_total == load.idle_seconds_total:
            pass
        load = await load_of(served)
        while (idle := await idle_of(router)).device_seconds < load.idle_seconds_total:
            await router.engines()
        assert joules + idle.energy_joules == pytest.approx(counter.total_joules - 1003.0, rel=1e-6)
        assert busy_seconds == pytest.approx(load.busy_seconds_total, rel=1e-6)
        assert idle.energy_source == "MEASURED"
        assert idle.operational_grams == pytest.approx(idle.energy_joules / 3.6e6 * 1.5 * 360)
        assert (await idle_of(second)).energy_joules >= idle.energy_joules
