"""Directives and policies between the contract's messages and the dataclasses inside. Limits are checked elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.struct_pb2 import Struct
from pith.router.v1 import directives_pb2, generation_pb2, policies_pb2

from common.quality.bound import FloorKind
from router.convert import timestamp
from router.directives.levels import Directive, Placement, TemplateValue
from router.directives.policy import (
    BudgetScope,
    CarbonBudget,
    LatencyObjective,
    Mode,
    Policy,
    QualityBudget,
    Trait,
    WhenSpent,
)
from router.store.directives import DirectiveRevision
from router.store.policies import PolicyRevision


def to_directive(message: directives_pb2.Directive) -> Directive:
    """Without what is output only. Raises ValueError for an unknown placement; unspecified is the default."""
    unspecified = message.placement == directives_pb2.PLACEMENT_UNSPECIFIED
    placement = directives_pb2.Placement.Name(message.placement).removeprefix("PLACEMENT_")
    return Directive(
        name=message.name,
        text=message.text,
        placement=Placement.TAIL if unspecified else Placement[placement],
        max_output_tokens=message.max_output_tokens,
        stop=tuple(message.stop),
        suppressed_words=tuple(message.suppressed_words),
        history_messages=message.history_messages,
        template_variables=to_variables(message.template_variables),
        model=message.model,
    )


def from_directive(directive: Directive) -> directives_pb2.Directive:
    return directives_pb2.Directive(
        name=directive.name,
        text=directive.text,
        placement=directives_pb2.Placement.Value(f"PLACEMENT_{directive.placement.name}"),
        max_output_tokens=directive.max_output_tokens,
        stop=directive.stop,
        suppressed_words=directive.suppressed_words,
        history_messages=directive.history_messages,
        template_variables=from_variables(directive.template_variables),
        model=directive.model,
        revision=directive.revision,
        etag=directive.etag,
        updated_at=timestamp(directive.updated_at),
        updated_by=directive.updated_by,
    )


def from_directive_revision(revision: DirectiveRevision) -> directives_pb2.DirectiveRevision:
    return directives_pb2.DirectiveRevision(
        directive=from_directive(revision.directive), action=revision.action.value, reason=revision.reason
    )


def to_policy(message: policies_pb2.Policy) -> Policy:
    """Without what is output only; what is absent gets its default. Raises ValueError for an unknown enum."""
    default = Policy(name=message.name)
    mode = policies_pb2.Mode.Name(message.mode).removeprefix("MODE_")
    kind = policies_pb2.FloorKind.Name(message.floor_kind).removeprefix("FLOOR_KIND_")
    return Policy(
        name=message.name,
        tenant=message.tenant,
        task=message.task,
        mode=default.mode if message.mode == policies_pb2.MODE_UNSPECIFIED else Mode[mode],
        traffic_share=message.traffic_share if message.HasField("traffic_share") else default.traffic_share,
        floor=message.floor,
        floor_kind=(
            default.floor_kind if message.floor_kind == policies_pb2.FLOOR_KIND_UNSPECIFIED else FloorKind[kind]
        ),
        quality_budget=_to_quality_budget(message.quality_budget) if message.HasField("quality_budget") else None,
        directives=tuple(message.directives),
        holdback_share=message.holdback_share if message.HasField("holdback_share") else default.holdback_share,
        sample_share=message.sample_share if message.HasField("sample_share") else default.sample_share,
        grader=message.grader,
        bound_max_age_seconds=message.bound_max_age_seconds or default.bound_max_age_seconds,
        latency=_to_latency(message.latency) if message.HasField("latency") else None,
        carbon_budget=_to_carbon_budget(message.carbon_budget) if message.HasField("carbon_budget") else None,
        leave_alone=to_traits(message.leave_alone.traits) if message.HasField("leave_alone") else default.leave_alone,
    )


def from_policy(policy: Policy) -> policies_pb2.Policy:
    return policies_pb2.Policy(
        name=policy.name,
        tenant=policy.tenant,
        task=policy.task,
        mode=policies_pb2.Mode.Value(f"MODE_{policy.mode.name}"),
        traffic_share=policy.traffic_share,
        floor=policy.floor,
        floor_kind=from_floor_kind(policy.floor_kind),
        directives=policy.directives,
        holdback_share=policy.holdback_share,
        sample_share=policy.sample_share,
        grader=policy.grader,
        bound_max_age_seconds=policy.bound_max_age_seconds,
        latency=None if policy.latency is None else _from_latency(policy.latency),
        carbon_budget=None if policy.carbon_budget is None else _from_carbon_budget(policy.carbon_budget),
        leave_alone=policies_pb2.LeaveAlone(traits=from_traits(policy.leave_alone)),
        quality_budget=None if policy.quality_budget is None else _from_quality_budget(policy.quality_budget),
        revision=policy.revision,
        etag=policy.etag,
        updated_at=timestamp(policy.updated_at),
        updated_by=policy.updated_by,
    )


def from_policy_revision(revision: PolicyRevision) -> policies_pb2.PolicyRevision:
    return policies_pb2.PolicyRevision(
        policy=from_policy(revision.policy), action=revision.action.value, reason=revision.reason
    )


def to_variables(message: Struct) -> tuple[tuple[str, TemplateValue], ...]:
    """Raises ValueError for a value that is neither a boolean nor a number nor text."""
    variables: list[tuple[str, TemplateValue]] = []
    for name in sorted(message.keys()):
        value = message[name]
        if not isinstance(value, bool | float | str):
            raise ValueError(f"variable {name!r} must be a boolean, a number or text")
        variables.append((name, value))
    return tuple(variables)


def from_variables(variables: Iterable[tuple[str, TemplateValue]]) -> Struct | None:
    """None for none, so that the field stays absent."""
    given = dict(variables)
    if not given:
        return None
    struct = Struct()
    struct.update(given)
    return struct


def to_traits(messages: Iterable[int]) -> frozenset[Trait]:
    """Raises ValueError for one that is not known."""
    return frozenset(Trait[generation_pb2.Trait.Name(m).removeprefix("TRAIT_")] for m in messages)  # type: ignore[arg-type]


def from_traits(traits: Iterable[Trait]) -> Sequence[generation_pb2.Trait.ValueType]:
    return sorted(generation_pb2.Trait.Value(f"TRAIT_{trait.name}") for trait in traits)


def _to_latency(message: policies_pb2.LatencyObjective) -> LatencyObjective:
    return LatencyObjective(message.seconds, message.share) if message.share else LatencyObjective(message.seconds)


def _from_latency(latency: LatencyObjective) -> policies_pb2.LatencyObjective:
    return policies_pb2.LatencyObjective(seconds=latency.seconds, share=latency.share)


def _to_carbon_budget(message: policies_pb2.CarbonBudget) -> CarbonBudget:
    if message.when_spent == policies_pb2.WHEN_SPENT_UNSPECIFIED:
        return CarbonBudget(message.grams_per_day)
    spent = policies_pb2.WhenSpent.Name(message.when_spent).removeprefix("WHEN_SPENT_")
    return CarbonBudget(message.grams_per_day, WhenSpent[spent])


def _from_carbon_budget(budget: CarbonBudget) -> policies_pb2.CarbonBudget:
    return policies_pb2.CarbonBudget(grams_per_day=budget.grams_per_day, when_spent=from_when_spent(budget.when_spent))


def _to_quality_budget(message: policies_pb2.QualityBudget) -> QualityBudget:
    if message.scope == policies_pb2.QualityBudget.SCOPE_UNSPECIFIED:
        return QualityBudget(message.directive_floor)
    scope = policies_pb2.QualityBudget.Scope.Name(message.scope).removeprefix("SCOPE_")
    return QualityBudget(message.directive_floor, BudgetScope[scope])


def _from_quality_budget(budget: QualityBudget) -> policies_pb2.QualityBudget:
    scope = policies_pb2.QualityBudget.Scope.Value(f"SCOPE_{budget.scope.name}")
    return policies_pb2.QualityBudget(directive_floor=budget.directive_floor, scope=scope)


def from_when_spent(when_spent: WhenSpent) -> policies_pb2.WhenSpent.ValueType:
    return policies_pb2.WhenSpent.Value(f"WHEN_SPENT_{when_spent.name}")


def from_floor_kind(kind: FloorKind) -> policies_pb2.FloorKind.ValueType:
    return policies_pb2.FloorKind.Value(f"FLOOR_KIND_{kind.name}")
