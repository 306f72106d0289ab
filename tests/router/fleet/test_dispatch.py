"""Calls to engines over real gRPC: relay, fail-over, loss, stall, cancel, deadline, and what the breaker counts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing

import grpc
import pytest
from pith.engine.v1 import inference_pb2
from structlog.testing import capture_logs

from common.clock import ManualClock
from common.errors import FieldViolation, PithError
from common.metrics import Metrics
from router.fleet.breaker import Breaker
from router.fleet.dispatch import Dispatcher, Event, Opened
from router.fleet.engine import Engine
from router.fleet.engines import Engines
from router.fleet.view import EngineState
from tests.router.fake_engine import FakeEngine, Script, answer, delta, finished, refuse, stall
from tests.router.fleet.conftest import FOREVER, Fleet, collect, dispatch, sticky

LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


async def test_an_answer_is_relayed_byte_for_byte_and_in_order(fleet: Fleet) -> None:
    # A field that this version does not know, and one out of order: parsing and encoding again would change both.
    odd = b"\x12\x0b\x18\x02\x0a\x02hi\x7a\x03xyz"
    assert inference_pb2.StreamGenerateResponse.FromString(odd).SerializeToString() != odd

    async def script(engine: FakeEngine, *_: object) -> object:
        yield engine.started(inference_pb2.GenerateRequest())
        yield delta("Hello")
        yield odd
        yield finished(3)

    engines = await fleet.start(FakeEngine(script))
    opened, first, second, end = await collect(engines)
    assert isinstance(opened, Opened) and opened.engine == "a" and opened.started.model == "small"
    assert (first, second) == (delta("Hello").SerializeToString(), odd)
    assert isinstance(end, inference_pb2.Finished) and end.usage.output_tokens == 3
    assert engines.views()[0].in_flight == 0


async def test_an_answer_without_text_is_an_answer(fleet: Fleet) -> None:
    engines = await fleet.start(FakeEngine(answer()))
    opened, end = await collect(engines)
    assert isinstance(opened, Opened) and isinstance(end, inference_pb2.Finished)


async def test_events_of_a_later_version_are_passed_over(fleet: Fleet) -> None:
    async def script(engine: FakeEngine, *_: object) -> object:
        yield engine.started(inference_pb2.GenerateRequest())
        yield b"\x7a\x03xyz"
        yield delta("x")
        yield b""
        yield finished()

    events = await collect(await fleet.start(FakeEngine(script)))
    assert [type(event) for event in events] == [Opened, bytes, inference_pb2.Finished]


@pytest.mark.parametrize("after", [(), ("started",)], ids=["at once", "after started"])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND]
)
async def test_another_engine_answers_where_the_first_gave_nothing(
    fleet: Fleet, code: grpc.StatusCode, after: tuple[str, ...]
) -> None:
    first, second = FakeEngine(refuse(code, after=after)), FakeEngine(answer("yes"))
    events = await collect(await fleet.start(first, second))
    assert isinstance(events[0], Opened) and events[0].engine == "b"
    assert [type(event) for event in events] == [Opened, bytes, inference_pb2.Finished]
    assert len(first.requests) == len(second.requests) == 1
    assert first.requests == second.requests


async def test_a_request_is_made_for_each_engine_that_it_is_sent_to(fleet: Fleet) -> None:
    asked: list[str] = []

    def prepare(engine: Engine, _tried: Collection[str]) -> tuple[Engine, inference_pb2.GenerateRequest]:
        asked.append(engine.identity)
        return engine, inference_pb2.GenerateRequest(text=engine.identity)

    first = FakeEngine(refuse(grpc.StatusCode.UNAVAILABLE))
    second = FakeEngine(digest="f" * 64)
    engines = await fleet.start(first, second)
    async for _ in Dispatcher(engines, FOREVER, Metrics("router")).stream("small", prepare, lambda: None, []):
        pass
    assert asked == ["small@0123456789ab", "small@ffffffffffff"]
    assert [fake.requests[0].text for fake in (first, second)] == asked


@pytest.mark.parametrize("code", LOST)
async def test_an_answer_that_no_other_engine_can_go_on_with_is_lost(fleet: Fleet, code: grpc.StatusCode) -> None:
    fake = FakeEngine(refuse(code, after=("started", delta("Hel"))))
    engines = await fleet.start(fake, make_breaker=sticky())
    events: list[Event] = []
    with pytest.raises(PithError) as lost:
        await collect(engines, into=events)
    assert (lost.value.code, lost.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
    assert lost.value.retry_after_seconds
    assert events[1:] == [delta("Hel").SerializeToString()]
    assert engines.views()[0].state is EngineState.BROKEN


@pytest.mark.parametrize("code", BROKEN)
async def test_an_answer_that_broke_its_engine_is_not_tried_at_another(fleet: Fleet, code: grpc.StatusCode) -> None:
    second = FakeEngine()
    engines = await fleet.start(
        FakeEngine(refuse(code, after=("started", delta("Hel")))), second, make_breaker=sticky()
    )
    with pytest.raises(PithError) as broken:
        await collect(engines)
    assert broken.value.code is grpc.StatusCode.INTERNAL
    assert not second.requests
    assert engines.views()[0].state is EngineState.BROKEN


async def test_an_end_without_finished_is_a_fault(fleet: Fleet) -> None:
    async def script(engine: FakeEngine, *_: object) -> object:
        yield engine.started(inference_pb2.GenerateRequest())
        yield delta("x")

    engines = await fleet.start(FakeEngine(script), make_breaker=sticky())
    with pytest.raises(PithError) as fault:
        await collect(engines)
    assert fault.value.code is grpc.StatusCode.INTERNAL
    assert engines.views()[0].state is EngineState.BROKEN


async def test_a_request_that_breaks_an_engine_is_not_tried_at_another(fleet: Fleet) -> None:
    second = FakeEngine()
    engines = await fleet.start(FakeEngine(refuse(grpc.StatusCode.INTERNAL)), second)
    with pytest.raises(PithError) as fault:
        await collect(engines)
    assert fault.value.code is grpc.StatusCode.INTERNAL
    assert "scripted" not in str(fault.value), "an engine's inner words are for the log"
    assert not second.requests


async def test_what_the_engine_says_of_the_request_reaches_the_caller(fleet: Fleet) -> None:
    said = FieldViolation("messages", "take 9,000 tokens; at most 4,096")
    second = FakeEngine()
    engines = await fleet.start(
        FakeEngine(refuse(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", violations=[said])), second
    )
    with pytest.raises(PithError) as fault:
        await collect(engines)
    assert fault.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert fault.value.violations == (said,)
    assert not second.requests


async def test_all_full_says_when_to_come_back(fleet: Fleet) -> None:
    full = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_seconds=3.0)
    engines = await fleet.start(FakeEngine(full), FakeEngine(refuse(grpc.StatusCode.UNAVAILABLE)))
    with pytest.raises(PithError) as fault:
        await collect(engines)
    assert (fault.value.code, fault.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert fault.value.retry_after_seconds == 3.0


async def test_no_engine_at_all_says_when_to_come_back() -> None:
    with pytest.raises(PithError) as fault:
        await collect(Engines({}, ManualClock()))
    assert (fault.value.code, fault.value.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
    assert fault.value.retry_after_seconds


async def test_a_stalled_engine_is_given_up_and_another_answers(fleet: Fleet) -> None:
    first, second = FakeEngine(stall()), FakeEngine(answer("yes"))
    engines = await fleet.start(first, second, make_breaker=sticky())
    answering = asyncio.create_task(collect(engines, stall_seconds=30))
    await first.asked.wait()
    await fleet.clock.advance(29)
    assert not first.cancelled.is_set() and not second.asked.is_set()
    await fleet.clock.advance(1)
    events = await answering
    assert isinstance(events[0], Opened) and events[0].engine == "b"
    await first.cancelled.wait()
    assert engines.views()[0].state is EngineState.BROKEN


async def test_a_stall_within_an_answer_ends_it(fleet: Fleet) -> None:
    fake = FakeEngine(stall("started", delta("Hel")))
    engines = await fleet.start(fake)
    stream = dispatch(engines, 30)
    async with aclosing(stream):
        await anext(stream)
        await fleet.clock.advance(20)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await fleet.clock.advance(30)
        with pytest.raises(PithError) as lost:
            await waiting
    assert lost.value.reason == "ENGINE_LOST"
    await fake.cancelled.wait()


async def test_a_request_that_waits_at_an_engine_that_makes_progress_is_no_stall(fleet: Fleet) -> None:
    go = asyncio.Event()
    fake = FakeEngine(stall("started", until=go))
    engines = await fleet.start(fake, make_breaker=sticky())
    answering = asyncio.create_task(collect(engines, stall_seconds=30))
    await fake.asked.wait()
    for tokens in range(1, 6):
        await fleet.clock.advance(20)
        await fake.report(output_tokens_total=tokens)
        await fleet.until(lambda tokens=tokens: engines.views()[0].load.output_tokens_total == tokens)
    go.set()
    events = await answering
    assert isinstance(events[-1], inference_pb2.Finished)


async def test_reports_without_progress_do_not_hide_a_stall(fleet: Fleet) -> None:
    fake = FakeEngine(stall())
    engines = await fleet.start(fake)
    answering = asyncio.create_task(collect(engines, stall_seconds=30))
    await fake.asked.wait()
    await fleet.clock.advance(20)
    await fake.report(waiting=3)
    await fleet.until(lambda: engines.views()[0].load.waiting == 3)
    await fleet.clock.advance(10)
    with pytest.raises(PithError) as lost:
        await answering
    assert lost.value.reason == "NO_ENGINE"


async def test_leaving_the_stream_cancels_the_engine(fleet: Fleet) -> None:
    fake = FakeEngine(stall("started", delta("Hel")))
    engines = await fleet.start(fake, make_breaker=sticky())
    stream = dispatch(engines)
    async with aclosing(stream):
        assert isinstance(await anext(stream), Opened)
        assert engines.views()[0].in_flight == 1
    await fake.cancelled.wait()
    assert engines.views()[0].in_flight == 0
    assert engines.views()[0].state is EngineState.READY


async def test_a_cancel_while_the_engine_is_silent_cancels_the_engine(fleet: Fleet) -> None:
    fake = FakeEngine(stall())
    engines = await fleet.start(fake, make_breaker=sticky())
    answering = asyncio.create_task(collect(engines))
    await fake.asked.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    await fake.cancelled.wait()
    assert engines.views()[0].state is EngineState.READY


async def test_the_deadline_is_carried_to_the_engine_and_is_no_fault_of_its(fleet: Fleet) -> None:
    fake = FakeEngine(stall("started", delta("Hel")))
    engines = await fleet.start(fake, make_breaker=sticky())
    with pytest.raises(PithError) as late:
        await collect(engines, timeout_seconds=0.1)
    assert (late.value.code, late.value.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
    await fake.cancelled.wait()
    assert engines.views()[0].state is EngineState.READY


async def test_no_engine_is_called_for_a_request_whose_time_is_up(fleet: Fleet) -> None:
    fake = FakeEngine()
    engines = await fleet.start(fake)
    with pytest.raises(PithError) as late:
        await collect(engines, timeout_seconds=0.0)
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not fake.requests and engines.views()[0].in_flight == 0


@pytest.mark.parametrize(
    ("script", "counted"),
    [
        (refuse(grpc.StatusCode.UNAVAILABLE), True),
        (refuse(grpc.StatusCode.INTERNAL), True),
        (refuse(grpc.StatusCode.UNKNOWN), True),
        (refuse(grpc.StatusCode.CANCELLED), True),
        (refuse(grpc.StatusCode.UNAVAILABLE, "DRAINING"), False),
        (refuse(grpc.StatusCode.INVALID_ARGUMENT), False),
        (refuse(grpc.StatusCode.RESOURCE_EXHAUSTED), False),
        (refuse(grpc.StatusCode.DEADLINE_EXCEEDED), False),
        (refuse(grpc.StatusCode.NOT_FOUND), False),
        (refuse(grpc.StatusCode.FAILED_PRECONDITION), False),
    ],
)
async def test_the_breaker_counts_the_engines_faults_and_nothing_else(
    fleet: Fleet, script: Script, counted: bool
) -> None:
    engines = await fleet.start(FakeEngine(script), make_breaker=sticky())
    with pytest.raises(PithError):
        await collect(engines)
    assert (engines.views()[0].state is EngineState.BROKEN) == counted
    assert (engines.choose("small") is None) == counted


async def test_an_engine_that_refuses_the_token_is_unreachable_until_it_takes_it(fleet: Fleet) -> None:
    closed, open_ = FakeEngine(), FakeEngine()
    engines = await fleet.start(closed, open_, make_breaker=sticky())
    closed.refusing = True
    with capture_logs() as logs:
        events = await collect(engines)
        assert isinstance(events[0], Opened) and events[0].engine == "b"
        assert engines.views()[0].state is EngineState.UNREACHABLE
        await fleet.until(lambda: "scripted" in engines.views()[0].fault)
        view = engines.views()[0]
    assert view.state is EngineState.UNREACHABLE, "though the watch that it let in goes on"
    assert "UNAUTHENTICATED" in view.fault and "PITH_ROUTER_ENGINE_TOKEN" in view.fault
    (failed,) = [line for line in logs if line["event"] == "engine failed"]
    assert (failed["log_level"], failed["engine"], failed["counted"]) == ("warning", "a", True)
    assert "UNAUTHENTICATED BAD_TOKEN" in failed["fault"] and "PITH_ROUTER_ENGINE_TOKEN" in failed["fault"]
    (told,) = [line for line in logs if line["event"] == "engine unreachable"]
    assert (told["engine"], told["address"], told["fault"]) == ("a", closed.address, failed["fault"])
    closed.refusing = False
    await fleet.until(lambda: engines.ready == 2)
    assert engines.views()[0].fault == ""


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
async def test_an_engine_that_refuses_the_token_for_requests_alone_is_left_alone(
    fleet: Fleet, code: grpc.StatusCode
) -> None:
    engines = await fleet.start(FakeEngine(refuse(code)), make_breaker=sticky(3))
    for _ in range(3):
        await fleet.until(lambda: engines.ready == 1)
        with pytest.raises(PithError) as refused:
            await collect(engines)
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
    await fleet.until(lambda: engines.views()[0].state is EngineState.BROKEN)
    assert engines.choose("small") is None


async def test_a_broken_engine_is_probed_and_taken_back(fleet: Fleet) -> None:
    now = [100.0]
    fake = FakeEngine(refuse(grpc.StatusCode.UNAVAILABLE))
    engines = await fleet.start(fake, make_breaker=lambda: Breaker(2, 5.0, lambda: now[0]))
    for _ in range(4):
        with pytest.raises(PithError) as away:
            await collect(engines)
        assert away.value.reason == "NO_ENGINE"
    assert len(fake.requests) == 2, "left alone after two faults"
    now[0] += 5
    fake.script = answer("well again")
    await collect(engines)
    assert engines.views()[0].state is EngineState.READY
