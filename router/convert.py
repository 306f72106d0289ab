"""Between the contract's messages and the dataclasses inside. Nothing is checked here but that enums are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import feedback_pb2, generation_pb2, reports_pb2

from common.carbon.accounting import Footprint
from common.carbon.intensity import Intensity, Scope, Signal, SignalKind
from common.energy.reading import Energy, EnergySource
from common.energy.sweet_spot import SweetSpot
from common.quality.bound import BoundMethod, Cell, QualityBound, RawShare
from common.quality.interval import Interval
from common.quality.pairwise import Comparison
from router.counterfactual import Counterfactual
from router.directives.compile import Turn
from router.directives.decide import Decision, Reason
from router.fleet.view import EngineView
from router.optimizer.pricing import EnergyModel
from router.samples import Answer, Sample, Score

_ROLES = {number: name.removeprefix("ROLE_").lower() for name, number in text_pb2.Role.items()}
_ROLE_NUMBERS = {role: number for number, role in _ROLES.items()}
_REASONS = {reason: generation_pb2.DecisionReason.Value(f"DECISION_REASON_{reason.name}") for reason in Reason}


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def moment(message: Timestamp) -> datetime:
    """Raises ValueError where the message is out of range."""
    return message.ToDatetime(tzinfo=UTC)


def from_decision(decision: Decision) -> generation_pb2.Decision:
    return generation_pb2.Decision(
        directive=decision.directive.name,
        reason=from_reason(decision.reason),
        explanation=decision.explanation,
        policy=decision.policy.name if decision.policy else "",
        policy_revision=decision.policy.revision if decision.policy else 0,
        planned_directive=decision.planned if decision.reason in (Reason.SHADOW, Reason.HOLDBACK) else "",
        bound=decision.bound,
        floor=decision.floor,
        task=decision.task,
        task_told=decision.task_told,
        model=decision.directive.model,
    )


def from_reason(reason: Reason) -> generation_pb2.DecisionReason.ValueType:
    return _REASONS[reason]


def to_cell(message: feedback_pb2.Cell) -> Cell:
    return Cell(message.model, message.task, message.directive, message.tenant)


def from_cell(cell: Cell) -> feedback_pb2.Cell:
    return feedback_pb2.Cell(model=cell.model, task=cell.task, directive=cell.directive, tenant=cell.tenant)


def to_bound(message: feedback_pb2.QualityBound) -> QualityBound:
    """Raises ValueError where a time is out of range, or the method is not known."""
    raw = message.raw
    return QualityBound(
        cell=to_cell(message.cell),
        lower=message.lower,
        upper=message.upper,
        share=message.share if message.HasField("share") else None,
        absolute_lower=message.absolute_lower,
        absolute_upper=message.absolute_upper if message.HasField("absolute_upper") else 1.0,
        samples=message.samples,
        judge=message.judge,
        revision=str(message.directive_revision),
        updated_at=moment(message.updated_at),
        method=_to_method(message.method),
        raw=RawShare(raw.lower, raw.upper, raw.share if raw.HasField("share") else None)
        if message.HasField("raw")
        else None,
        since=moment(message.since) if message.HasField("since") else None,
    )


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
        updated_at=timestamp(bound.updated_at),
        method=feedback_pb2.BoundMethod.Value(f"BOUND_METHOD_{bound.method}"),
        raw=None if bound.raw is None else feedback_pb2.QualityBound.RawShare(**asdict(bound.raw)),
        since=None if bound.since is None else timestamp(bound.since),
    )


def _to_method(method: feedback_pb2.BoundMethod.ValueType) -> BoundMethod:
    if method == feedback_pb2.BOUND_METHOD_UNSPECIFIED:
        return BoundMethod.BETTING
    return BoundMethod(feedback_pb2.BoundMethod.Name(method).removeprefix("BOUND_METHOD_"))


def to_turns(messages: Iterable[text_pb2.Message]) -> tuple[Turn, ...]:
    """Raises KeyError for a role that is not known."""
    return tuple([Turn(_ROLES[message.role], message.content) for message in messages])


def from_turns(turns: Iterable[Turn]) -> Sequence[text_pb2.Message]:
    return [text_pb2.Message(role=_ROLE_NUMBERS[turn.role], content=turn.content) for turn in turns]


def to_json(message: text_pb2.Sampling | text_pb2.Limits) -> str:
    """As samples keep sampling and limits."""
    return json_format.MessageToJson(message, indent=None)


def from_sample(sample: Sample) -> feedback_pb2.Sample:
    return feedback_pb2.Sample(
        sample_id=sample.sample_id,
        model=sample.model,
        task=sample.task,
        messages=from_turns(sample.turns),
        sampling=json_format.Parse(sample.sampling_json, text_pb2.Sampling()),
        limits=json_format.Parse(sample.limits_json, text_pb2.Limits()),
        reference=sample.reference,
        grader=sample.grader,
        answers=[
            feedback_pb2.Answer(
                directive=answer.directive,
                directive_revision=answer.directive_revision,
                text=answer.text,
                output_tokens=answer.output_tokens,
            )
            for answer in sample.answers
        ],
        served_at=timestamp(sample.served_at),
        tenant=sample.tenant,
    )


def to_answer(message: feedback_pb2.Answer) -> Answer:
    return Answer(message.directive, message.directive_revision, message.text, message.output_tokens)


def to_comparison(message: feedback_pb2.Comparison) -> Comparison:
    """Raises ValueError for a preference outside [0, 1] and for lengths beyond the limit."""
    return Comparison(message.characters, message.baseline_characters, message.shown_first, message.shown_second)


def from_score(score: Score, outdated: bool = False) -> feedback_pb2.ListScoresResponse.ScoredSample:
    return feedback_pb2.ListScoresResponse.ScoredSample(
        cell=from_cell(score.cell),
        sample_id=score.sample_id,
        score=feedback_pb2.Score(
            directive=score.cell.directive,
            directive_revision=score.directive_revision,
            quality=score.quality,
            baseline_quality=score.baseline_quality,
            judge=score.judge,
            comparison=None if score.comparison is None else feedback_pb2.Comparison(**asdict(score.comparison)),
        ),
        scored_at=timestamp(score.scored_at),
        tenant=score.tenant,
        outdated=outdated,
    )


def to_energy(message: energy_pb2.Energy) -> Energy | None:
    """None where no source vouches for it. Raises ValueError for joules that are negative or not finite."""
    if message.source == energy_pb2.ENERGY_SOURCE_UNSPECIFIED:
        return None
    source = energy_pb2.EnergySource.Name(message.source).removeprefix("ENERGY_SOURCE_")
    return Energy(message.joules, EnergySource[source])


def from_energy(energy: Energy) -> energy_pb2.Energy:
    return energy_pb2.Energy(joules=energy.joules, source=from_energy_source(energy.source))


def from_energy_source(source: EnergySource) -> energy_pb2.EnergySource.ValueType:
    return energy_pb2.EnergySource.Value(f"ENERGY_SOURCE_{source.name}")


def to_energy_model(message: energy_pb2.EnergyModel) -> EnergyModel:
    """Raises ValueError, naming the field, for what no calibration can have come to."""
    if message.source not in energy_pb2.EnergySource.values()[1:]:
        raise ValueError(f"source must say how the energies are known, got {int(message.source)}")
    if not message.HasField("measured_at"):
        raise ValueError("measured_at is missing")
    return EnergyModel(
        sweet_spot=SweetSpot(**{field.name: getattr(message, field.name) for field in fields(SweetSpot)}),
        source=EnergySource[energy_pb2.EnergySource.Name(message.source).removeprefix("ENERGY_SOURCE_")],
        measured_at=moment(message.measured_at),
        held_out_mape=message.held_out_mape if message.HasField("held_out_mape") else None,
        max_batch=message.max_batch,
        max_input_tokens=message.max_input_tokens,
        max_output_tokens=message.max_output_tokens,
    )


def from_intensity(intensity: Intensity, used_at: datetime) -> energy_pb2.Intensity:
    return energy_pb2.Intensity(
        g_per_kwh=intensity.g_per_kwh,
        zone=intensity.zone,
        kind=energy_pb2.SignalKind.Value(f"SIGNAL_KIND_{intensity.kind.name}"),
        scope=energy_pb2.EmissionScope.Value(f"EMISSION_SCOPE_{intensity.scope.name}"),
        observed_at=timestamp(intensity.observed_at),
        source=intensity.source,
        age_seconds=intensity.age_seconds(used_at),
    )


def from_signal(signal: Signal) -> energy_pb2.Signal:
    return energy_pb2.Signal(
        kind=energy_pb2.SignalKind.Value(f"SIGNAL_KIND_{signal.kind.name}"),
        scope=energy_pb2.EmissionScope.Value(f"EMISSION_SCOPE_{signal.scope.name}"),
    )


def to_signal(message: energy_pb2.Signal) -> Signal:
    """Raises ValueError or KeyError where a half is unspecified or not known."""
    kind = energy_pb2.SignalKind.Name(message.kind).removeprefix("SIGNAL_KIND_")
    scope = energy_pb2.EmissionScope.Name(message.scope).removeprefix("EMISSION_SCOPE_")
    return Signal(SignalKind[kind], Scope[scope])


def from_footprint(footprint: Footprint, used_at: datetime) -> energy_pb2.Carbon:
    return energy_pb2.Carbon(
        operational_grams=footprint.operational_grams,
        embodied_grams=footprint.embodied_grams,
        intensity=from_intensity(footprint.intensity, used_at),
        energy_source=from_energy_source(footprint.energy_source),
    )


def from_interval(interval: Interval) -> energy_pb2.Interval:
    return energy_pb2.Interval(
        value=interval.value,
        lower=interval.lower,
        upper=interval.upper,
        confidence=interval.confidence,
        method=interval.method,
    )


def from_counterfactual(counterfactual: Counterfactual) -> reports_pb2.Report.Counterfactual:
    return reports_pb2.Report.Counterfactual(
        carbon_grams=from_interval(counterfactual.carbon_grams),
        saving=from_interval(counterfactual.saving),
        held_back_requests=counterfactual.held_back_requests,
        uncovered_requests=counterfactual.uncovered_requests,
        uncovered=[
            reports_pb2.Report.Uncovered(policy=part.policy, task=part.task, requests=part.requests)
            for part in counterfactual.uncovered
        ],
    )


def from_engine(view: EngineView, intensity: Intensity | None, now: datetime) -> reports_pb2.ListEnginesResponse.Engine:
    """With the intensity in force in its zone."""
    return reports_pb2.ListEnginesResponse.Engine(
        name=view.name,
        address=view.address,
        state=reports_pb2.EngineState.Value(f"ENGINE_STATE_{view.state.name}"),
        model=view.model,
        load=view.load,
        in_flight=view.in_flight,
        fault=view.fault,
        zone=view.zone,
        intensity=None if intensity is None else from_intensity(intensity, now),
    )
