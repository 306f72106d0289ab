"""One request at one engine: sends it, reads the answer, and tells an engine's fault from all else that ends it."""

from __future__ import annotations

import asyncio
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
from common.model_identity import model_identity
from router.fleet.engine import REFUSALS, RETRY_AFTER_SECONDS, Engine, refused_token

# First byte of a StreamGenerateResponse on the wire: the tag of field 2, length-delimited. Engine and router have the
# same number for the same message there, so that these bytes are what the router's own client gets.
_DELTA_TAG = 0x12

_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

log = structlog.get_logger("dispatch")


class GivenUpError(Exception):
    """This engine gives no more of the answer; another may.

    Attributes:
        error: What a caller is told who has nothing of the answer, if no other does.
        of_model: No other engine of its model would do better.
    """

    def __init__(self, error: PithError, *, of_model: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.of_model = of_model


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of an answer."""

    started: inference_pb2.Started
    first: bytes | inference_pb2.Finished
    """An encoded delta, or the end at once."""


class _Outcome(Enum):
    """What a request says of its engine."""

    NOTHING = auto()
    ANSWERED = auto()
    FAULT = auto()


class Attempt:
    """One request at one engine.

    `open` and `next` raise GivenUpError where another engine may take over, and PithError where none should: the
    caller's deadline, a fault of the request, or an engine that broke at it.

    Args:
        in_place_of_another: The engine's model answers in the place of the one asked for, which can take over until
            the answer has begun: its context is longer perhaps, and what breaks this model need not break that.
    """

    def __init__(
        self, engine: Engine, stall_seconds: float, clock: Clock, *, in_place_of_another: bool = False
    ) -> None:
        self._engine = engine
        self._in_place_of_another = in_place_of_another
        self._clock = clock
        self._stall_seconds = stall_seconds
        self._call: grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, bytes] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._stalled = False
        self._resumes = False
        self._outcome = _Outcome.NOTHING
        engine.begin()
        self._probe = engine.breaker.begin()

    async def open(self, request: inference_pb2.GenerateRequest, timeout_seconds: float | None) -> Opening:
        """Sends the request and waits for the first piece of the answer."""
        if timeout_seconds is not None and timeout_seconds <= 0:
            raise deadline_exceeded()
        self._resumes = request.HasField("resume")
        self._heard_at = self._clock.monotonic()
        self._call = self._engine.stream_generate(request, timeout=timeout_seconds)
        self._messages = aiter(self._call)
        self._watchdog = asyncio.create_task(self._watch(self._call))
        raw = await self._read()
        event = inference_pb2.StreamGenerateResponse.FromString(raw)
        if not event.HasField("started"):
            raise self._broken("it began without `started`")
        started = event.started
        served = model_identity(started.model, started.model_digest)
        if served != self._engine.identity:
            # The directive was decided for the model that the engine last named: no bound speaks of this one.
            raise self._given_up(f"it serves {served} where it said {self._engine.identity}", fault=False)
        if self._resumes and started.model_digest != request.resume.model_digest:
            raise self._given_up("it resumed with another model", fault=False)
        first = await self.next()
        # From now on only the same weights can go on.
        self._in_place_of_another = False
        return Opening(started, first)

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
                raise self._given_up(f"it sent nothing for {self._stall_seconds:g} s") from None
            raise
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        if message is None:
            raise self._broken("it ended the answer without `finished`")
        self._heard_at = self._clock.monotonic()
        return message

    def _failure(self, error: grpc.aio.AioRpcError) -> Exception:
        """What to do about a status.

        The breaker hears of engines that are lost, broken, or closed to this router. A client's deadline, cancel or
        bad request says nothing of the engine, and a full queue only that it is busy.
        """
        told = from_rpc_error(error)
        match told.code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return deadline_exceeded()
            case code if code in _LOST:
                return self._given_up(f"{code.name} {told.reason}", fault=told.reason != "DRAINING")
            case code if code in REFUSALS:
                why = refused_token(f"{code.name} {told.reason}")
                self._engine.refuse(why)
                return self._given_up(why)
            case code if code in _BROKEN:
                return self._broken(f"{code.name} {told.reason}")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                wait = told.retry_after_seconds or RETRY_AFTER_SECONDS
                return GivenUpError(resource_exhausted("QUEUE_FULL", "all engines of the model are full", wait))
            case grpc.StatusCode.NOT_FOUND:
                # It serves another model by now, which its next load report will have us ask about.
                return self._given_up("it serves another model", fault=False)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
                if self._in_place_of_another:
                    return self._given_up(f"{told.code.name} {told.reason}", fault=False, of_model=True)
                if self._resumes:
                    # The router made this request; its caller's was found good where the answer began.
                    return self._given_up(f"it refused to resume: {told.code.name} {told.reason}", fault=False)
                return told
            case code:
                return internal(f"engine {self._engine.name} answered {code.name}")

    def _given_up(self, why: str, *, fault: bool = True, of_model: bool = False) -> GivenUpError:
        """The engine is gone, or not what it was."""
        self._note(why, fault)
        lost = f"engine {self._engine.name} was lost, and no other is there"
        return GivenUpError(unavailable("NO_ENGINE", lost, RETRY_AFTER_SECONDS), of_model=of_model)

    def _broken(self, why: str) -> Exception:
        """The engine failed at this request: no other of its model gets it, since what breaks one engine would break
        them all."""
        if self._in_place_of_another:
            return self._given_up(why, of_model=True)
        self._note(why, fault=True)
        return internal(f"engine {self._engine.name} failed; its log has the rest under the request id")

    def _note(self, why: str, fault: bool) -> None:
        """`why` holds nothing that the engine put into words: those may quote the prompt."""
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
