"""Between protobuf messages and what the evaluator works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import feedback_pb2, generation_pb2, policies_pb2

from common.carbon.intensity import Scope, Signal, SignalKind
from common.quality.bound import (
    Cell,
    EpochReason,
    EpochStart,
    Floor,
    FloorKind,
    PairedScore,
    QualityBound,
    is_of_future,
)
from common.quality.interval import Interval
from common.quality.mix import Part, TaskMix
from common.quality.pairwise import Comparison
from evaluator.samples import Answer, EvaluationPlan, Sample, Target, Turn


def to_time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


_FLOOR_KINDS = {
    policies_pb2.FLOOR_KIND_RELATIVE: FloorKind.RELATIVE,
    policies_pb2.FLOOR_KIND_ABSOLUTE: FloorKind.ABSOLUTE,
}
_KINDS = {
    energy_pb2.SIGNAL_KIND_AVERAGE: SignalKind.AVERAGE,
    energy_pb2.SIGNAL_KIND_MARGINAL: SignalKind.MARGINAL,
}
_ROLES = {text_pb2.ROLE_SYSTEM: "system", text_pb2.ROLE_USER: "user", text_pb2.ROLE_ASSISTANT: "assistant"}
_SCOPES = {
    energy_pb2.EMISSION_SCOPE_DIRECT: Scope.DIRECT,
    energy_pb2.EMISSION_SCOPE_LIFECYCLE: Scope.LIFECYCLE,
}


def from_time(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def to_cell(message: feedback_pb2.Cell) -> Cell:
    return Cell(message.model, message.task, message.directive, message.tenant)


def from_cell(cell: Cell) -> feedback_pb2.Cell:
    return feedback_pb2.Cell(model=cell.model, task=cell.task, directive=cell.directive, tenant=cell.tenant)


def to_plan(message: feedback_pb2.EvaluationPlan) -> EvaluationPlan:
    """Raises ValueError for a floor outside (0, 1]."""
    now = to_time(message.now)
    last_reported_at = to_time(message.last_reported_at) if message.HasField("last_reported_at") else None
    if last_reported_at is not None and is_of_future(last_reported_at, now):
        # The clock has gone back: how long ago that was is not known, and to wait until then would be no use.
        last_reported_at = None
    return EvaluationPlan(
        targets=tuple(_to_target(target) for target in message.targets),
        intensities=tuple((to_time(point.at), point.g_per_kwh) for point in message.intensities),
        now=now,
        last_reported_at=last_reported_at,
        withdrawals=tuple(to_withdrawal(withdrawal) for withdrawal in message.withdrawals),
    )


def _to_target(message: feedback_pb2.EvaluationPlan.Target) -> Target:
    return Target(
        cell=to_cell(message.cell),
        # A kind of a later version is nothing that this one could hold a bound against.
        floors=tuple(Floor(f.quality, _FLOOR_KINDS[f.kind]) for f in message.floors if f.kind in _FLOOR_KINDS),
        grader=message.grader,
        revision=message.directive_revision,
        waiting=message.samples_waiting,
        relative_carbon=message.relative_carbon if message.HasField("relative_carbon") else None,
        worthwhile=message.worthwhile_samples,
        judge=message.bound.judge,
        mix=TaskMix(_to_parts(message.mix.lengths), _to_parts(message.mix.tenants))
        if message.HasField("mix")
        else None,
    )


def _to_parts(parts: Iterable[feedback_pb2.EvaluationPlan.Part]) -> Mapping[str, Part]:
    return {part.category: Part(part.before, part.recent) for part in parts}


def to_signal(message: energy_pb2.Intensity) -> Signal | None:
    """What grams at this intensity count; None where a half of it is unspecified, or of a later version."""
    if message.kind not in _KINDS or message.scope not in _SCOPES:
        return None
    return Signal(_KINDS[message.kind], _SCOPES[message.scope])


def to_sample(message: feedback_pb2.Sample) -> Sample:
    request = generation_pb2.GenerateRequest(
        task=message.task,
        model=message.model,
        messages=message.messages,
        sampling=message.sampling,
        limits=message.limits,
        evaluation=generation_pb2.EvaluationPurpose(sample_id=message.sample_id),
    )
    return Sample(
        sample_id=message.sample_id,
        model=message.model,
        task=message.task,
        reference=message.reference,
        grader=message.grader,
        served_at=to_time(message.served_at),
        answers=tuple(
            Answer(answer.directive, answer.directive_revision, answer.text, answer.output_tokens)
            for answer in message.answers
        ),
        request=request.SerializeToString(),
        turns=tuple(Turn(_ROLES.get(turn.role, "user"), turn.content) for turn in message.messages),
        tenant=message.tenant,
    )


def from_answer(answer: Answer) -> feedback_pb2.Answer:
    return feedback_pb2.Answer(
        directive=answer.directive,
        directive_revision=answer.revision,
        text=answer.text,
        output_tokens=answer.output_tokens,
    )


def to_score(message: feedback_pb2.ListScoresResponse.ScoredSample) -> PairedScore:
    """Raises ValueError for a quality outside [0, 1]."""
    return PairedScore(
        cell=to_cell(message.cell),
        sample_id=message.sample_id,
        quality=message.score.quality,
        baseline_quality=message.score.baseline_quality,
        judge=message.score.judge,
        revision=str(message.score.directive_revision),
        scored_at=to_time(message.scored_at),
        comparison=_to_comparison(message.score.comparison) if message.score.HasField("comparison") else None,
        tenant=message.tenant,
    )


def from_score(score: PairedScore) -> feedback_pb2.Score:
    return feedback_pb2.Score(
        directive=score.cell.directive,
        directive_revision=int(score.revision),
        quality=score.quality,
        baseline_quality=score.baseline_quality,
        judge=score.judge,
        comparison=None if score.comparison is None else feedback_pb2.Comparison(**asdict(score.comparison)),
    )


def _to_comparison(message: feedback_pb2.Comparison) -> Comparison:
    return Comparison(message.characters, message.baseline_characters, message.shown_first, message.shown_second)


def from_bound(bound: QualityBound) -> feedback_pb2.QualityBound:
    return feedback_pb2.QualityBound(
        cell=from_cell(bound.cell),
        lower=bound.lower,
        upper=bound.upper,
        share=bound.share,
        absolute_lower=bound.absolute_lower,
        absolute_upper=bound.absolute_upper if bound.absolute_upper < 1 else None,
        samples=bound.samples,
        judge=bound.judge,
        directive_revision=int(bound.revision),
        updated_at=from_time(bound.updated_at),
        method=feedback_pb2.BoundMethod.Value(f"BOUND_METHOD_{bound.method}"),
        raw=None if bound.raw is None else feedback_pb2.QualityBound.RawShare(**asdict(bound.raw)),
        since=None if bound.since is None else from_time(bound.since),
    )


def to_withdrawal(message: feedback_pb2.Withdrawal) -> EpochStart:
    """Raises ValueError where the reason is not known."""
    floor = message.floor if message.HasField("floor") and message.floor.kind in _FLOOR_KINDS else None
    return EpochStart(
        to_cell(message.cell),
        message.judge,
        EpochReason(feedback_pb2.WithdrawalReason.Name(message.reason).removeprefix("WITHDRAWAL_REASON_")),
        to_time(message.withdrawn_at),
        None if floor is None else Floor(floor.quality, _FLOOR_KINDS[floor.kind]),
    )


def from_withdrawal(start: EpochStart) -> feedback_pb2.Withdrawal:
    kinds = {kind: value for value, kind in _FLOOR_KINDS.items()}
    floor = start.floor
    return feedback_pb2.Withdrawal(
        cell=from_cell(start.cell),
        judge=start.judge,
        reason=feedback_pb2.WithdrawalReason.Value(f"WITHDRAWAL_REASON_{start.reason}"),
        floor=None
        if floor is None
        else feedback_pb2.EvaluationPlan.Floor(quality=floor.quality, kind=kinds[floor.kind]),
        withdrawn_at=from_time(start.at),
    )


def from_interval(interval: Interval | None) -> energy_pb2.Interval | None:
    if interval is None:
        return None
    return energy_pb2.Interval(
        value=interval.value,
        lower=interval.lower,
        upper=interval.upper,
        confidence=interval.confidence,
        method=interval.method,
    )
