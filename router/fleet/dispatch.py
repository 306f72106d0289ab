"""Has an engine answer: chooses it, relays its bytes, and has another take over where one is lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from dataclasses import dataclass

import grpc
import structlog
from pith.engine.v1 import inference_pb2

from common.errors import PithError, unavailable
from common.metrics import Metrics
from router.fleet.attempt import Attempt, GivenUpError
from router.fleet.engine import RETRY_AFTER_SECONDS, Engine
from router.fleet.engines import Engines

log = structlog.get_logger("dispatch")


@dataclass(frozen=True, slots=True)
class Opened:
    """The engine that answers, and what it said first."""

    engine: str
    started: inference_pb2.Started


Event = Opened | bytes | inference_pb2.Finished
"""What an answer consists of, in this order: one Opened, encoded deltas, one Finished."""

Prepare = Callable[[Engine, Collection[str]], tuple[Engine, inference_pb2.GenerateRequest]]
"""Of an engine of the model that was asked for, and the names of those that are not to be asked again: the engine that
is to answer, another one where its model answers in that one's place, and what to send it."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """An answer of which the caller has a part."""

    engine: str
    request: inference_pb2.GenerateRequest
    started: inference_pb2.Started
    sent_at: float
    first_at: float
    """Of its first piece; both on the engines' clock, in seconds."""


class Dispatcher:
    """Sends requests to engines.

    Args:
        stall_seconds: After so long, on the engines' clock, an engine is given up that sends nothing for a request and,
            by its load reports, gets on with no other either: waiting in a busy engine's queue is no stall.
    """

    def __init__(self, engines: Engines, stall_seconds: float, metrics: Metrics) -> None:
        self._engines = engines
        self._stall_seconds = stall_seconds
        self._interrupted = metrics.counter(
            "interrupted",
            "Answers whose engine was lost within them, each time: another went on (resumed), or none could (lost).",
            unit="answers",
            labels=("outcome",),
        )

    async def stream(
        self,
        model: str,
        prepare: Prepare,
        timeout_seconds: Callable[[], float | None],
        relayed: list[bytes],
    ) -> AsyncGenerator[Event]:
        """One answer, unbroken, however many engines it takes; each is tried once.

        Nothing is yielded before its first delta has come: until then any engine that serves the model can take over.
        Afterwards one with the very same weights goes on where the lost one stopped, and draws the same tokens.

        Args:
            model: By name, by "name@digest", or empty for any.
            prepare: Makes the request for the engine that it is sent to; called for each attempt until an answer has
                begun. The directive depends on the engine's model, so it is decided there, and which model answers is
                part of it.
            timeout_seconds: Wall time that is left; None without an end.
            relayed: Gets every delta before it is yielded; what the caller has of the answer is what it goes on from.

        Raises:
            PithError: UNAVAILABLE (NO_ENGINE, ENGINE_LOST), RESOURCE_EXHAUSTED (QUEUE_FULL: all are full), NOT_FOUND
                (no engine serves the model), DEADLINE_EXCEEDED, INTERNAL, or what the engine says of the request.
        """
        clock = self._engines.clock
        tried: list[str] = []
        refusal: PithError | None = None
        begun: _Begun | None = None
        answering = ""
        while engine := self._choose(model, tried, begun):
            asked = engine
            if begun is None:
                engine, request = prepare(asked, tried)
            else:
                request = _rest_of(begun, relayed)
            tried.append(engine.name)
            attempt = Attempt(engine, self._stall_seconds, clock, in_place_of_another=engine is not asked)
            try:
                sent_at = clock.monotonic()
                opening = await attempt.open(request, timeout_seconds())
                if begun is None:
                    begun = _Begun(engine.name, request, opening.started, sent_at, clock.monotonic())
                    yield Opened(engine.name, opening.started)
                else:
                    self._interrupted.labels("resumed").inc()
                    kept_tokens = len(request.resume.token_ids)
                    log.info("answer resumed", lost=answering, engine=engine.name, kept_tokens=kept_tokens)
                answering = engine.name
                event = opening.first
                while isinstance(event, bytes):
                    relayed.append(event)
                    yield event
                    event = await attempt.next()
                if engine.name != begun.engine:
                    # This engine knows of its own part only.
                    event.timings.first_token_seconds = begun.first_at - begun.sent_at
                    event.timings.decode_seconds = clock.monotonic() - begun.first_at
                yield event
                return
            except GivenUpError as given_up:
                # Where one engine is full and others are away, full is what the caller can wait for.
                if refusal is None or refusal.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refusal = given_up.error
                while given_up.of_model and (alike := self._engines.choose(engine.identity, tried)):
                    tried.append(alike.name)
            finally:
                attempt.close()
        if begun is None:
            raise refusal or self._engines.absent(model)
        self._interrupted.labels("lost").inc()
        message = f"engine {answering} was lost while it answered, and no other could go on"
        raise unavailable("ENGINE_LOST", message, RETRY_AFTER_SECONDS)

    def _choose(self, model: str, tried: Iterable[str], begun: _Begun | None) -> Engine | None:
        """The next engine to try, or None."""
        if begun is None:
            return self._engines.choose(model, set(tried))
        unfit = {
            view.name
            for view in self._engines.views()
            if view.model is None
            or view.model.model_digest != begun.started.model_digest
            or not view.model.accepts_resume
        }
        return self._engines.choose(begun.started.model, unfit.union(tried))


def _rest_of(begun: _Begun, relayed: Iterable[bytes]) -> inference_pb2.GenerateRequest:
    """The request for what is still to come of an answer. Its limits are those of the whole."""
    request = inference_pb2.GenerateRequest()
    request.CopyFrom(begun.request)
    request.token_ids.ids[:] = begun.started.prompt_token_ids
    request.sampling.seed = begun.started.seed
    resume = request.resume
    resume.model_digest = begun.started.model_digest
    for encoded in relayed:
        delta = inference_pb2.StreamGenerateResponse.FromString(encoded).delta
        resume.token_ids.extend(delta.token_ids)
        resume.delivered_bytes += len(delta.text.encode())
    return request
