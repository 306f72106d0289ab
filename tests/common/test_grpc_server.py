"""The handler wrapper, over real connections, with a service made up for the purpose."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.auth import Authenticator, Role, current_request, note_asked
from common.config import ServiceConfig
from common.errors import FieldViolation, from_rpc_error, invalid_argument, not_found, resource_exhausted
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from tests.common.echo_server import ECHO, ROLES, SAY, Echo, Note, Serve


async def test_a_unary_call_is_answered_under_the_callers_request_id(serve: Serve) -> None:
    seen: list[str] = []

    async def say(request: Any, context: Any) -> Any:
        seen.append(current_request().request_id)  # type: ignore[union-attr]
        return Note(text=request.text.upper())

    served = await serve(Echo(say))
    call = served.say(Note(text="pith"), metadata=(("x-request-id", "r-17"),))
    assert (await call).text == "PITH"
    assert seen == ["r-17"]
    assert ("x-request-id", "r-17") in tuple(await call.trailing_metadata())


@pytest.mark.parametrize("given", [None, "two words", "x" * 129])
async def test_a_missing_or_unfit_request_id_is_replaced(serve: Serve, given: str | None) -> None:
    served = await serve(Echo())
    call = served.say(Note(), metadata=(("x-request-id", given),) if given else None)
    await call
    echoed = dict(await call.trailing_metadata())["x-request-id"]
    assert len(echoed) == 32 and echoed != given


async def test_every_field_violation_reaches_the_client(serve: Serve) -> None:
    violations = [
        FieldViolation("sampling.temperature", "is nan; must be 0 to 2"),
        FieldViolation("messages", "is empty; at least 1 is needed"),
    ]

    async def say(request: Any, context: Any) -> Any:
        raise invalid_argument(violations)

    served = await serve(Echo(say))
    failed = await served.failure(served.say(Note(), metadata=(("x-request-id", "r-1"),)))
    error = from_rpc_error(failed)
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == tuple(violations)
    assert error.reason == "INVALID_FIELDS"
    assert dict(failed.trailing_metadata())["x-request-id"] == "r-1"


async def test_more_violations_than_a_trailer_holds_still_arrive_as_invalid_argument(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        raise invalid_argument([FieldViolation(f"messages[{i}].text", "é" * 500) for i in range(1000)])

    served = await serve(Echo(say))
    error = from_rpc_error(await served.failure(served.say(Note())))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations[0].field == "messages[0].text"
    assert "999 more" in error.message


async def test_retry_delay_reaches_the_client(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        raise resource_exhausted("QUEUE_FULL", "64 requests wait", retry_after_seconds=1.5)

    served = await serve(Echo(say))
    error = from_rpc_error(await served.failure(served.say(Note())))
    assert (error.code, error.reason, error.retry_after_seconds) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 1.5,
    )  # fmt: skip


@pytest.mark.parametrize("streams", [False, True])
async def test_undecodable_bytes_are_invalid_argument_and_the_server_lives_on(serve: Serve, streams: bool) -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[Any]:
        yield Note()

    served = await serve(Echo(count=count))
    if streams:
        failed = await served.failure(served.channel.unary_stream("/pith_test.Echo/Count")(b"\xff\xff").read())
    else:
        failed = await served.failure(served.channel.unary_unary(SAY)(b"\xff\xff"))
    error = from_rpc_error(failed)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")
    assert "pith_test.Note" in error.message
    assert (await served.say(Note(text="still here"))).text == "still here"


async def test_an_unexpected_exception_tells_the_client_its_request_id_and_nothing_else(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        raise RuntimeError("password hunter2")

    served = await serve(Echo(say))
    failed = await served.failure(served.say(Note(), metadata=(("x-request-id", "r-9"),)))
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "r-9" in str(failed.details())
    assert "hunter2" not in repr(failed) and "RuntimeError" not in repr(failed)
    assert "in say" in served.log.getvalue() and "RuntimeError: (message withheld)" in served.log.getvalue()
    assert served.handled("Say", "INTERNAL") == 1


async def test_a_reply_that_is_no_message_is_internal(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        return None

    served = await serve(Echo(say))
    failed = await served.failure(served.say(Note()))
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "NoneType" not in str(failed.details())


async def test_an_rpc_that_the_servicer_lacks_is_unimplemented(serve: Serve) -> None:
    served = await serve(Echo())
    error = from_rpc_error(await served.failure(served.later(Note())))
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_YET")


async def test_an_rpc_left_as_generated_is_unimplemented() -> None:
    server = GrpcServer(ServiceConfig(), Authenticator(None), Metrics("test"))
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    # Accepted, although its methods are plain functions.
    server.add(health_pb2_grpc.HealthServicer(), health, roles={m.name: None for m in health.methods})


async def test_a_streams_bytes_pass_through_as_they_are(serve: Serve) -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[Any]:
        yield Note(text="parsed")
        yield Note(text="relayed").SerializeToString()

    served = await serve(Echo(count=count))
    assert [note.text async for note in served.count(Note())] == ["parsed", "relayed"]
    assert served.handled("Count", "OK") == 1


async def test_an_error_after_the_first_messages_ends_the_stream_with_its_details(serve: Serve) -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[Any]:
        yield Note(text="1")
        raise resource_exhausted("QUEUE_FULL", "full", 2.0)

    served = await serve(Echo(count=count))
    call = served.count(Note())
    assert (await call.read()).text == "1"
    assert from_rpc_error(await served.failure(call.read())).retry_after_seconds == 2.0


async def test_a_cancelled_stream_runs_its_finally_at_once_and_counts_as_cancelled(serve: Serve) -> None:
    cleaned = asyncio.Event()

    async def count(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield Note(text="1")
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    served = await serve(Echo(count=count))
    call = served.count(Note())
    await call.read()
    assert served.in_flight("Count") == 1
    call.cancel()
    await cleaned.wait()
    assert served.in_flight("Count") == 0
    assert served.handled("Count", "CANCELLED") == 1


async def test_a_stream_cancelled_while_a_message_is_written_cleans_up_before_the_call_ends(serve: Serve) -> None:
    cleaned = asyncio.Event()
    in_flight_at_cleanup: list[float | None] = []

    class Flood(Echo):
        async def Count(self, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                while True:  # awaits nothing itself: the cancel can only meet it in a write
                    yield Note(text="x" * (1 << 20))
            finally:
                in_flight_at_cleanup.append(served.in_flight("Count"))
                cleaned.set()

    served = await serve(Flood())
    call = served.count(Note())
    await call.read()
    call.cancel()
    await cleaned.wait()
    assert in_flight_at_cleanup == [1]


async def test_a_calls_deadline_ends_it_and_is_counted(serve: Serve) -> None:
    ended = asyncio.Event()

    async def say(request: Any, context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    served = await serve(Echo(say))
    failed = await served.failure(served.say(Note(), timeout=0.2))
    assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await ended.wait()
    assert served.handled("Say", "DEADLINE_EXCEEDED") == 1


async def test_a_call_without_a_deadline_gets_the_default(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    served = await serve(Echo(say), default_deadline_seconds=0.05)
    error = from_rpc_error(await served.failure(served.say(Note())))
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")


async def test_a_long_deadline_is_clamped_and_the_handler_sees_what_remains(serve: Serve) -> None:
    remaining: list[float | None] = []

    async def say(request: Any, context: Any) -> Any:
        remaining.append(current_request().remaining_seconds())  # type: ignore[union-attr]
        return Note()

    served = await serve(Echo(say), max_deadline_seconds=30)
    await served.say(Note(), timeout=3600)
    await served.say(Note(), timeout=10)
    clamped, own = remaining
    assert clamped is not None and 20 < clamped <= 30
    assert own is not None and 5 < own < 20


async def test_a_handlers_own_timeout_is_an_internal_fault_not_the_deadline(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        raise TimeoutError("of a database")

    served = await serve(Echo(say))
    assert (await served.failure(served.say(Note()))).code() is grpc.StatusCode.INTERNAL


async def test_a_large_message_reaches_the_handler_and_a_larger_one_is_refused(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        return Note(text=str(len(request.text)))

    served = await serve(Echo(say))
    assert (await served.say(Note(text="x" * 10_000_000))).text == "10000000"
    failed = await served.failure(served.say(Note(text="x" * (17 << 20))))
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await served.say(Note(text="x"))).text == "1"


async def test_metrics_count_calls_by_method_and_code(serve: Serve) -> None:
    served = await serve(Echo())
    await served.say(Note())
    await served.say(Note())
    await served.failure(served.later(Note()))
    text = served.metrics()
    assert 'pith_grpc_requests_total{code="OK",method="/pith_test.Echo/Say"} 2.0' in text
    assert 'pith_grpc_requests_total{code="UNIMPLEMENTED",method="/pith_test.Echo/Later"} 1.0' in text
    assert 'pith_grpc_request_duration_seconds_count{method="/pith_test.Echo/Say"} 2.0' in text
    assert 'pith_grpc_requests_in_flight{method="/pith_test.Echo/Say"} 0.0' in text


async def test_the_access_log_names_the_call_and_never_what_was_said(serve: Serve) -> None:
    served = await serve(Echo())
    await served.say(Note(text="my secret"), metadata=(("x-request-id", "r-3"), ("x-tenant", "acme")))
    line = next(line for line in served.log.getvalue().splitlines() if SAY in line)
    assert '"request_id": "r-3"' in line and '"tenant": "acme"' in line and '"code": "OK"' in line
    assert "my secret" not in served.log.getvalue()


async def test_the_access_log_has_what_a_handler_notes(serve: Serve) -> None:
    async def say(request: Any, context: Any) -> Any:
        note_asked(request.text)
        raise not_found("order", request.text)

    served = await serve(Echo(say))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.say(Note(text="order-7"), metadata=(("x-request-id", "r-3"),))
    line = next(line for line in served.log.getvalue().splitlines() if SAY in line)
    assert '"request_id": "r-3"' in line and '"asked": "order-7"' in line and '"code": "NOT_FOUND"' in line


async def test_two_servers_on_one_port_is_an_error(serve: Serve) -> None:
    first = GrpcServer(ServiceConfig(), Authenticator(None), Metrics("test"))
    port = await first.start()
    second = GrpcServer(ServiceConfig(listen=f"127.0.0.1:{port}"), Authenticator(None), Metrics("test"))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        await second.start()
    await first.drain()


def test_every_rpc_needs_its_roles_and_async_handlers() -> None:
    async def build() -> None:
        server = GrpcServer(ServiceConfig(), Authenticator(None), Metrics("test"))
        with pytest.raises(ValueError, match=r"roles must name each of \['Count', 'Later', 'Say', 'Watch'\]"):
            server.add(Echo(), ECHO, roles={"Say": {Role.CLIENT}})
        with pytest.raises(ValueError, match="watches"):
            server.add(Echo(), ECHO, roles=ROLES, watches={"Wach"})

        class Blocking(Echo):
            def Later(self, request: Any, context: Any) -> Any:
                return Note()

        with pytest.raises(TypeError, match="must be async"):
            server.add(Blocking(), ECHO, roles=ROLES)

    asyncio.run(build())
