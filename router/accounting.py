"""What a request cost, once it is answered: energy, carbon, its ledger entry, and its sample where one is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2
from pith.router.v1 import generation_pb2

from common.carbon.accounting import CarbonSettings, Footprint, footprint
from common.carbon.intensity import IntensityProvider
from common.clock import Clock
from common.energy.reading import Energy
from common.metrics import Metrics
from common.quality.bound import Cell
from router.convert import from_energy, from_footprint, to_energy, to_json
from router.directives.assign import uniform
from router.directives.compile import Turn
from router.directives.decide import Decision, Reason
from router.directives.policy import Mode
from router.ledger import Ledger, LedgerEntry
from router.optimizer.costs import CostBook
from router.optimizer.latency import LatencyBook
from router.optimizer.pricing import Lengths
from router.redaction import Redaction
from router.samples import Answer, Sample, sample_id
from router.spending import Spending


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that an engine has answered: one of ours, or its caller's own."""

    request: generation_pb2.GenerateRequest
    tenant: str
    request_id: str
    turns: tuple[Turn, ...]
    """As they came: no directive is in them."""
    decision: Decision
    model: str
    """Name and digest of the model that was asked for, as cells have it; the directive says where another answered."""
    engine: str
    """That began the answer; it need not have ended it. Empty for the caller's own."""
    seed: int | None
    """None where a caller's own engine had one that is not known."""
    finished: inference_pb2.Finished
    started_at: datetime
    seconds: float
    """0 where a caller's own engine took a time that is not known."""


