"""Has an engine answer: chooses it, relays its bytes, tries another where that loses and repeats nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import Enum, auto

import grpc
import structlog
from pith.engine.v1 import inference_pb2

from common.clock import Clock
from common.errors import (
    PithError,
    deadline_exceeded,
    from_rpc_error,
    internal,
    resource_exhausted,
    unavailable,
)
from router.fleet.engines import RETRY_AFTER_SECONDS, Engine, Engines, model_identity

# First byte of a StreamGenerateResponse on the wire: the tag of field 2, length-delimited. Engine and router have the
# same number for the same message there, so that these bytes are what the router's own client gets.
_DELTA_TAG = 0x12

_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

log = structlog.get_logger("dispatch")


@dataclass(frozen=True, slots=True)
class Opened:
    """The engine that answers, and what it said first."""

    engine: str
    started: inference_pb2.Started


Event = Opened | bytes | inference_pb2.Finished
"""What an answer consists of, in this order: one Opened, encoded deltas, one Finished."""

Prepare = Callable[[Engine], inference_pb2.GenerateRequest]


class Dispatcher:
    """Sends requests to engines.

    Args:
        stall_seconds: After so long, on the engines' clock, an engine is given up that sends nothing for a request and,
            by its load reports, gets on with no other either: waiting in a busy engine's queue is no stall.
    """

    def __init__(self, engines: Engines, stall_seconds: float) -> None:
        self._engines = engines
        self._stall_seconds = stall_seconds

    async def stream(
        self, model: str, prepare: Prepare, timeout_seconds: Callable[[], float | None]
    ) -> AsyncGenerator[Event]:
        """One answer. Nothing is yielded before its first delta has come, so that until then another engine can take
        over; afterwards the loss of the engine ends the answer.

        Args:
            model: By name, by "name@digest", or empty for any.
            prepare: Makes the request for the engine that it is sent to; called for each attempt. The directive depends
                on the engine's model, so it is decided there.
            timeout_seconds: Wall time that is left; None without an end.

        Raises:
            PithError: UNAVAILABLE (NO_ENGINE, ENGINE_LOST), RESOURCE_EXHAUSTED (QUEUE_FULL: all are full), NOT_FOUND
                (no engine serves the model), DEADLINE_EXCEEDED, INTERNAL, or what the engine says of the request.
        """
        tried: set[str] = set()
        refusal: PithError | None = None
        while True:
            engine = self._engines.choose(model, tried)
            if engine is None:
                raise refusal or self._engines.absent(model)
            tried.add(engine.name)
            attempt = _Attempt(engine, self._stall_seconds, self._engines.clock)
            try:
                opening = await attempt.open(prepare(engine), timeout_seconds())
                yield Opened(engine.name, opening.started)
                event = opening.first
                while isinstance(event, bytes):
                    yield event
                    event = await attempt.next()
                yield event
                return
            except _RefusedError as refused:
                # Where one engine is full and others are away, full is what the caller can wait for.
                if refusal is None or refusal.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refusal = refused.error
            finally:
                attempt.close()


class _RefusedError(Exception):
    """The engine gave nothing of an answer; another may."""

    def __init__(self, error: PithError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class _Opening:
    started: inference_pb2.Started
    first: bytes | inference_pb2.Finished


class _Outcome(Enum):
    """What a request says of its engine."""

    NOTHING = auto()
    ANSWERED = auto()
    FAULT = auto()


class _Attempt:
    """One request at one engine."""

    def __init__(self, engine: Engine, stall_seconds: float, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._stall_seconds = stall_seconds
        self._call: grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, bytes] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._stalled = False
        self._relayed = False
        self._outcome = _Outcome.NOTHING
        engine.begin()
        self._probe = engine.breaker.begin()

    async def open(self, request: inference_pb2.GenerateRequest, timeout_seconds: float | None) -> _Opening:
        """Sends the request and waits for the first piece of the answer."""
        if timeout_seconds is not None and timeout_seconds <= 0:
            raise deadline_exceeded()
        self._heard_at = self._clock.monotonic()
        self._call = self._engine.stream_generate(request, timeout=timeout_seconds)
        self._messages = aiter(self._call)
        self._watchdog = asyncio.create_task(self._watch(self._call))
        raw = await self._read()
        started = inference_pb2.StreamGenerateResponse.FromString(raw)
        if not started.HasField("started"):
            raise self._broken("it began without `started`")
        served = model_identity(started.started.model, started.started.model_digest)
        if served != self._engine.identity:
            # The directive was decided for the model that the engine last named: no bound speaks of this one.
            raise self._lost(f"it serves {served} where it said {self._engine.identity}", fault=False)
        first = await self.next()
        self._relayed = True
        return _Opening(started.started, first)

    async def next(self) -> bytes | inference_pb2.Finished:
        """The next encoded delta, or the end."""
        while True:
            raw = await self._read()
            if raw and raw[0] == _DELTA_TAG:
                return raw
            event = inference_pb2.StreamGenerateResponse.FromString(raw)
            if event.HasField("finished"):
                self._outcome = _Outcome.ANSWERED
                return event.finished
            # Anything else is an event of a later version, which this one has no use for.

    def close(self) -> None:
        """Ends the call if it has not ended, which stops the engine, and gives the engine's slot back."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._call is not None and self._outcome is not _Outcome.ANSWERED:
            self._call.cancel()
        self._engine.end()
        breaker = self._engine.breaker
        if self._outcome is _Outcome.ANSWERED:
            breaker.succeed()
        elif self._outcome is _Outcome.FAULT:
            breaker.fail(self._probe)
        else:
            breaker.abandon(self._probe)

    async def _read(self) -> bytes:
        try:
            message = await anext(self._messages, None)
        except asyncio.CancelledError:
            # Our own cancel of the call looks like a cancel of the task.
            task = asyncio.current_task()
            if self._stalled and not (task and task.cancelling()):
                raise self._lost(f"it sent nothing for {self._stall_seconds:g} s") from None
            raise
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        if message is None:
            raise self._broken("it ended the answer without `finished`")
        self._heard_at = self._clock.monotonic()
        return message

    def _failure(self, error: grpc.aio.AioRpcError) -> Exception:
        """What to do about a status: `_RefusedError` lets another engine try, anything else is for the caller.

        The breaker hears of lost and broken engines. A client's deadline, cancel or bad request says nothing of the
        engine, and a full queue only that it is busy.
        """
        told = from_rpc_error(error)
        match told.code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return deadline_exceeded()
            case code if code in _LOST:
                return self._lost(f"{code.name} {told.message}", fault=told.reason != "DRAINING")
            case code if code in _BROKEN:
                return self._broken(f"{code.name} {told.message}")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                wait = told.retry_after_seconds or RETRY_AFTER_SECONDS
                return _RefusedError(resource_exhausted("QUEUE_FULL", "all engines of the model are full", wait))
            case grpc.StatusCode.NOT_FOUND:
                # It serves another model by now, which its next load report will have us ask about.
                return self._lost("it serves another model", fault=False)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
                return told
            case code:
                return internal(f"engine {self._engine.name} answered {code.name}")

    def _lost(self, why: str, *, fault: bool = True) -> Exception:
        """The engine is gone: another may answer, unless a part of the answer has been passed on."""
        self._note(why, fault)
        name = self._engine.name
        if self._relayed:
            return unavailable("ENGINE_LOST", f"engine {name} was lost while it answered", RETRY_AFTER_SECONDS)
        return _RefusedError(
            unavailable("NO_ENGINE", f"engine {name} was lost, and no other is there", RETRY_AFTER_SECONDS)
        )

    def _broken(self, why: str) -> Exception:
        """The engine failed at this request: no other gets it, since what breaks one engine would break them all."""
        self._note(why, fault=True)
        return internal(f"engine {self._engine.name} failed; its log has the rest under the request id")

    def _note(self, why: str, fault: bool) -> None:
        if fault:
            self._outcome = _Outcome.FAULT
        log.warning("engine failed", engine=self._engine.name, fault=why, counted=fault)

    async def _watch(self, call: grpc.aio.Call) -> None:
        """Gives the engine up where neither this request nor any other there has moved for too long."""
        while (left := self._moved_at() + self._stall_seconds - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)
        self._stalled = True
        call.cancel()

    def _moved_at(self) -> float:
        return max(self._heard_at, self._engine.progressed_at)
