"""What the router is held against: processes that do nothing but gRPC.

    python -m tests.bench.bare engine|echo|proxy PORT [ENGINE'S ADDRESS]

- engine: answers each request with DELTAS deltas as fast as they are read; it decodes nothing.
- echo: answers Decide with the bytes that it was asked with, unread.
- proxy: relays a stream's messages as bytes, unread.

All are grpc.aio, as the router is, and print a line once they listen.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2

DELTAS = 256
"""Of an answer."""
MODEL = "bare"

Context = grpc.aio.ServicerContext[Any, Any]


def as_they_are(message: bytes) -> bytes:
    return message


class _Control(control_pb2_grpc.ControlServicer):
    async def GetModelInfo(self, request: control_pb2.GetModelInfoRequest, context: Context) -> control_pb2.ModelInfo:
        return control_pb2.ModelInfo(model=MODEL, model_digest="0" * 64, accepts_resume=True)

    async def WatchLoad(
        self, request: control_pb2.WatchLoadRequest, context: Context
    ) -> AsyncIterator[control_pb2.Load]:
        while True:
            yield control_pb2.Load(max_running=64, max_waiting=64)
            await asyncio.sleep(1)


def _answer() -> list[bytes]:
    started = inference_pb2.Started(model=MODEL, model_digest="0" * 64, prompt_token_ids=range(32), seed=1)
    finished = inference_pb2.Finished(
        reason=text_pb2.FINISH_REASON_STOP,
        usage=text_pb2.Usage(prompt_tokens=32, output_tokens=DELTAS),
        energy=energy_pb2.Energy(joules=1.0, source=energy_pb2.ENERGY_SOURCE_MODELLED),
        busy_seconds=0.1,
    )
    deltas = (text_pb2.Delta(text=" word", token_ids=[at], offset=at) for at in range(DELTAS))
    messages = (
        inference_pb2.StreamGenerateResponse(started=started),
        *(inference_pb2.StreamGenerateResponse(delta=delta) for delta in deltas),
        inference_pb2.StreamGenerateResponse(finished=finished),
    )
    return [message.SerializeToString() for message in messages]


def _engine(server: grpc.aio.Server) -> None:
    control_pb2_grpc.add_ControlServicer_to_server(_Control(), server)
    messages = _answer()

    async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    handler = grpc.unary_stream_rpc_method_handler(stream, as_they_are, as_they_are)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("pith.engine.v1.Inference", {"StreamGenerate": handler}),)
    )


def _echo(server: grpc.aio.Server) -> None:
    async def decide(request: bytes, context: Context) -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(decide, as_they_are, as_they_are)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("pith.router.v1.Generation", {"Decide": handler}),)
    )


def _proxy(server: grpc.aio.Server, engine: grpc.aio.Channel) -> None:
    call = engine.unary_stream("/pith.engine.v1.Inference/StreamGenerate", as_they_are, as_they_are)

    async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        async for message in call(request):
            yield message

    handler = grpc.unary_stream_rpc_method_handler(stream, as_they_are, as_they_are)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("pith.engine.v1.Inference", {"StreamGenerate": handler}),)
    )


async def _main(what: str, port: str, engine: str = "") -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if what == "engine":
        _engine(server)
    elif what == "echo":
        _echo(server)
    else:
        _proxy(server, grpc.aio.insecure_channel(engine))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"{what} listens", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