class Accountant:
    """Settles answered requests. Does no I/O, so that it may run before the caller hears of the end.

    Args:
        grid: Intensities of an engine's zone, by the engine's name; of the empty one, those of callers' own engines.
        costs, latencies: Learn what requests cost and how long their answers take, for the planner.
        spending: Learns what policies' requests have emitted today.
        redaction: What samples go through before anything keeps them.
        serves: Whether an engine of ours has the model: then what callers tell of engines of their own teaches nothing.
        secret: By which samples are drawn and named: callers choose the ids of their requests, and not what is sampled.
    """

    def __init__(
        self,
        ledger: Ledger,
        costs: CostBook,
        grid: Callable[[str], IntensityProvider],
        carbon: CarbonSettings,
        clock: Clock,
        metrics: Metrics,
        latencies: LatencyBook,
        spending: Spending,
        redaction: Redaction,
        serves: Callable[[str], bool],
        secret: bytes,
    ) -> None:
        self._serves = serves
        self._secret = secret
        self._ledger = ledger
        self._costs = costs
        self._grid = grid
        self._carbon = carbon
        self._clock = clock
        self._latencies = latencies
        self._spending = spending
        self._redaction = redaction
        purpose = ("purpose",)
        self._decisions = metrics.counter(
            "decisions", "Requests answered, by directive and reason.", unit="requests", labels=("directive", "reason")
        )
        self._tokens = metrics.counter(
            "served", "Tokens of answered requests.", unit="tokens", labels=("kind", *purpose)
        )
        self._joules = metrics.counter(
            "energy", "Energy of answered requests, where known.", unit="joules", labels=purpose
        )
        self._grams = metrics.counter(
            "carbon",
            "gCO2eq of answered requests, where known; not to be added over signals.",
            unit="grams",
            labels=("part", *purpose, "signal"),
        )

    def settle(
        self, answered: Answered, text: Callable[[], str] | None, *, sampled: bool = True
    ) -> generation_pb2.Finished:
        """Records an answered request, once; returns what its caller is told.

        Args:
            text: The answer; only called where a sample of it is kept. None: a sample is kept without it.
            sampled: Whether a sample may be kept.
        """
        # A caller tells of its own engine's answer when it likes; the grid that counts is that of the answer's time.
        now = min(self._clock.now(), answered.started_at + timedelta(seconds=answered.seconds))
        finished = answered.finished
        energy = _energy(finished)
        busy_seconds = finished.busy_seconds if _is_amount(finished.busy_seconds) else 0.0
        intensity = self._grid(answered.engine).current(now)
        carbon = footprint(energy, busy_seconds, intensity, self._carbon)
        entry = _entry(answered, energy, busy_seconds, carbon)
        self._spending.settled(entry)
        sample = self._sample(answered, now, text) if sampled else None
        self._ledger.record(entry, None if sample is None else self._redaction.sample(sample))
        self._learn(answered, energy, busy_seconds)
        self._count(answered, energy, carbon)
        return generation_pb2.Finished(
            reason=finished.reason,
            usage=finished.usage,
            timings=finished.timings,
            energy=None if energy is None else from_energy(energy),
            carbon=None if carbon is None else from_footprint(carbon, now),
        )

    def sample_wanted(self, request: generation_pb2.GenerateRequest, request_id: str, decision: Decision) -> bool:
        """Drawn by request id alone, so that the samples are a uniform share of all requests that may have a directive,
        whatever they were served: of what is left alone, a bound need say nothing."""
        policy = decision.policy
        return (
            policy is not None
            and policy.mode is not Mode.OFF
            and decision.reason is not Reason.LEFT_ALONE
            and not request.opt_out
            and generation_pb2.TRAIT_OPT_OUT not in request.traits
            and uniform("sample", self._secret.hex(), request_id) < policy.sample_share
        )

    def _sample(self, answered: Answered, now: datetime, text: Callable[[], str] | None) -> Sample | None:
        policy, request = answered.decision.policy, answered.request
        if (
            policy is None
            or answered.finished.reason == text_pb2.FINISH_REASON_ABORTED
            or not self.sample_wanted(request, answered.request_id, answered.decision)
        ):
            return None
        sampling = text_pb2.Sampling()
        sampling.CopyFrom(request.sampling)
        if answered.seed is not None:
            sampling.seed = answered.seed
        limits = text_pb2.Limits()
        limits.CopyFrom(request.limits)
        # They are the caller's words too.
        sampling.suppressed_words[:] = map(self._redaction.text, sampling.suppressed_words)
        limits.stop[:] = map(self._redaction.text, limits.stop)
        directive, tokens = answered.decision.directive, answered.finished.usage.output_tokens
        return Sample(
            sample_id=sample_id(self._secret, answered.tenant, answered.request_id, answered.started_at),
            tenant=answered.tenant,
            model=answered.model,
            task=request.task,
            turns=answered.turns,
            sampling_json=to_json(sampling),
            limits_json=to_json(limits),
            reference=request.reference,
            grader=policy.grader,
            served_at=now,
            answers=() if text is None else (Answer(directive.name, directive.revision, text(), tokens),),
        )

    def _learn(self, answered: Answered, energy: Energy | None, busy_seconds: float) -> None:
        # Evaluation is left out: at a quiet hour an engine shares each step among fewer requests, so that the same
        # request costs more than in traffic, and a directive would look dearer than it is.
        if answered.decision.reason is Reason.EVALUATION or (not answered.engine and self._serves(answered.model)):
            return
        cell = Cell(answered.model, answered.request.task, answered.decision.directive.name)
        # Who gave up waiting does not tell how long the answer would have taken.
        if answered.finished.reason != text_pb2.FINISH_REASON_ABORTED:
            self._latencies.observe(cell, answered.seconds)
        usage = answered.finished.usage
        # No prompt has 0 tokens: who says so has not told its lengths.
        lengths = None
        if usage.prompt_tokens:
            lengths = Lengths.of(usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
        if lengths is not None or energy is not None:
            self._costs.observe(cell, None if energy is None else energy.joules, busy_seconds, lengths)

    def _count(self, answered: Answered, energy: Energy | None, carbon: Footprint | None) -> None:
        purpose = "evaluation" if answered.decision.reason is Reason.EVALUATION else "serving"
        usage = answered.finished.usage
        self._decisions.labels(answered.decision.directive.name, answered.decision.reason.value).inc()
        self._tokens.labels("prompt", purpose).inc(usage.prompt_tokens)
        self._tokens.labels("output", purpose).inc(usage.output_tokens)
        if energy is not None:
            self._joules.labels(purpose).inc(energy.joules)
        if carbon is not None:
            signal = str(carbon.intensity.signal)
            self._grams.labels("operational", purpose, signal).inc(carbon.operational_grams)
            self._grams.labels("embodied", purpose, signal).inc(carbon.embodied_grams)


def _energy(finished: inference_pb2.Finished) -> Energy | None:
    # An engine that reports nonsense has told nothing.
    if finished.HasField("energy") and _is_amount(finished.energy.joules):
        return to_energy(finished.energy)
    return None


def _is_amount(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _entry(answered: Answered, energy: Energy | None, busy_seconds: float, carbon: Footprint | None) -> LedgerEntry:
    decision, finished = answered.decision, answered.finished
    return LedgerEntry(
        tenant=answered.tenant,
        request_id=answered.request_id,
        task=answered.request.task,
        model=answered.model,
        directive=decision.directive.name,
        directive_revision=decision.directive.revision,
        reason=decision.reason.value,
        planned=decision.planned,
        policy=decision.policy.name if decision.policy else "",
        policy_revision=decision.policy.revision if decision.policy else 0,
        eligible=decision.eligible,
        evaluation_sample_id=answered.request.evaluation.sample_id,
        prompt_tokens=finished.usage.prompt_tokens,
        cached_tokens=finished.usage.cached_tokens,
        output_tokens=finished.usage.output_tokens,
        energy=energy,
        busy_seconds=busy_seconds,
        operational_grams=carbon.operational_grams if carbon else None,
        embodied_grams=carbon.embodied_grams if carbon else None,
        intensity=carbon.intensity if carbon else None,
        engine=answered.engine,
        seed=answered.seed,
        finish_reason=finish_reason(finished.reason),
        started_at=answered.started_at,
        seconds=answered.seconds,
        pue=carbon.pue if carbon else None,
    )


def finish_reason(reason: text_pb2.FinishReason.ValueType) -> str:
    """The contract's name without its prefix; a number for one of a later version."""
    known = text_pb2.FinishReason.values()
    return text_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_") if reason in known else str(int(reason))


def answer_text(deltas: Sequence[bytes]) -> str:
    """The text of relayed deltas."""
    return "".join(inference_pb2.StreamGenerateResponse.FromString(delta).delta.text for delta in deltas)
