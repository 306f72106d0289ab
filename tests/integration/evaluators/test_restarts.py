"""Evaluator, router or database end in the middle of an evaluation: no reported score is lost, and none counts twice.

What is killed is a real process, and the PostgreSQL that stops is a real one, stopped as if it had crashed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from pith.evaluator.v1 import evaluation_pb2
from pith.router.v1 import reports_pb2, reports_pb2_grpc

from common.clock import ManualClock
from common.errors import PithError
from tests.integration.evaluators.evaluating import (
    BATCH,
    LEASE_SECONDS,
    Arithmetic,
    Evaluator,
    create_policy,
    evaluator,
    evaluator_process,
    once_each,
    rebuilt,
    scored,
    serve,
    until_waiting,
)
from tests.integration.processes import ServiceProcess, listening
from tests.postgres import PostgresServer, PostgresUnavailableError, on_both_databases, postgres_server, unavailable
from tests.router.fake_engine import FakeEngine
from tests.router.running import running

COUNT = 40
DEADLINE_SECONDS = 60.0
FOREVER = 100
"""Tries, where what is away comes back."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Of what another process does; looks seldom, since that needs the processor more."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def evaluate(stub: Any) -> str:
    """Asks a process for an evaluation, and says how it ended."""
    call = stub.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=DEADLINE_SECONDS)
    return [progress.event async for progress in call][-1]


@on_both_databases
async def test_an_evaluator_is_killed_in_the_middle_of_a_batch(
    tmp_path: Path, engine: FakeEngine, arithmetic: Arithmetic, database_url: str
) -> None:
    """The batches that it has reported stay; that in its hand comes back when its lease ends, and is scored then."""
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as router:
        await create_policy(router.channel)
        await serve([router.channel], COUNT)
        async with evaluator_process(router.address) as (service, stub):
            call = stub.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=DEADLINE_SECONDS)
            async for progress in call:
                # Told once a batch has been reported.
                if progress.samples_done >= 2 * BATCH:
                    arithmetic.held = True
                    break
            await arithmetic.until_waiting(1)
            service.process.kill()
            await service.process.wait()
        before = await scored(router.channel)
        assert BATCH <= len(before) < COUNT and set(before.values()) == {1}
        arithmetic.held = False
        arithmetic.go.set()

        async with evaluator_process(router.address) as (_, stub):
            ended = await evaluate(stub)
            found = await scored(router.channel)
            assert before.keys() <= found.keys()
            assert once_each(found, COUNT - BATCH), ended
            await router.clock.advance(LEASE_SECONDS)
            assert await evaluate(stub) == f"done: {BATCH} samples scored, 0 not"
            found = await scored(router.channel)
            assert once_each(found, COUNT)
            reply = await stub.ListEstimates(evaluation_pb2.ListEstimatesRequest(), timeout=DEADLINE_SECONDS)
            status = await stub.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=DEADLINE_SECONDS)
        assert status.samples_scored == COUNT
        (estimate,) = [each for each in reply.estimates if each.bound.samples]
        (bound,) = await rebuilt(router.address)
        assert bound is not None
        assert (estimate.bound.lower, estimate.bound.upper, estimate.bound.samples) == (
            bound.lower,
            bound.upper,
            bound.samples,
        )


