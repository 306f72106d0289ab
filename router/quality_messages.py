"""Between the contract's messages and what is known, and no longer known, of quality."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pith.router.v1 import feedback_pb2, policies_pb2

from common.quality.bound import EpochReason, EpochStart, Floor, FloorKind
from common.quality.mix import Part, TaskMix
from router import convert, policy_messages


def to_withdrawal(message: feedback_pb2.Withdrawal, withdrawn_at: datetime) -> EpochStart:
    """Raises ValueError where reason or floor is not known."""
    return EpochStart(
        convert.to_cell(message.cell),
        message.judge,
        EpochReason(feedback_pb2.WithdrawalReason.Name(message.reason).removeprefix("WITHDRAWAL_REASON_")),
        withdrawn_at,
        Floor(
            message.floor.quality,
            FloorKind(policies_pb2.FloorKind.Name(message.floor.kind).removeprefix("FLOOR_KIND_")),
        )
        if message.HasField("floor")
        else None,
    )


def from_mix(mix: TaskMix) -> feedback_pb2.EvaluationPlan.Mix:
    return feedback_pb2.EvaluationPlan.Mix(lengths=_from_parts(mix.lengths), tenants=_from_parts(mix.tenants))


def _from_parts(parts: Mapping[str, Part]) -> list[feedback_pb2.EvaluationPlan.Part]:
    return [
        feedback_pb2.EvaluationPlan.Part(category=name, before=part.before, recent=part.recent)
        for name, part in parts.items()
    ]


def from_withdrawal(start: EpochStart) -> feedback_pb2.Withdrawal:
    return feedback_pb2.Withdrawal(
        cell=convert.from_cell(start.cell),
        judge=start.judge,
        reason=feedback_pb2.WithdrawalReason.Value(f"WITHDRAWAL_REASON_{start.reason}"),
        floor=None
        if start.floor is None
        else feedback_pb2.EvaluationPlan.Floor(
            quality=start.floor.quality, kind=policy_messages.from_floor_kind(start.floor.kind)
        ),
        withdrawn_at=convert.timestamp(start.at),
    )
