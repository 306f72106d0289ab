"""An engine whose answers a test scripts: real gRPC on a free port, no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2

from common.errors import STATUS_DETAILS_KEY, PithError, to_status, unauthenticated

Context = grpc.aio.ServicerContext[Any, Any]
Message = inference_pb2.StreamGenerateResponse | bytes
Script = Callable[["FakeEngine", inference_pb2.GenerateRequest, Context], AsyncIterator[Message]]

DIGEST = "0123456789abcdef" * 4
IDENTITY = "small@0123456789ab"
PROMPT_TOKEN_IDS = (3, 1, 4, 1, 5)


class FakeEngine:
    """Serves pith.engine.v1 as far as a router needs it.

    Attributes:
        script: Makes the messages of each answer; by default two deltas and 2 J.
        requests: What was asked, in order.
        refusing: It refuses the caller's token, as to all calls but the watches that go on.
        asked, cancelled: Set when a request came, and when one was cancelled.
    """

    def __init__(self, script: Script | None = None, *, model: str = "small", digest: str = DIGEST) -> None:
        self.script = script or answer("Hello, ", "world.")
        self.info = control_pb2.ModelInfo(model=model, model_digest=digest, accepts_resume=True)
        self.load = control_pb2.Load(max_running=4, max_waiting=4)
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.refusing = False
        self.metadata: list[dict[str, str | bytes]] = []
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.port = 0
        self._changed = asyncio.Condition()
        self._reports = 0
        self._server: grpc.aio.Server | None = None
        self.ending: asyncio.Task[None] | None = None

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
                if isinstance(value, energy_pb2.Energy):
                    getattr(self.load, name).CopyFrom(value)
                else:
                    setattr(self.load, name, value)
            self._reports += 1
            self._changed.notify_all()

    async def _let_in(self, context: Context) -> None:
        if self.refusing:
            status = to_status(unauthenticated("scripted"))
            details = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "scripted", details)

    def started(self, request: inference_pb2.GenerateRequest) -> inference_pb2.StreamGenerateResponse:
        return inference_pb2.StreamGenerateResponse(
            started=inference_pb2.Started(
                model=self.info.model,
                model_digest=self.info.model_digest,
                prompt_token_ids=PROMPT_TOKEN_IDS,
                seed=request.sampling.seed,
            )
        )

    async def _stream_generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.asked.set()
        await self._let_in(context)
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
        await self._engine._let_in(context)
        return self._engine.info

    async def WatchLoad(
        self, request: control_pb2.WatchLoadRequest, context: Context
    ) -> AsyncIterator[control_pb2.Load]:
        engine, seen = self._engine, -1
        await engine._let_in(context)
        while True:
            async with engine._changed:
                while engine._reports == seen:
                    await engine._changed.wait()
            seen = engine._reports
            yield engine.load


def energy_model(**fields: Any) -> energy_pb2.EnergyModel:
    """As of an engine that was calibrated: 1 J an input token, and 10 J an output token shared by the batch."""
    model = energy_pb2.EnergyModel(
        input_joules=1.0,
        output_shared_joules=10.0,
        source=energy_pb2.ENERGY_SOURCE_MEASURED,
        measured_at=Timestamp(seconds=1_763_640_000),
        held_out_mape=2.1,
        max_batch=16,
        max_input_tokens=4096,
        max_output_tokens=4096,
    )
    model.MergeFrom(energy_pb2.EnergyModel(**fields))
    return model


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


Death = Callable[["FakeEngine", Context], Awaitable[None]]
"""How an engine is lost within an answer."""


async def gone(engine: FakeEngine, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")


async def killed(engine: FakeEngine, context: Context) -> None:
    """Its connections close."""
    engine.ending = asyncio.create_task(engine.stop())
    await asyncio.Event().wait()


async def silence(engine: FakeEngine, context: Context) -> None:
    await asyncio.Event().wait()


def tell(
    text: str, *, tokens: Sequence[int] = (), held: str = "", lives: int | None = None, death: Death = gone
) -> Script:
    """Answers with `text` as an engine would that has a token for each byte, and goes on with what it is to resume.

    Args:
        tokens: Of each delta; 1 for those beyond.
        held: A stop string: text that may be its beginning is held back.
        lives: Deltas until it is lost, by `death`; None for ever.
    """
    token_ids = list(text.encode())

    def released(count: int) -> str:
        if count == len(token_ids):
            return text
        whole = bytes(token_ids[:count]).decode(errors="ignore")
        begun = next((n for n in range(len(held) - 1, 0, -1) if whole.endswith(held[:n])), 0)
        return whole[: len(whole) - begun]

    async def script(
        engine: FakeEngine, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        resume = request.resume
        at, sent_bytes = len(resume.token_ids), resume.delivered_bytes
        if request.HasField("resume"):
            expected = (engine.info.model_digest, list(PROMPT_TOKEN_IDS), token_ids[:at])
            if (resume.model_digest, list(request.token_ids.ids), list(resume.token_ids)) != expected:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not what was begun")
        yield engine.started(request)
        sizes = iter(tokens)
        for _ in range(lives if lives is not None else len(token_ids) + 1):
            if at == len(token_ids) and sent_bytes == len(token_ids):
                break
            end = min(len(token_ids), at + next(sizes, 1))
            piece = released(end).encode()[sent_bytes:]
            yield inference_pb2.StreamGenerateResponse(
                delta=text_pb2.Delta(text=piece.decode(), token_ids=token_ids[at:end], offset=at)
            )
            at, sent_bytes = end, sent_bytes + len(piece)
        if lives is not None:
            await death(engine, context)
        yield finished(len(token_ids))

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