class Router:
    """A process that comes back where it was."""

    def __init__(self, folder: Path, database_url: str, engine: FakeEngine) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._settings = {
            "listen": self.address,
            "database_url": database_url,
            "outbox_path": folder / "outbox.jsonl",
            "engines": json.dumps([engine.address]),
        }
        self._stack = AsyncExitStack()
        self._service: ServiceProcess

    async def start(self) -> grpc.aio.Channel:
        """Returns a channel of its own, once the engine is found."""
        self._service = await self._stack.enter_async_context(listening("router", **self._settings))
        channel: grpc.aio.Channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(self.address))
        reports = reports_pb2_grpc.ReportsStub(channel)

        async def ready() -> bool:
            engines = (await reports.ListEngines(reports_pb2.ListEnginesRequest())).engines
            return all(engine.state == reports_pb2.ENGINE_STATE_READY for engine in engines)

        await until(ready)
        return channel

    async def kill(self) -> None:
        self._service.process.kill()
        await self.close()

    async def close(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()


@asynccontextmanager
async def trying_again(one: Evaluator) -> AsyncIterator[None]:
    """Lets an evaluator go on that waits before its next try, for as long as the block lasts."""

    async def go_on() -> None:
        while True:
            await one.try_again()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()


# What locks, and the report's statement that then waits. Others may wait too, such as the ledger, while the evaluator
# still draws samples.
LOCKS = {
    # The report has not begun to write: nothing of it is recorded.
    "before it is recorded": ("UPDATE changes SET counter = counter", "UPDATE changes"),
    # All is inserted but the bounds: the transaction is open.
    "half way": ("LOCK TABLE bounds IN SHARE MODE", "INSERT INTO bounds"),
    # It is committed, and the evaluator has not been told: the router reads its policies anew.
    "after it is recorded": ("LOCK TABLE policies IN ACCESS EXCLUSIVE MODE", "SELECT policies"),
}


@asynccontextmanager
async def locked(url: str, when: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Holds a lock until the block ends; gives what waits until a report waits for it."""
    locks, waits = LOCKS[when]
    holder = await psycopg.AsyncConnection.connect(url)
    await holder.execute(locks.encode())
    try:
        yield partial(until_waiting, url, waits)
    finally:
        # What was not committed is rolled back.
        await holder.close()


@pytest.mark.parametrize("when", LOCKS)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_router_is_killed_while_it_takes_a_report(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str, when: str
) -> None:
    router = Router(tmp_path, database_url, engine)
    stack.push_async_callback(router.close)
    channel = await router.start()
    await create_policy(channel)
    await serve([channel], COUNT)
    one = await evaluator(stack, router.address, ManualClock(), attempts=FOREVER)
    async with locked(database_url, when) as until_the_report_waits:
        evaluating = asyncio.create_task(one.evaluate())
        await until_the_report_waits()
        await router.kill()
    channel = await router.start()
    already = await scored(channel)
    assert len(already) == (BATCH if when == "after it is recorded" else 0)
    async with trying_again(one):
        events = await evaluating
    assert events[-1] == f"done: {COUNT} samples scored, 0 not"
    assert once_each(await scored(channel), COUNT)
    assert one.bounds == await rebuilt(router.address)


async def test_a_router_is_killed_while_a_report_waits_for_its_sqlite(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: the file is locked by somebody else, so that nothing of the report is recorded."""
    router = Router(tmp_path, f"sqlite:///{tmp_path}/router.db", engine)
    stack.push_async_callback(router.close)
    channel = await router.start()
    await create_policy(channel)
    await serve([channel], COUNT)
    one = await evaluator(stack, router.address, ManualClock(), attempts=FOREVER)
    report, reports, reporting = one.client.report, 0, asyncio.Event()
    holder = sqlite3.connect(tmp_path / "router.db", isolation_level=None)
    stack.callback(holder.close)

    async def on_a_locked_file(*arguments: Any) -> None:
        nonlocal reports
        reports += 1
        if reports in (1, 3):
            holder.execute("BEGIN IMMEDIATE")
            reporting.set()
        await report(*arguments)

    monkeypatch.setattr(one.client, "report", on_a_locked_file)
    evaluating = asyncio.create_task(one.evaluate())
    for recorded in (0, 2 * BATCH):
        await reporting.wait()
        reporting.clear()
        await router.kill()
        holder.execute("ROLLBACK")
        channel = await router.start()
        assert len(await scored(channel)) == recorded
        await one.try_again()
    async with trying_again(one):
        assert (await evaluating)[-1] == f"done: {COUNT} samples scored, 0 not"
    assert once_each(await scored(channel), COUNT)
    assert one.bounds == await rebuilt(router.address)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """That nobody else needs while it is away."""
    try:
        with postgres_server() as server:
            yield server
    except PostgresUnavailableError as reason:
        unavailable(reason)


async def test_the_database_crashes_before_a_report_and_is_back_before_it_is_given_up(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, arithmetic: Arithmetic, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_migrated()
    router = await stack.enter_async_context(running(tmp_path, {"e1": engine}, database_url=url))
    await create_policy(router.channel)
    await serve([router.channel], COUNT)
    one = await evaluator(stack, router.address, router.clock, attempts=FOREVER)
    async with locked(url, "half way") as until_the_report_waits:
        evaluating = asyncio.create_task(one.evaluate())
        await until_the_report_waits()
        await asyncio.to_thread(own_postgres.stop)
    await one.back_off.asleep()
    await asyncio.to_thread(own_postgres.start)
    async with trying_again(one):
        assert (await evaluating)[-1] == f"done: {COUNT} samples scored, 0 not"
    assert once_each(await scored(router.channel), COUNT)
    assert one.bounds == await rebuilt(router.address)


async def test_the_database_stays_away_until_the_evaluation_is_cut_short(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, arithmetic: Arithmetic, own_postgres: PostgresServer
) -> None:
    """What had been reported stays, and no more is in the estimates; the batch in hand comes back with its lease."""
    url = own_postgres.create_migrated()
    router = await stack.enter_async_context(running(tmp_path, {"e1": engine}, database_url=url))
    await create_policy(router.channel)
    await serve([router.channel], COUNT)
    one = await evaluator(stack, router.address, router.clock, attempts=2)
    watching = aiter(one.loop.start().progress.watch())
    await anext(watching)  # which graders are left out
    first = await anext(watching)
    assert first.samples_done == BATCH
    arithmetic.held = True
    await arithmetic.until_waiting(1)
    reported = await scored(router.channel)
    await asyncio.to_thread(own_postgres.stop)
    arithmetic.held = False
    arithmetic.go.set()
    async with trying_again(one):
        with pytest.raises(PithError) as cut_short:
            async for _ in watching:
                pass
    assert (cut_short.value.code, cut_short.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE")
    await asyncio.to_thread(own_postgres.start)
    assert await scored(router.channel) == reported and BATCH <= len(reported) < COUNT

    await one.evaluate()
    assert once_each(await scored(router.channel), COUNT - BATCH)
    await router.clock.advance(LEASE_SECONDS)
    assert (await one.evaluate())[-1] == f"done: {BATCH} samples scored, 0 not"
    assert once_each(await scored(router.channel), COUNT)
    assert one.bounds == await rebuilt(router.address)
