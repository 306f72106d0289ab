"""Between the contract's messages of a report and the sums inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pith.common.v1 import energy_pb2
from pith.router.v1 import policies_pb2
from pith.router.v1 import reports_pb2 as pb

from common.carbon.accounting import sci
from common.carbon.intensity import Signal
from common.energy.reading import EnergySource
from common.errors import Violations
from router import convert, policy_messages, quality_messages
from router.history.step import Cause, Opening, PolicyChange, Step
from router.store.directives import DirectiveRevision
from router.store.idle import IdleTotals
from router.store.quality import BoundRecord
from router.store.reports import OtherSignal, Totals

BOUNDARY = (
    "counted: the processors' energy as the engines report it (GPU, or CPU package) for requests, for evaluation and "
    "while idle, by whole hours; the building's overhead by PUE; the processors' making by their time. Not counted: "
    "networks, storage, the hosts of routers and evaluators, training"
)


def to_signal(faults: Violations, message: energy_pb2.Signal) -> Signal | None:
    """None where a half of it is at fault, which is added to `faults`."""
    halves = (
        ("signal.kind", int(message.kind), energy_pb2.SignalKind.items()),
        ("signal.scope", int(message.scope), energy_pb2.EmissionScope.items()),
    )
    sound = True
    for field, number, items in halves:
        names = {value: name for name, value in items if value}
        if number not in names:
            sound = False
            faults.add(field, f"is {number}; must be one of {', '.join(names.values())}")
    return convert.to_signal(message) if sound else None


def from_totals(values: Mapping[str, Any], totals: Totals) -> pb.Report.Row:
    row = pb.Report.Row(
        requests=totals.requests,
        prompt_tokens=totals.prompt_tokens,
        output_tokens=totals.output_tokens,
        energy_joules=totals.energy_joules,
        operational_grams=totals.operational_grams,
        embodied_grams=totals.embodied_grams,
        requests_without_energy=totals.requests_without_energy,
        requests_without_embodied=totals.requests_without_embodied,
        energy_source=_from_source(totals.energy_source),
        rated_requests=totals.rated_requests,
        mean_rating=totals.mean_rating,
    )
    for name, value in values.items():
        if isinstance(value, datetime):
            getattr(row, name).CopyFrom(convert.timestamp(value))
        else:
            setattr(row, name, value)
    return row


def from_other_signal(other: OtherSignal) -> pb.Report.OtherSignal:
    return pb.Report.OtherSignal(
        signal=convert.from_signal(other.signal),
        requests=other.requests,
        evaluation_requests=other.evaluation_requests,
        energy_joules=other.energy_joules,
    )


def from_idle(idle: IdleTotals) -> pb.Report.Idle:
    return pb.Report.Idle(
        engine=idle.engine,
        device_seconds=idle.device_seconds,
        seconds_without_energy=idle.seconds_without_energy,
        energy_joules=idle.energy_joules,
        energy_source=_from_source(idle.energy_source),
        operational_grams=idle.operational_grams,
        embodied_grams=idle.embodied_grams,
    )


def from_sci(total: Totals, evaluation: Totals, idle: Sequence[IdleTotals]) -> pb.Report.Sci | None:
    """The rate at which serving these totals emits, all under one signal."""
    served = total.requests - total.requests_without_energy
    found = sci((total, evaluation, *idle), served, total.output_tokens - total.output_tokens_without_energy)
    if found is None:
        return None
    return pb.Report.Sci(
        energy_kwh=found.energy_kwh,
        intensity_g_per_kwh=found.intensity_g_per_kwh,
        embodied_grams=found.embodied_grams,
        requests=found.requests,
        output_tokens=found.output_tokens,
        grams_per_request=found.grams_per_request,
        grams_per_thousand_output_tokens=found.grams_per_thousand_output_tokens,
        boundary=_boundary(total, evaluation, idle),
    )


def _boundary(total: Totals, evaluation: Totals, idle: Sequence[IdleTotals]) -> str:
    """What is counted and what is not; what ought to be and is unknown has its figures."""
    requests = total.requests_without_energy + evaluation.requests_without_energy
    making = total.requests_without_embodied + evaluation.requests_without_embodied
    seconds = sum(one.seconds_without_energy for one in idle)
    unknown = [
        *([f"the energy of {requests:,} requests"] if requests else []),
        *([f"the energy of {seconds:,.0f} s of idle devices"] if seconds else []),
        *([f"the embodied carbon of {making:,} requests"] if making else []),
    ]
    return f"{BOUNDARY}. Unknown and not counted: {', '.join(unknown)}" if unknown else BOUNDARY


def _from_source(source: EnergySource | None) -> energy_pb2.EnergySource.ValueType:
    return energy_pb2.ENERGY_SOURCE_UNSPECIFIED if source is None else convert.from_energy_source(source)


def from_step(step: Step) -> pb.QualityStep:
    message = pb.QualityStep(
        time=convert.timestamp(step.at),
        cell=convert.from_cell(step.cell),
        cause=pb.QualityStepCause.Value(f"QUALITY_STEP_CAUSE_{step.cause.name}"),
        openings=map(_from_opening, step.openings),
    )
    record, change = step.record, step.change
    if record is not None:
        message.evidence.CopyFrom(_from_record(record))
        if record.withdrawal is not None and step.cause is Cause.WITHDRAWAL:
            message.withdrawal.CopyFrom(quality_messages.from_withdrawal(record.withdrawal))
    if isinstance(change, DirectiveRevision):
        message.directive.CopyFrom(policy_messages.from_directive_revision(change))
    elif isinstance(change, PolicyChange):
        message.policy.CopyFrom(policy_messages.from_policy_revision(change.revision))
        if change.before is not None:
            message.policy_before.CopyFrom(policy_messages.from_policy(change.before))
    return message


def _from_record(record: BoundRecord) -> pb.QualityStep.Evidence:
    return pb.QualityStep.Evidence(
        bound=convert.from_bound(record.bound),
        evaluator=record.reporter.evaluator,
        code_revision=record.reporter.code_revision,
        position=record.reporter.position,
        reported_at=convert.timestamp(record.reported_at),
    )


def _from_opening(opening: Opening) -> pb.QualityStep.Opening:
    policy = opening.policy
    return pb.QualityStep.Opening(
        policy=policy.name,
        policy_revision=policy.revision,
        mode=policies_pb2.Mode.Value(f"MODE_{policy.mode.name}"),
        floor=policy.opening_floor,
        floor_kind=policy_messages.from_floor_kind(policy.floor_kind),
        was_open=opening.was_open,
        open=opening.is_open,
        explanation=opening.why,
        bound_max_age_seconds=policy.bound_max_age_seconds,
    )
