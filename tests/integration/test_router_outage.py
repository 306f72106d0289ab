"""What a router does without its database, without engines, and when it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pith.router.v1 import reports_pb2

from common.clock import ManualClock
from common.errors import PithError, from_rpc_error
from router.store.database import Database, StoreUnavailable
from tests.postgres import on_both_databases
from tests.router.fake_engine import FakeEngine, answer, delta, refuse, stall
from tests.router.running import Running, ask, running


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine
    await engine.stop()


async def refused(call: Any) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


def outbox_lines(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("outbox.*.jsonl"))


class Outage:
    """Takes the database away from all routers of this process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def begin(self) -> None:
        def away(_: Database) -> None:
            raise StoreUnavailable("scripted")

        self._patch.setattr(Database, "writing", away)
        self._patch.setattr(Database, "reading", away)

    def end(self) -> None:
        self._patch.undo()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


@on_both_databases
async def test_requests_go_on_without_the_database_and_are_billed_once_it_is_back(
    tmp_path: Path, database_url: str, engine: FakeEngine, outage: Outage
) -> None:
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as router:
        await router.policy(sample_share=1.0, grader="exact")
        await router.open("L1")
        outage.begin()
        replies = [await router.generation.Generate(ask(request_id=str(i), reference="x")) for i in range(5)]
        assert {reply.started.decision.directive for reply in replies} == {"L1"}, "the last snapshot stays in force"
        assert not await router.router.ledger.flush()
        assert outbox_lines(tmp_path) == 5
        again = await router.generation.Generate(ask(request_id="0"))
        assert again.started.replayed
        outage.end()
        report = await router.report()
        assert (report.total.requests, report.total.output_tokens) == (5, 10)
        assert outbox_lines(tmp_path) == 0


@on_both_databases
async def test_what_a_stopping_router_could_not_write_the_next_one_does(
    tmp_path: Path, database_url: str, engine: FakeEngine, outage: Outage
) -> None:
    clock = ManualClock()
    async with running(tmp_path, {"e1": engine}, database_url=database_url, clock=clock) as router:
        outage.begin()
        await router.generation.Generate(ask(request_id="r1"))
    assert outbox_lines(tmp_path) == 1
    outage.end()
    async with running(tmp_path, {"e1": engine}, database_url=database_url, clock=clock) as router:
        assert (await router.report()).total.requests == 1
    assert outbox_lines(tmp_path) == 0


async def test_a_router_serves_before_any_engine_does(tmp_path: Path) -> None:
    late = FakeEngine()
    await late.start()
    await late.stop()
    async with running(tmp_path, {"late": late}, ready=False) as router:
        health = health_pb2_grpc.HealthStub(router.channel)
        reply = await health.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        error = await refused(router.generation.Generate(ask(request_id="r1")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
        assert error.retry_after_seconds
        (engine,) = await router.engines()
        assert (engine.name, engine.state) == ("late", reports_pb2.ENGINE_STATE_UNREACHABLE)
        await late.start()
        await router.until_ready(1)
        assert (await router.generation.Generate(ask(request_id="r1"))).text == "Hello, world."
    await late.stop()


async def test_a_router_without_engines_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, {}) as router:
        error = await refused(router.generation.Generate(ask()))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")


async def test_another_engine_takes_over_and_the_ledger_names_it(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = refuse(grpc.StatusCode.UNAVAILABLE)
    other = FakeEngine(answer("yes"))
    await other.start()
    async with running(tmp_path, {"a": engine, "b": other}) as router:
        reply = await router.generation.Generate(ask())
        assert (reply.text, reply.started.engine) == ("yes", "b")
        assert (await router.report()).total.requests == 1
    await other.stop()


async def test_all_engines_full_is_said_with_when_to_come_back(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_seconds=2.5)
    async with running(tmp_path, {"e1": engine}) as router:
        error = await refused(router.generation.Generate(ask()))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_after_seconds == 2.5


async def test_an_engine_lost_within_a_stream_ends_it_and_its_tokens_are_told_apart(
    tmp_path: Path, engine: FakeEngine
) -> None:
    engine.script = stall("started", delta("Hel"))
    async with running(tmp_path, {"e1": engine}) as router:
        stream = aiter(router.generation.StreamGenerate(ask()))
        assert (await anext(stream)).HasField("started")
        assert (await anext(stream)).delta.text == "Hel"
        await engine.stop()
        error = await refused(anext(stream))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
        total = (await router.report()).total
        assert (total.requests, total.requests_without_energy) == (1, 1)


@on_both_databases
async def test_a_drain_lets_answers_end_and_writes_them_down(
    tmp_path: Path, database_url: str, engine: FakeEngine
) -> None:
    go = asyncio.Event()
    engine.script = stall("started", delta("x"), until=go)
    clock = ManualClock()
    async with running(tmp_path, {"e1": engine}, database_url=database_url, clock=clock) as router:
        health = health_pb2_grpc.HealthStub(router.channel)
        watch = aiter(health.Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        stream = aiter(router.generation.StreamGenerate(ask()))
        await anext(stream)
        drain = asyncio.create_task(router.router.server.drain())
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        go.set()
        rest = [message async for message in stream]
        assert rest[-1].HasField("finished")
        await drain
    async with running(tmp_path, {}, database_url=database_url, clock=clock) as after:
        assert (await after.report()).total.requests == 1


async def test_metrics_count_what_was_served(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}) as router:
        await router.policy()
        await router.open("L1")
        await router.generation.Generate(ask())
        values = samples_of(router)
        assert values["pith_router_decisions_requests_total", ("L1", "planned")] == 1
        assert values["pith_router_served_tokens_total", ("output", "serving")] == 2
        assert values["pith_router_energy_joules_total", ("serving",)] == 2
        of_carbon = ("operational", "serving", "average, direct")
        assert values["pith_router_carbon_grams_total", of_carbon] == pytest.approx(0.0003)
        assert values["pith_router_engines_ready", ()] == 1
        await router.report()
        assert samples_of(router)["pith_router_ledger_backlog_records", ()] == 0


def samples_of(router: Running) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in router.router.metrics.registry.collect()
        for sample in family.samples
    }
