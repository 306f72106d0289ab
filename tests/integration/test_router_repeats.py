"""The same request again: never two answers at once, never billed twice, over real gRPC and a real database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.router.v1 import generation_pb2, reports_pb2

from common.clock import ManualClock
from common.errors import PithError, from_rpc_error
from tests.postgres import on_both_databases
from tests.router.fake_engine import FakeEngine, answer, delta, refuse, stall
from tests.router.running import ask, running


@pytest.fixture
async def engine() -> Any:
    engine = FakeEngine()
    await engine.start()
    yield engine
    await engine.stop()


async def refused(call: Any) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


@on_both_databases
async def test_a_kept_answer_is_repeated_and_billed_once(tmp_path: Path, database_url: str, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as router:
        first = await router.generation.Generate(ask(request_id="r1"))
        again = await router.generation.Generate(ask(request_id="r1"))
        assert again.started.replayed and not first.started.replayed
        again.started.replayed = False
        assert again == first
        assert len(engine.requests) == 1
        assert (await router.report()).total.requests == 1


async def test_a_kept_answer_streams_as_one_delta_with_all_its_tokens(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = answer("ab", "", "cde")
    async with running(tmp_path, {"e1": engine}) as router:
        live = [message async for message in router.generation.StreamGenerate(ask(request_id="r1"))]
        kept = [message async for message in router.generation.StreamGenerate(ask(request_id="r1"))]
        assert [message.WhichOneof("event") for message in kept] == ["started", "delta", "finished"]
        assert kept[0].started.replayed
        assert (kept[1].delta.text, list(kept[1].delta.token_ids)) == ("abcde", [0, 1, 2, 3, 4])
        assert kept[2] == live[-1]


async def test_an_answer_without_text_is_repeated_too(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = answer()
    async with running(tmp_path, {"e1": engine}) as router:
        for _ in range(2):
            reply = await router.generation.Generate(ask(request_id="r1"))
            assert reply.text == ""
        assert reply.started.replayed


async def test_while_in_flight_it_is_aborted(tmp_path: Path, engine: FakeEngine) -> None:
    go = asyncio.Event()
    engine.script = stall("started", delta("x"), until=go)
    async with running(tmp_path, {"e1": engine}) as router:
        stream = aiter(router.generation.StreamGenerate(ask(request_id="r1")))
        await anext(stream)
        error = await refused(router.generation.Generate(ask(request_id="r1")))
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "REQUEST_IN_FLIGHT")
        other = router.generation.StreamGenerate(ask(request_id="r1", tenant="other"))
        assert (await other.read()).HasField("started"), "ids belong to their tenant"
        go.set()
        assert [m.WhichOneof("event") async for m in stream][-1] == "finished"
        assert (await router.generation.Generate(ask(request_id="r1"))).started.replayed
        other.cancel()


async def test_after_the_answer_has_expired_it_exists_already(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, answer_keep_seconds=60) as router:
        await router.generation.Generate(ask(request_id="r1"))
        await router.clock.advance(60)
        error = await refused(router.generation.Generate(ask(request_id="r1")))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")
        assert len(engine.requests) == 1


@on_both_databases
async def test_a_router_that_starts_knows_what_was_answered_before(
    tmp_path: Path, database_url: str, engine: FakeEngine
) -> None:
    clock = ManualClock()
    async with running(tmp_path, {"e1": engine}, database_url=database_url, clock=clock) as router:
        await router.generation.Generate(ask(request_id="r1"))
        await router.generation.Generate(ask())
    await clock.advance(3600)
    async with running(tmp_path, {"e1": engine}, database_url=database_url, clock=clock) as router:
        error = await refused(router.generation.Generate(ask(request_id="r1")))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")
        assert (await router.report()).total.requests == 2


@on_both_databases
async def test_a_failed_request_frees_its_id(tmp_path: Path, database_url: str, engine: FakeEngine) -> None:
    engine.script = refuse(grpc.StatusCode.UNAVAILABLE, after=("started", delta("x")))
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as router:
        error = await refused(router.generation.Generate(ask(request_id="r1")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
        engine.script = answer("well")
        reply = await router.generation.Generate(ask(request_id="r1"))
        assert reply.text == "well" and not reply.started.replayed
        # What was broken off took tokens too, though nobody knows what energy; the whole answer has the id.
        total = (await router.report()).total
        assert (total.requests, total.requests_without_energy) == (2, 1)
        await router.generation.RateAnswer(generation_pb2.RateAnswerRequest(request_id="r1", tenant="acme", rating=1))


async def test_a_cancelled_request_frees_its_id_and_stops_the_engine(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = stall("started", delta("x"))
    async with running(tmp_path, {"e1": engine}) as router:
        stream = router.generation.StreamGenerate(ask(request_id="r1"))
        await stream.read()
        stream.cancel()
        await engine.cancelled.wait()
        engine.script = answer("well")
        while True:  # the router hears of the cancel in a turn of its own
            try:
                reply = await router.generation.Generate(ask(request_id="r1"))
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.ABORTED
        assert reply.text == "well"
        rows = (await router.report(reports_pb2.DIMENSION_ENGINE)).rows
        assert [(row.engine, row.requests, row.requests_without_energy) for row in rows] == [("e1", 2, 1)]


async def test_a_whole_answer_without_its_end_is_billed_all_the_same(tmp_path: Path, engine: FakeEngine) -> None:
    """Who reads all and hangs up before the end pays what is known: the tokens."""
    engine.script = stall("started", delta("x"), delta("y"))
    async with running(tmp_path, {"e1": engine}) as router:
        stream = router.generation.StreamGenerate(ask(request_id="r1"))
        for _ in range(3):
            await stream.read()
        stream.cancel()
        await engine.cancelled.wait()
        while not (total := (await router.report()).total).requests:
            pass
        assert (total.requests, total.output_tokens, total.requests_without_energy) == (1, 2, 1)
        assert total.prompt_tokens > 0


async def test_an_id_that_is_free_again_is_another_request(tmp_path: Path, engine: FakeEngine) -> None:
    """A client that counts from one each day is billed each day."""
    async with running(tmp_path, {"e1": engine}) as router:
        for _ in range(3):
            await router.generation.Generate(ask(request_id="1"))
            await router.router.ledger.flush()
            await router.clock.advance(24 * 3600)
        assert (await router.report()).total.requests == 3


async def test_a_unary_callers_cancel_stops_the_engine(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = stall()  # An answer that has begun is billed for what it took; none had, here.
    async with running(tmp_path, {"e1": engine}) as router:
        call = router.generation.Generate(ask())
        waiting = asyncio.ensure_future(call)
        await engine.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await engine.cancelled.wait()
        assert (await router.report()).total.requests == 0


async def test_requests_without_an_id_are_each_answered(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}) as router:
        replies = [await router.generation.Generate(ask()) for _ in range(2)]
        ids = {reply.started.request_id for reply in replies}
        assert len(ids) == 2 and "" not in ids
        assert (await router.report()).total.requests == 2


async def test_an_expired_deadline_ends_it_everywhere(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = stall("started", delta("x"))
    async with running(tmp_path, {"e1": engine}, default_deadline_seconds=0.3) as router:
        mine = await refused(router.generation.Generate(ask(request_id="r1"), timeout=0.2))
        assert mine.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await engine.cancelled.wait()
        engine.cancelled.clear()
        routers = await refused(router.generation.Generate(ask(request_id="r2")))
        assert (routers.code, routers.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
        await engine.cancelled.wait()
        # Broken off; what it took is not known, but for the tokens.
        total = (await router.report()).total
        assert total.requests == total.requests_without_energy == 2
