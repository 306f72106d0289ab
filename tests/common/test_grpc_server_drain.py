"""The end of a server's life: drains, and what becomes of calls and watches in flight."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.auth import current_request
from common.errors import from_rpc_error
from common.grpc_server import run_until_signalled
from tests.common.echo_server import Echo, Note, Serve, health_of


async def test_a_drain_ends_calls_in_flight_and_refuses_new_ones(serve: Serve) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    calls = 0

    async def say(request: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        entered.set()
        await release.wait()
        return Note(text="done")

    served = await serve(Echo(say), drain_seconds=30)
    in_flight = asyncio.ensure_future(served.say(Note()))
    await entered.wait()
    watcher = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
    statuses = _statuses(watcher)
    assert await anext(statuses) == health_pb2.HealthCheckResponse.SERVING

    drain = asyncio.create_task(served.server.drain())
    # The health watch ends, lest it hold the drain up.
    assert health_pb2.HealthCheckResponse.SERVING not in [status async for status in statuses]
    # The code is UNAVAILABLE, but for a call that crosses the closing of the port: gRPC cancels it, or leaves
    # it to its deadline. None is served.
    await served.failure(served.say(Note(), timeout=1))
    assert calls == 1
    assert not drain.done() and not in_flight.done()
    release.set()
    assert (await in_flight).text == "done"
    await drain


async def test_a_watch_has_no_deadline_and_a_drain_ends_it_as_unavailable(serve: Serve) -> None:
    deadlines: list[float | None] = []

    async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
        deadlines.append(current_request().deadline)  # type: ignore[union-attr]
        yield Note(text="now")
        await asyncio.Event().wait()

    served = await serve(Echo(watch=watch), default_deadline_seconds=0.01, drain_seconds=30)
    call = served.watch(Note())
    assert (await call.read()).text == "now"
    assert deadlines == [None]
    drain = asyncio.create_task(served.server.drain())
    error = from_rpc_error(await served.failure(call.read()))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await drain


async def test_a_drain_that_meets_a_watch_in_its_first_message_still_says_why(serve: Serve) -> None:
    entered = asyncio.Event()

    async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
        entered.set()
        yield Note(text="x" * (8 << 20))  # more than goes out before the client reads

    served = await serve(Echo(watch=watch), drain_seconds=3600)
    call = served.watch(Note())
    await entered.wait()
    drain = asyncio.create_task(served.server.drain())
    assert len((await call.read()).text) == 8 << 20
    error = from_rpc_error(await served.failure(call.read()))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await drain


async def test_a_drain_cancels_what_outlasts_its_grace(serve: Serve) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def say(request: Any, context: Any) -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    served = await serve(Echo(say))
    call = asyncio.ensure_future(served.say(Note()))
    await entered.wait()
    await served.server.drain(grace_seconds=0.05)
    await cancelled.wait()
    await served.failure(call)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_a_second_cuts_the_drain_short(serve: Serve, number: signal.Signals) -> None:
    entered = asyncio.Event()

    async def say(request: Any, context: Any) -> Any:
        entered.set()
        await asyncio.Event().wait()

    async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
        yield Note()
        await asyncio.Event().wait()

    served = await serve(Echo(say, watch=watch), drain_seconds=3600)
    watcher = served.watch(Note())
    await watcher.read()
    run = asyncio.create_task(run_until_signalled(served.server))
    call = asyncio.ensure_future(served.say(Note()))
    await entered.wait()
    os.kill(os.getpid(), number)
    await served.failure(watcher.read())
    assert not run.done()
    os.kill(os.getpid(), number)
    await run
    await served.failure(call)


async def test_during_the_drains_delay_health_is_not_serving_and_calls_are_still_answered(serve: Serve) -> None:
    served = await serve(Echo(), drain_delay_seconds=600)
    watcher = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
    statuses = _statuses(watcher)
    assert await anext(statuses) == health_pb2.HealthCheckResponse.SERVING
    run = asyncio.create_task(run_until_signalled(served.server))
    await served.say(Note())
    os.kill(os.getpid(), signal.SIGTERM)
    assert await anext(statuses) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await health_of(served, "pith_test.Echo") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await served.say(Note(text="late"))).text == "late"
    os.kill(os.getpid(), signal.SIGTERM)
    await run


async def _statuses(watcher: Any) -> AsyncIterator[int]:
    try:
        async for reply in watcher:
            yield reply.status
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
