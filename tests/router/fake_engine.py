"""An engine whose answers a test scripts: real gRPC on a free port, no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2

from common.errors import STATUS_DETAILS_KEY, PithError, to_status

Context = grpc.aio.ServicerContext[Any, Any]
Message = inference_pb2.StreamGenerateResponse | bytes
Script = Callable[["FakeEngine", inference_pb2.GenerateRequest, Context], AsyncIterator[Message]]

DIGEST = "0123456789abcdef" * 4
IDENTITY = "small@0123456789ab"


class FakeEngine:
    """Serves pith.engine.v1 as far as a router needs it.

    Attributes:
        script: Makes the messages of each answer; by default two deltas and 2 J.
        requests: What was asked, in order.
        asked, cancelled: Set when a request came, and when one was cancelled.
    """

    def __init__(self, script: Script | None = None, *, model: str = "small", digest: str = DIGEST) -> None:
        self.script = script or answer("Hello, ", "world.")
        self.info = control_pb2.ModelInfo(model=model, model_digest=digest)
        self.load = control_pb2.Load(max_running=4, max_waiting=4)
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.port = 0
        self._changed = asyncio.Condition()
        self._reports = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> str:
        """Listens, on the port that it had before if it was started before; returns the address."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        control_pb2_grpc.add_ControlServicer_to_server(_Control(self), self._server)
        handler = grpc.unary_stream_rpc_method_handler(
            self._stream_generate,
            request_deserializer=inference_pb2.GenerateRequest.FromString,
            response_serializer=_encode,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("pith.engine.v1.Inference", {"StreamGenerate": handler}),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self.address

    async def stop(self) -> None:
        """Dies: calls in flight are cut off."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def report(self, **fields: Any) -> None:
        """Changes the load and tells who watches it."""
        async with self._changed:
            for name, value in fields.items():
                setattr(self.load, name, value)
            self._reports += 1
            self._changed.notify_all()

    def started(self, request: inference_pb2.GenerateRequest) -> inference_pb2.StreamGenerateResponse:
        return inference_pb2.StreamGenerateResponse(
            started=inference_pb2.Started(
                model=self.info.model, model_digest=self.info.model_digest, seed=request.sampling.seed
            )
        )

    async def _stream_generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.asked.set()
        try:
            async for message in self.script(self, request, context):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


class _Control(control_pb2_grpc.ControlServicer):
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def GetModelInfo(self, request: control_pb2.GetModelInfoRequest, context: Context) -> control_pb2.ModelInfo:
        return self._engine.info

    async def WatchLoad(
        self, request: control_pb2.WatchLoadRequest, context: Context
    ) -> AsyncIterator[control_pb2.Load]:
        engine, seen = self._engine, -1
        while True:
            async with engine._changed:
                while engine._reports == seen:
                    await engine._changed.wait()
            seen = engine._reports
            yield engine.load


def delta(text: str, offset: int = 0) -> inference_pb2.StreamGenerateResponse:
    return inference_pb2.StreamGenerateResponse(
        delta=text_pb2.Delta(text=text, token_ids=range(offset, offset + len(text)), offset=offset)
    )


def finished(
    output_tokens: int = 2, joules: float | None = 2.0, reason: int = text_pb2.FINISH_REASON_STOP
) -> inference_pb2.StreamGenerateResponse:
    energy = None if joules is None else energy_pb2.Energy(joules=joules, source=energy_pb2.ENERGY_SOURCE_MODELLED)
    return inference_pb2.StreamGenerateResponse(
        finished=inference_pb2.Finished(
            reason=reason,
            usage=text_pb2.Usage(prompt_tokens=5, output_tokens=output_tokens),
            energy=energy,
            busy_seconds=0.5,
        )
    )


def answer(*texts: str, joules: float | None = 2.0, output_tokens: int | None = None) -> Script:
    """Answers in as many deltas as texts."""

    async def script(
        engine: FakeEngine, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        yield engine.started(request)
        offset = 0
        for text in texts:
            yield delta(text, offset)
            offset += len(text)
        yield finished(len(texts) if output_tokens is None else output_tokens, joules)

    return script


def refuse(
    code: grpc.StatusCode, reason: str = "UNSPECIFIED", *, after: tuple[Message | str, ...] = (), **details: Any
) -> Script:
    """Ends with a status, after `after` ("started" stands for that message)."""

    async def script(
        engine: FakeEngine, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        for message in after:
            yield engine.started(request) if isinstance(message, str) else message
        status = to_status(PithError(code, reason, "scripted", **details))
        await context.abort(code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))

    return script


def stall(*before: Message | str, until: asyncio.Event | None = None) -> Script:
    """Sends `before`, then nothing until `until` is set (never, without), then finishes."""

    async def script(
        engine: FakeEngine, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        for message in before:
            yield engine.started(request) if isinstance(message, str) else message
        await (until or asyncio.Event()).wait()
        yield delta("late")
        yield finished()

    return script


def _encode(message: Any) -> bytes:
    encoded: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return encoded
