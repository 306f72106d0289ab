"""The service that other backends call: decides, has an engine answer, and accounts for it."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2
from pith.router.v1 import generation_pb2

from common.auth import RequestContext, Role, current_request, note_asked
from common.clock import Clock
from common.grpc_server import Context
from router.accounting import Accountant, Answered, answer_text
from router.admission import Admission, Admitted
from router.answers import Answers
from router.convert import from_decision, from_turns
from router.directives.compile import Compiled, apply
from router.directives.decide import Decision
from router.fleet.dispatch import Dispatcher, Opened
from router.fleet.engine import Engine
from router.fleet.engines import Engines
from router.outcomes import Outcomes
from router.policy_messages import from_variables
from router.validation import check_other_models

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["Generation"]
ROLES = {
    "Generate": {Role.CLIENT, Role.EVALUATOR},
    "StreamGenerate": {Role.CLIENT, Role.EVALUATOR},
    "Decide": {Role.CLIENT, Role.EVALUATOR},
    "ReportOutcome": {Role.CLIENT},
    "RateAnswer": {Role.CLIENT},
}
"""Who may call what."""

Event = generation_pb2.Started | bytes | generation_pb2.Finished
"""What an answer consists of, in this order: one Started, deltas as they are on the wire, one Finished."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer that was given; its deltas stay as they were relayed until somebody asks again."""

    started: generation_pb2.Started
    deltas: tuple[bytes, ...]
    finished: generation_pb2.Finished


