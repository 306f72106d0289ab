"""An engine that serves a tiny random model on a free port, in the test's process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2_grpc
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc

from common.errors import PithError, from_rpc_error
from common.metrics import Metrics
from engine.__main__ import build_server
from engine.config import EngineConfig
from engine.engine import Engine

LONG_CONTEXT = 65536
"""An answer of this length never ends within a test."""
TIMEOUT_SECONDS = 60

Request = inference_pb2.GenerateRequest


@dataclass
class Served:
    engine: Engine
    address: str
    inference: inference_pb2_grpc.InferenceAsyncStub
    control: control_pb2_grpc.ControlAsyncStub
    health: health_pb2_grpc.HealthStub
    channel: grpc.aio.Channel
    metrics: Metrics

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    async def until_idle(self) -> control_pb2.Load:
        """The first load that shows no request."""
        watch = self.control.WatchLoad(control_pb2.WatchLoadRequest(interval=Duration(nanos=50_000_000)))
        async for load in watch:
            if load.running == load.waiting == 0 and load.kv_blocks_free == load.kv_blocks_total:
                watch.cancel()
                return load
        raise AssertionError("the watch ended")


@asynccontextmanager
async def serving(model_path: Path, **settings: Any) -> AsyncIterator[Served]:
    settings = {"listen": "127.0.0.1:0", "max_output_tokens": LONG_CONTEXT, "kv_cache_bytes": 64 << 20} | settings
    config = EngineConfig(model_path=model_path, **settings)
    engine = Engine(config)
    metrics = Metrics("engine")
    server = build_server(config, engine, metrics)
    port = await server.start()
    await server.set_serving(True)
    address = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(
                engine,
                address,
                inference_pb2_grpc.InferenceStub(channel),
                control_pb2_grpc.ControlStub(channel),
                health_pb2_grpc.HealthStub(channel),
                channel,
                metrics,
            )
    finally:
        await server.drain(grace_seconds=0)
        engine.stop()


def request_of(text: str = "tell me", tokens: int = 12, **sampling: Any) -> Request:
    return Request(
        messages=text_pb2.Messages(messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content=text)]),
        limits=text_pb2.Limits(max_output_tokens=tokens),
        sampling=text_pb2.Sampling(**sampling),
    )


async def fault_of(call: Awaitable[object]) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def read_all(stream: Any) -> list[inference_pb2.StreamGenerateResponse]:
    events = []
    while (event := await stream.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def started_and_first_delta(stream: Any) -> None:
    assert (await stream.read()).WhichOneof("event") == "started"
    assert (await stream.read()).WhichOneof("event") == "delta"


async def endless(served: Served, request_id: str = "") -> Any:
    """A stream that decodes until it is stopped."""
    request = request_of(tokens=LONG_CONTEXT)
    request.request_id = request_id
    stream = served.inference.StreamGenerate(request)
    await started_and_first_delta(stream)
    return stream
