"""The service that other backends call: decides, has an engine answer, and accounts for it."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

import grpc
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2
from pith.router.v1 import generation_pb2

from common.auth import Principal, RequestContext, Role, current_request
from common.clock import Clock
from common.errors import PithError, not_found, permission_denied
from common.grpc_server import Context
from router.accounting import Accountant, Answered, answer_text, record_id
from router.answers import Answers
from router.convert import from_decision, from_turns, to_turns
from router.directives.compile import Compiled, Turn, apply
from router.directives.decide import Decision, Facts, Reason, decide
from router.directives.levels import Directive
from router.fleet.dispatch import Dispatcher, Opened
from router.fleet.engines import Engine, Engines, model_identity
from router.snapshot import SnapshotKeeper
from router.validation import RequestLimits, check

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["Generation"]
ROLES = {
    "Generate": {Role.CLIENT, Role.EVALUATOR},
    "StreamGenerate": {Role.CLIENT, Role.EVALUATOR},
    "Decide": {Role.CLIENT, Role.EVALUATOR},
    "ReportOutcome": {Role.CLIENT},
    "RateAnswer": {Role.CLIENT},
}
"""Who may call what. The server answers UNIMPLEMENTED for the last two, which this version does not have."""

Event = generation_pb2.Started | bytes | generation_pb2.Finished
"""What an answer consists of, in this order: one Started, deltas as they are on the wire, one Finished."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer that was given; its deltas stay as they were relayed until somebody asks again."""

    started: generation_pb2.Started
    deltas: tuple[bytes, ...]
    finished: generation_pb2.Finished


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that was let in."""

    request: generation_pb2.GenerateRequest
    tenant: str
    request_id: str
    turns: tuple[Turn, ...]
    directive: Directive | None
    """What an evaluator asked for; None for all others."""
    started_at: datetime


class GenerationService:
    """pith.router.v1.Generation.

    The engine is chosen before the directive: a bound speaks of one model with one digest, and engines may differ in
    theirs. So the decision is made for the engine that is about to be called, anew for one that takes over before the
    answer has begun, and never after that: who goes on with an answer has the same digest.

    Args:
        rng: Draws seeds and the ids of requests that came without.
    """

    def __init__(
        self,
        keeper: SnapshotKeeper,
        engines: Engines,
        dispatcher: Dispatcher,
        answers: Answers[KeptAnswer],
        accountant: Accountant,
        clock: Clock,
        limits: RequestLimits,
        default_model: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self._keeper = keeper
        self._engines = engines
        self._dispatcher = dispatcher
        self._answers = answers
        self._accountant = accountant
        self._clock = clock
        self._limits = limits
        self._default_model = default_model
        self._rng = rng or random.Random()

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        response = generation_pb2.GenerateResponse()
        deltas: list[bytes] = []
        async with aclosing(self._answer(request)) as events:
            async for event in events:
                if isinstance(event, bytes):
                    deltas.append(event)
                elif isinstance(event, generation_pb2.Started):
                    response.started.CopyFrom(event)
                else:
                    response.finished.CopyFrom(event)
        response.text = answer_text(deltas)
        return response

    async def StreamGenerate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[generation_pb2.StreamGenerateResponse | bytes]:
        async with aclosing(self._answer(request)) as events:
            async for event in events:
                if isinstance(event, bytes):
                    yield event
                elif isinstance(event, generation_pb2.Started):
                    yield generation_pb2.StreamGenerateResponse(started=event)
                else:
                    yield generation_pb2.StreamGenerateResponse(finished=event)

    async def Decide(self, request: generation_pb2.DecideRequest, context: Context) -> generation_pb2.DecideResponse:
        admitted = self._admit(request.request, _caller().principal)
        model = request.request.model or self._default_model
        # A caller with engines of its own names its model as cells do, which is then taken at its word.
        decision = self._decide(admitted, self._engines.identity(model) or model)
        compiled = _compile(admitted, decision)
        return generation_pb2.DecideResponse(
            decision_id=record_id(admitted.tenant, admitted.request_id),
            decision=from_decision(decision),
            messages=from_turns(compiled.turns),
            sampling=_sampling(admitted.request.sampling, compiled),
            limits=_limits(compiled),
        )

    async def _answer(self, request: generation_pb2.GenerateRequest) -> AsyncGenerator[Event]:
        caller = _caller()
        admitted = self._admit(request, caller.principal)
        # A request that came without an id cannot be asked again.
        key = (admitted.tenant, admitted.request_id) if request.request_id else None
        kept = self._answers.begin(key) if key else None
        if kept is not None:
            for repeated in _replay(kept):
                yield repeated
            return
        seed = request.sampling.seed if request.sampling.HasField("seed") else self._rng.getrandbits(63)
        decision: Decision | None = None

        def prepare(engine: Engine) -> inference_pb2.GenerateRequest:
            nonlocal decision
            decision = self._decide(admitted, engine.identity)
            return _engine_request(admitted, engine, decision, seed)

        began = self._clock.monotonic()
        model = request.model or self._default_model
        started = generation_pb2.Started()
        opened: Opened | None = None
        deltas: list[bytes] = []
        try:
            stream = self._dispatcher.stream(model, prepare, caller.remaining_seconds, deltas)
            async with aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, bytes):
                        yield event
                    elif isinstance(event, Opened):
                        opened = event
                        assert decision is not None
                        started = generation_pb2.Started(
                            request_id=admitted.request_id,
                            decision=from_decision(decision),
                            engine=event.engine,
                            seed=seed,
                        )
                        yield started
                    else:
                        assert opened is not None and decision is not None
                        answered = Answered(
                            request=request,
                            tenant=admitted.tenant,
                            request_id=admitted.request_id,
                            turns=admitted.turns,
                            decision=decision,
                            model=model_identity(opened.started.model, opened.started.model_digest),
                            engine=opened.engine,
                            seed=seed,
                            finished=event,
                            started_at=admitted.started_at,
                            seconds=self._clock.monotonic() - began,
                        )
                        finished = self._accountant.settle(answered, lambda: answer_text(deltas))
                        # Before the caller hears of the end: who asks again after that gets this very answer.
                        if key:
                            answer = KeptAnswer(started, tuple(deltas), finished)
                            self._answers.finish(key, answer, sum(map(len, deltas)))
                        yield finished
        finally:
            if key:
                self._answers.release(key)

    def _admit(self, request: generation_pb2.GenerateRequest, principal: Principal) -> _Admitted:
        """Checks all that can be known before an engine is."""
        check(request, self._limits)
        directive = None
        if request.HasField("evaluation"):
            if principal.role not in (Role.EVALUATOR, Role.ADMIN):
                raise permission_denied(principal.role, (Role.EVALUATOR, Role.ADMIN))
            directive = self._keeper.snapshot.directives.get(request.evaluation.directive)
            if directive is None:
                raise not_found("directive", request.evaluation.directive)
        return _Admitted(
            request=request,
            tenant=_tenant(request.tenant, principal),
            request_id=request.request_id or f"{self._rng.getrandbits(128):032x}",
            turns=to_turns(request.messages),
            directive=directive,
            started_at=self._clock.now(),
        )

    def _decide(self, admitted: _Admitted, model: str) -> Decision:
        if admitted.directive is not None:
            why = f"an evaluator asked for {admitted.directive.name}"
            return Decision(admitted.directive, Reason.EVALUATION, why, planned=admitted.directive.name)
        request = admitted.request
        facts = Facts(
            tenant=admitted.tenant,
            task=request.task,
            model=model,
            key=request.conversation_id or admitted.request_id,
            request_id=admitted.request_id,
            opt_out=request.opt_out,
            floor=request.floor if request.HasField("floor") else None,
        )
        return decide(facts, self._keeper.snapshot, self._clock.now())


def _caller() -> RequestContext:
    caller = current_request()
    assert caller is not None, "only called through the server, which enters a request"
    return caller


def _tenant(asked: str, principal: Principal) -> str:
    if asked in ("", principal.tenant):
        return principal.tenant
    if principal.role is Role.CLIENT:
        raise PithError(
            grpc.StatusCode.PERMISSION_DENIED,
            "ROLE_NOT_ALLOWED",
            f"tenant: is {asked!r}; a client's token speaks for its own tenant only, {principal.tenant!r}",
            metadata={"role": principal.role, "needed": f"{Role.ADMIN}, {Role.EVALUATOR}"},
        )
    return asked


def _compile(admitted: _Admitted, decision: Decision) -> Compiled:
    limits, sampling = admitted.request.limits, admitted.request.sampling
    return apply(decision.directive, admitted.turns, limits.max_output_tokens, limits.stop, sampling.suppressed_words)


def _engine_request(
    admitted: _Admitted, engine: Engine, decision: Decision, seed: int
) -> inference_pb2.GenerateRequest:
    compiled = _compile(admitted, decision)
    sampling = _sampling(admitted.request.sampling, compiled)
    sampling.seed = seed
    return inference_pb2.GenerateRequest(
        # By name: an engine that has changed its model since it was asked says so instead of answering.
        model=engine.info.model if engine.info else "",
        messages=text_pb2.Messages(messages=from_turns(compiled.turns)),
        sampling=sampling,
        limits=_limits(compiled),
    )


def _sampling(asked: text_pb2.Sampling, compiled: Compiled) -> text_pb2.Sampling:
    sampling = text_pb2.Sampling()
    sampling.CopyFrom(asked)
    sampling.suppressed_words[:] = compiled.suppressed_words
    return sampling


def _limits(compiled: Compiled) -> text_pb2.Limits:
    return text_pb2.Limits(max_output_tokens=compiled.max_output_tokens, stop=compiled.stop)


def _replay(kept: KeptAnswer) -> Sequence[Event]:
    started = generation_pb2.Started()
    started.CopyFrom(kept.started)
    started.replayed = True
    if not kept.deltas:
        return started, kept.finished
    whole = text_pb2.Delta()
    texts: list[str] = []
    for encoded in kept.deltas:
        delta = generation_pb2.StreamGenerateResponse.FromString(encoded).delta
        texts.append(delta.text)
        whole.token_ids.extend(delta.token_ids)
        whole.logprobs.extend(delta.logprobs)
    whole.text = "".join(texts)
    return started, generation_pb2.StreamGenerateResponse(delta=whole).SerializeToString(), kept.finished