class GenerationService:
    """pith.router.v1.Generation.

    The engine is chosen before the directive: a bound speaks of one model with one digest, and engines may differ in
    theirs. So the decision is made for the engine that is about to be called, anew for one that takes over before the
    answer has begun, and never after that: who goes on with an answer has the same digest. Where the directive names
    another model, an engine of that is called instead; bounds, costs and ledger stay those of the model asked for.

    Args:
        rng: Draws seeds.
    """

    def __init__(
        self,
        admission: Admission,
        engines: Engines,
        dispatcher: Dispatcher,
        answers: Answers[KeptAnswer],
        accountant: Accountant,
        outcomes: Outcomes,
        clock: Clock,
        default_model: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self._admission = admission
        self._engines = engines
        self._dispatcher = dispatcher
        self._answers = answers
        self._accountant = accountant
        self._outcomes = outcomes
        self._clock = clock
        self._default_model = default_model
        self._rng = rng or random.Random()

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        response = generation_pb2.GenerateResponse()
        deltas: list[bytes] = []
        admitted = self._admission.admit(request, _caller().principal)
        with self._admission.limited(admitted):
            async with aclosing(self._answer(admitted)) as events:
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
        admitted = self._admission.admit(request, _caller().principal)
        with self._admission.limited(admitted):
            async with aclosing(self._answer(admitted)) as events:
                async for event in events:
                    if isinstance(event, bytes):
                        yield event
                    elif isinstance(event, generation_pb2.Started):
                        yield generation_pb2.StreamGenerateResponse(started=event)
                    else:
                        yield generation_pb2.StreamGenerateResponse(finished=event)

    async def Decide(self, request: generation_pb2.DecideRequest, context: Context) -> generation_pb2.DecideResponse:
        check_other_models(request.other_models)
        admitted = self._admission.admit(request.request, _caller().principal)
        asked = request.request.model or self._default_model
        served = self._engines.identity(asked)
        # A caller with engines of its own names its model as cells do, which is then taken at its word.
        model = served or asked
        with self._admission.limited(admitted):
            decision = self._admission.decide(admitted, model, lambda: request.other_models)
        compiled = _compile(admitted, decision)
        # A sample's other levels are generated here.
        wanted = served != "" and self._accountant.sample_wanted(admitted.request, admitted.request_id, decision)
        key = (admitted.tenant, admitted.request_id)
        return generation_pb2.DecideResponse(
            decision_id=self._outcomes.seal(admitted.request, key, model, decision, sample_wanted=wanted),
            decision=from_decision(decision),
            messages=from_turns(compiled.turns),
            sampling=_sampling(admitted.request.sampling, compiled),
            limits=_limits(compiled),
            template_variables=from_variables(compiled.template_variables),
            sample_wanted=wanted,
        )

    async def ReportOutcome(
        self, request: generation_pb2.ReportOutcomeRequest, context: Context
    ) -> generation_pb2.ReportOutcomeResponse:
        caller = _caller().principal
        with self._admission.of_tenant(caller.tenant):
            self._outcomes.report(request, caller)
        return generation_pb2.ReportOutcomeResponse()

    async def RateAnswer(
        self, request: generation_pb2.RateAnswerRequest, context: Context
    ) -> generation_pb2.RateAnswerResponse:
        note_asked(request.request_id)
        caller = _caller().principal
        with self._admission.of_tenant(caller.tenant):
            await self._outcomes.rate(request, caller)
        return generation_pb2.RateAnswerResponse()

    async def _answer(self, admitted: Admitted) -> AsyncGenerator[Event]:
        caller, request = _caller(), admitted.request
        # A request that came without an id cannot be asked again.
        key = (admitted.tenant, admitted.request_id) if request.request_id else None
        kept = self._answers.begin(key) if key else None
        if kept is not None:
            for repeated in _replay(kept):
                yield repeated
            return
        seed = request.sampling.seed if request.sampling.HasField("seed") else self._rng.getrandbits(63)
        decision: Decision | None = None
        asked_for = judged = ""
        model = request.model or self._default_model
        if admitted.directive is not None and admitted.directive.model:
            # An evaluator wants this model's answer, and nothing in its place.
            judged, model = self._engines.identity(model) or model, admitted.directive.model

        def prepare(engine: Engine, tried: Collection[str]) -> tuple[Engine, inference_pb2.GenerateRequest]:
            nonlocal decision, asked_for
            asked_for = judged or engine.identity
            decision = self._admission.decide(admitted, asked_for, lambda: self._engines.accepting(tried))
            other = decision.directive.model
            if other and other != asked_for:
                found = self._engines.choose(other, tried)
                # The decision was made from those that accept requests.
                if found is None:
                    raise self._engines.absent(other)
                engine = found
            return engine, _engine_request(admitted, engine, decision, seed)

        began = self._clock.monotonic()
        started = generation_pb2.Started()
        opened: Opened | None = None
        settled = False
        deltas: list[bytes] = []

        def answered(finished: inference_pb2.Finished, request_id: str) -> Answered:
            assert opened is not None and decision is not None
            return Answered(
                request=request,
                tenant=admitted.tenant,
                request_id=request_id,
                turns=admitted.turns,
                decision=decision,
                model=asked_for,
                engine=opened.engine,
                seed=seed,
                finished=finished,
                started_at=admitted.started_at,
                seconds=self._clock.monotonic() - began,
            )

        try:
            self._admission.check_budget(admitted)
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
                        settled = True
                        whole = answered(event, admitted.request_id)
                        finished = self._accountant.settle(whole, lambda: answer_text(deltas))
                        # Before the caller hears of the end: who asks again after that gets this very answer.
                        if key:
                            answer = KeptAnswer(started, tuple(deltas), finished)
                            self._answers.finish(key, answer, sum(map(len, deltas)))
                        else:
                            self._answers.remember([(admitted.tenant, admitted.request_id)])
                        yield finished
        finally:
            if opened is not None and not settled:
                # Whose client went away, whose time was up, whose engine was lost: its tokens were made all the same.
                # The id stays free for the whole answer.
                broken_off = f"{admitted.request_id}@{admitted.started_at.isoformat()}"
                self._accountant.settle(answered(_broken_off(opened, deltas), broken_off), None, sampled=False)
            if key:
                self._answers.release(key)


def _broken_off(opened: Opened, deltas: Sequence[bytes]) -> inference_pb2.Finished:
    """As much of an end as is known of an answer that has none; what energy it took is not."""
    pieces = (inference_pb2.StreamGenerateResponse.FromString(delta).delta for delta in deltas)
    usage = text_pb2.Usage(
        prompt_tokens=len(opened.started.prompt_token_ids),
        output_tokens=sum(len(piece.token_ids) for piece in pieces),
    )
    return inference_pb2.Finished(reason=text_pb2.FINISH_REASON_ABORTED, usage=usage)


def _caller() -> RequestContext:
    caller = current_request()
    assert caller is not None, "only called through the server, which enters a request"
    return caller


def _compile(admitted: Admitted, decision: Decision) -> Compiled:
    limits, sampling = admitted.request.limits, admitted.request.sampling
    return apply(decision.directive, admitted.turns, limits.max_output_tokens, limits.stop, sampling.suppressed_words)


def _engine_request(admitted: Admitted, engine: Engine, decision: Decision, seed: int) -> inference_pb2.GenerateRequest:
    compiled = _compile(admitted, decision)
    sampling = _sampling(admitted.request.sampling, compiled)
    sampling.seed = seed
    return inference_pb2.GenerateRequest(
        # By name: an engine that has changed its model since it was asked says so instead of answering.
        model=engine.info.model if engine.info else "",
        messages=text_pb2.Messages(
            messages=from_turns(compiled.turns), template_variables=from_variables(compiled.template_variables)
        ),
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
