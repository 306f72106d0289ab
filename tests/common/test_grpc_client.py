"""Channels: the metadata every call carries, retries before the first message only, and limits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from typing import Any

import grpc
import pytest

from common.auth import Principal, RequestContext, Role, enter_request
from common.grpc_client import connect

Handler = Callable[[bytes, Any], Any]
Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves handlers of bytes under /t.T/Unary and /t.T/Stream, with grpc alone; gives the address."""
    servers: list[grpc.aio.Server] = []

    async def serve(unary: Handler | None = None, stream: Handler | None = None) -> str:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handlers = {}
        if unary is not None:
            handlers["Unary"] = grpc.unary_unary_rpc_method_handler(unary)
        if stream is not None:
            handlers["Stream"] = grpc.unary_stream_rpc_method_handler(stream)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        await server.stop(None)


async def metadata_of(address: str, seen: list[dict[str, Any]], stream: bool = False, **options: Any) -> dict[str, Any]:
    call_metadata = options.pop("metadata", None)
    async with connect(address, **options) as channel:
        if stream:
            async for _ in channel.unary_stream("/t.T/Stream")(b"", metadata=call_metadata):
                pass
        else:
            await channel.unary_unary("/t.T/Unary")(b"", metadata=call_metadata)
    return seen[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_token_tenant_and_own_metadata_reach_the_server(serve: Serve, stream: bool) -> None:
    seen: list[dict[str, Any]] = []

    async def unary(request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        return b""

    async def streaming(request: bytes, context: Any) -> AsyncIterator[bytes]:
        seen.append(dict(context.invocation_metadata()))
        yield b""

    address = await serve(unary, streaming)
    got = await metadata_of(address, seen, stream, token="secret", tenant="acme", metadata=(("x-more", "1"),))
    assert (got["authorization"], got["x-tenant"], got["x-more"]) == ("Bearer secret", "acme", "1")
    got = await metadata_of(address, seen, stream)
    assert not {"authorization", "x-tenant", "x-request-id"} & got.keys()


async def test_the_id_of_the_request_in_hand_is_passed_on(serve: Serve) -> None:
    seen: list[dict[str, Any]] = []

    async def unary(request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        return b""

    address = await serve(unary)

    async def within() -> tuple[str, str]:
        enter_request(RequestContext("r-1", Principal("shop", Role.CLIENT, "acme")))
        inherited = await metadata_of(address, seen)
        named = await metadata_of(address, seen, metadata=(("x-request-id", "own"),))
        return inherited["x-request-id"], named["x-request-id"]

    task = copy_context().run(asyncio.create_task, within())
    assert await task == ("r-1", "own")


@pytest.mark.parametrize(("max_attempts", "answered"), [(3, True), (2, False), (1, False)])
async def test_unavailable_is_tried_again_up_to_max_attempts(serve: Serve, max_attempts: int, answered: bool) -> None:
    tries = 0

    async def unary(request: bytes, context: Any) -> bytes:
        nonlocal tries
        tries += 1
        if tries < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return b"at last"

    async with connect(await serve(unary), max_attempts=max_attempts) as channel:
        call = channel.unary_unary("/t.T/Unary")(b"")
        if answered:
            assert await call == b"at last"
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="not yet"):
                await call
    assert tries == max_attempts


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
async def test_other_failures_are_not_tried_again(serve: Serve, code: grpc.StatusCode) -> None:
    tries = 0

    async def unary(request: bytes, context: Any) -> bytes:
        nonlocal tries
        tries += 1
        await context.abort(code, "no")
        return b""

    async with connect(await serve(unary)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/t.T/Unary")(b"")
    assert tries == 1


async def test_a_stream_is_not_tried_again_after_its_first_message(serve: Serve) -> None:
    tries = 0

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal tries
        tries += 1
        yield b"first"
        await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    async with connect(await serve(stream=stream)) as channel:
        call = channel.unary_stream("/t.T/Stream")(b"")
        assert await call.read() == b"first"
        with pytest.raises(grpc.aio.AioRpcError, match="lost"):
            await call.read()
    assert tries == 1


async def test_an_unreachable_server_is_unavailable() -> None:
    async with connect("127.0.0.1:1", max_attempts=1) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/t.T/Unary")(b"", timeout=30)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_messages_are_limited_each_way(serve: Serve) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return b"x" * int(request)

    async with connect(await serve(unary), max_message_bytes=100_000) as channel:
        call = channel.unary_unary("/t.T/Unary")
        assert len(await call(b"90000")) == 90_000
        for request in (b"100001", b"1" * 100_001):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(request)
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
