"""engine.v1.Inference and engine.v1.Control over one Engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, inference_pb2

from common.auth import current_request
from common.errors import Violations, internal
from common.grpc_server import Context
from engine import convert
from engine.engine import Engine, Load, Place
from engine.request import Finished, GenerationRequest, ResumeError, Update
from engine.stream import DecodingError, Delta
from engine.tokenizer import TemplateRejectedError

TOKENISER_THREADS = 2
"""One long prompt must not hold up the others; more would take the processor from the decode loop."""
DEFAULT_WATCH_SECONDS = 0.5
MIN_WATCH_SECONDS = 0.05
MAX_WATCH_SECONDS = 60.0
TOTALS_SECONDS = 5.0
"""Where nothing else changes, how often a watcher is told what time and energy have gone by."""


class InferenceService:
    """Decoding."""

    def __init__(self, engine: Engine, draw_seed: Callable[[], int]) -> None:
        """`draw_seed` gives unsigned 64-bit seeds for the requests that name none."""
        self._engine = engine
        self._draw_seed = draw_seed
        self._tokenisers = ThreadPoolExecutor(TOKENISER_THREADS, "tokenise")
        self._max_prompt_characters = engine.tokenizer.max_characters(engine.card.max_context_tokens)

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        text: list[str] = []
        token_ids: list[int] = []
        logprobs: list[text_pb2.TokenLogprob] = []
        async with self._answering(request) as (started, place):
            while isinstance(event := await _next_event(place), Delta):
                text.append(event.text)
                token_ids += event.token_ids
                logprobs += map(convert.logprob_message, event.logprobs)
        return inference_pb2.GenerateResponse(
            started=started,
            text="".join(text),
            token_ids=token_ids,
            logprobs=logprobs,
            finished=convert.finished_message(event),
        )

    async def StreamGenerate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        async with self._answering(request) as (started, place):
            yield inference_pb2.StreamGenerateResponse(started=started)
            while isinstance(event := await _next_event(place), Delta):
                yield inference_pb2.StreamGenerateResponse(delta=convert.delta_message(event))
            yield inference_pb2.StreamGenerateResponse(finished=convert.finished_message(event))

    @asynccontextmanager
    async def _answering(
        self, request: inference_pb2.GenerateRequest
    ) -> AsyncIterator[tuple[inference_pb2.Started, Place]]:
        """Checks, tokenises and submits a request; leaving stops it, if it still runs."""
        engine = self._engine
        asked = convert.asked(request, engine.card, self._max_prompt_characters, self._draw_seed())
        with engine.place(_request_id(request)) as place:
            generation, rest = await self._prepared(asked, place)
            engine.submit(place, generation, rest)
            started = inference_pb2.Started(
                request_id=place.request_id,
                model=engine.card.name,
                model_digest=engine.card.digest,
                prompt_token_ids=generation.prompt_token_ids,
                seed=asked.sampling.seed,
            )
            yield started, place

    async def _prepared(self, asked: convert.Asked, place: Place) -> tuple[GenerationRequest, Update | None]:
        """What to generate, and all that is left of an answer that was resumed at its very end."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenisers, self._prepare, asked, place)

    def _prepare(self, asked: convert.Asked, place: Place) -> tuple[GenerationRequest, Update | None]:
        faults = Violations()
        engine, sampling = self._engine, asked.sampling
        ids: Sequence[int] = ()
        try:
            ids = self._encode(asked.prompt)
            convert.check_prompt_tokens(asked.prompt.field, len(ids), engine.card, faults)
        except TemplateRejectedError as rejected:
            faults.add(asked.prompt.field, f"the chat template refuses them: {rejected}")
        faults.raise_if_any()
        if asked.suppressed_words:
            sampling = replace(sampling, suppression=engine.tokenizer.suppression(asked.suppressed_words))
        request = engine.request(place, ids, sampling, asked.max_output_tokens, asked.stop)
        if not asked.resumed_token_ids:
            faults.require(not asked.delivered_bytes, "resume.delivered_bytes", "is above 0, without token_ids")
            faults.raise_if_any()
            return request, None
        request = replace(request, resumed_token_ids=asked.resumed_token_ids, delivered_bytes=asked.delivered_bytes)
        try:
            return request, engine.replay(request)
        except ResumeError as fault:
            faults.add(f"resume.{fault.field}", str(fault))
            faults.raise_if_any()
            raise

    def _encode(self, prompt: convert.Prompt) -> Sequence[int]:
        if prompt.field == "messages":
            return self._engine.tokenizer.encode_messages(prompt.messages, prompt.template_variables)
        if prompt.field == "text":
            return self._engine.tokenizer.encode(prompt.text)
        return prompt.token_ids


class ControlService:
    """What the engine is, how busy it is, and how to stop things in it."""

    def __init__(self, engine: Engine, version: str, not_serving: Callable[[], Awaitable[None]]) -> None:
        """`not_serving` turns the server's health."""
        self._engine = engine
        self._version = version
        self._not_serving = not_serving

    async def GetModelInfo(self, request: control_pb2.GetModelInfoRequest, context: Context) -> control_pb2.ModelInfo:
        return convert.model_info_message(self._engine.card, self._version)

    async def GetLoad(self, request: control_pb2.GetLoadRequest, context: Context) -> control_pb2.Load:
        return self._message(self._engine.load())

    async def WatchLoad(
        self, request: control_pb2.WatchLoadRequest, context: Context
    ) -> AsyncIterator[control_pb2.Load]:
        interval_seconds = (
            request.interval.ToMicroseconds() / 1e6 if request.HasField("interval") else DEFAULT_WATCH_SECONDS
        )
        faults = Violations()
        faults.require(
            MIN_WATCH_SECONDS <= interval_seconds <= MAX_WATCH_SECONDS,
            "interval",
            f"is {interval_seconds} s; from {MIN_WATCH_SECONDS} to {MAX_WATCH_SECONDS:g} s",
        )
        faults.raise_if_any()
        told: Load | None = None
        told_seconds = 0.0
        while True:
            load, now_seconds = self._engine.load(), time.monotonic()
            still = replace(load, busy_seconds=0.0, idle_seconds=0.0, idle_energy=None)
            if still != told or now_seconds - told_seconds >= TOTALS_SECONDS:
                told, told_seconds = still, now_seconds
                yield self._message(load)
            await asyncio.sleep(interval_seconds)

    async def Abort(self, request: control_pb2.AbortRequest, context: Context) -> control_pb2.AbortResponse:
        faults = Violations()
        faults.require(bool(request.request_id), "request_id", "is empty; at least 1 character")
        faults.raise_if_any()
        return control_pb2.AbortResponse(found=self._engine.abort(request.request_id))

    async def Drain(self, request: control_pb2.DrainRequest, context: Context) -> control_pb2.DrainResponse:
        await self._not_serving()
        return control_pb2.DrainResponse(finished=await self._engine.drain())

    def _message(self, load: Load) -> control_pb2.Load:
        config = self._engine.config
        return convert.load_message(load, config.max_batch, config.max_queue)


def _request_id(request: inference_pb2.GenerateRequest) -> str:
    if request.request_id:
        return request.request_id
    # The server gives every call one.
    call = current_request()
    return call.request_id if call is not None else ""


async def _next_event(place: Place) -> Delta | Finished:
    try:
        return await place.stream.next()
    except DecodingError:
        raise internal("decoding failed; the engine's log has the cause") from None
