"""What is probably not meant about the policies taken together: matches that collide, words without effect. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from common.quality.estimates import Cell, FloorKind
from router.directives.decide import Snapshot, bound_value, open_bound
from router.directives.levels import Directive, Placement
from router.directives.policy import Mode, Policy, WhenSpent


class Severity(IntEnum):
    """How much a finding matters; the names are the contract's, without prefix."""

    NOTE = 1
    """Works as it says, but may surprise."""
    WARNING = 2
    """Some of what the policy says has no effect."""
    CONFLICT = 3
    """Two policies contradict each other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is probably not meant."""

    severity: Severity
    subject: str
    """Name of the policy, or of the directive where it is about one."""
    code: str
    """For programs; stays the same from version to version."""
    message: str
    """For people, with what to do."""
    others: tuple[str, ...] = ()
    """Other policies concerned."""


def find_conflicts(
    snapshot: Snapshot, template_variables: Mapping[str, Collection[str]], now: datetime
) -> tuple[Finding, ...]:
    """All findings, the gravest first, then by subject.

    A policy that another one of the same match keeps from ever acting is only told of as that.

    Args:
        template_variables: By engine, what its model's chat template reads; engines that never said are left out.
    """
    of_match: dict[tuple[str, str], list[Policy]] = defaultdict(list)
    for policy in sorted(snapshot.policies, key=lambda policy: policy.name):
        of_match[policy.tenant, policy.task].append(policy)
    # Several policies of one match cover what any of them does; so none is covered by more specific ones, as there is
    # always another tenant and another task.
    acting = {match: policies[0] for match, policies in of_match.items()}
    # Bounds speak of a task, whoever's requests they come from: another policy's samples serve as well.
    judged = {policy.task for policy in acting.values() if _gives_evidence(policy)}
    cells: dict[str, list[Cell]] = defaultdict(list)
    for cell in snapshot.bounds:
        cells[cell.directive].append(cell)
    findings = [*_same_match(of_match), *_unread_variables(snapshot.directives, template_variables)]
    for policy in acting.values():
        findings += _about_directives(policy, snapshot.directives)
        findings += _about_evidence(policy, judged)
        findings += _about_shares_and_limits(policy)
        findings += _lower_floor(policy, acting)
        findings += _all_closed(policy, acting, snapshot, cells, now)
    return tuple(sorted(findings, key=lambda finding: (-finding.severity, finding.subject, finding.code)))


def _same_match(of_match: Mapping[tuple[str, str], Sequence[Policy]]) -> Iterator[Finding]:
    for (tenant, task), (first, *rest) in of_match.items():
        if rest:
            others = tuple(policy.name for policy in rest)
            whom = f"tenant {tenant!r}" if tenant else "every tenant"
            what = f"task {task!r}" if task else "every task"
            yield Finding(
                Severity.CONFLICT,
                first.name,
                "same_match",
                f"{first.name}, the first by name, decides for {whom} and {what}; {', '.join(others)} of the same "
                "match never will. Delete all but one, or narrow their tenant or task",
                others,
            )


def _about_directives(policy: Policy, directives: Mapping[str, Directive]) -> Iterator[Finding]:
    if policy.mode is not Mode.OFF and not policy.directives:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "no_directives",
            f"its mode is {policy.mode.value}, but it allows no directive, so every request is served at L0. Name "
            "directives, or turn it off",
        )
    if policy.latency is not None and not policy.directives:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "latency_without_directives",
            "its latency objective has no effect: without directives there is nothing faster to choose. Name "
            "directives, or take the objective out",
        )
    missing = [name for name in policy.directives if name not in directives]
    if missing:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "unknown_directive",
            f"it allows {', '.join(missing)}, which do not exist and are never served. Create them, or take them out",
        )


def _about_evidence(policy: Policy, judged: Collection[str]) -> Iterator[Finding]:
    """`judged` are the tasks of policies whose samples are judged; empty is any task."""
    if policy.mode is Mode.OFF or not policy.directives:
        return
    if judged if policy.task == "" else not {"", policy.task}.isdisjoint(judged):
        return
    if not policy.grader:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "no_grader",
            "it has no grader, nor has another policy for its tasks: samples are kept but never judged, so its "
            "directives never open. Name a grader",
        )
    else:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "no_samples",
            "its sample_share is 0, and no other policy keeps graded samples for its tasks: its directives never open, "
            f"or close once their bounds are {policy.bound_max_age_seconds:,} s old. Raise sample_share",
        )


def _gives_evidence(policy: Policy) -> bool:
    return policy.mode is not Mode.OFF and policy.grader != "" and policy.sample_share > 0


def _about_shares_and_limits(policy: Policy) -> Iterator[Finding]:
    if policy.mode is not Mode.OFF and policy.traffic_share == 0:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "no_traffic",
            "its traffic_share is 0: it acts on no request. Raise it, or turn the policy off",
        )
    if policy.mode is Mode.ON and policy.directives and policy.holdback_share == 0:
        yield Finding(
            Severity.NOTE,
            policy.name,
            "no_holdback",
            "its holdback_share is 0: with nothing to compare with, reports cannot tell what it saves. 0.02 will do",
        )
    if policy.mode is not Mode.OFF and policy.floor_kind is FloorKind.ABSOLUTE and policy.floor == 1:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "floor_out_of_reach",
            "no lower bound of a mean quality reaches 1, so its directives never open. Lower the floor, or measure it "
            "relative to L0",
        )
    if policy.carbon_budget is not None and policy.mode is not Mode.ON:
        yield Finding(
            Severity.NOTE,
            policy.name,
            "budget_without_effect",
            f"its mode is {policy.mode.value}: beyond {policy.carbon_budget.grams_per_day:g} g a day nothing is "
            f"{'refused' if policy.carbon_budget.when_spent is WhenSpent.REFUSE else 'tightened'}. Turn it on, or take "
            "the budget out",
        )


def _lower_floor(policy: Policy, acting: Mapping[tuple[str, str], Policy]) -> Iterator[Finding]:
    general = acting.get(("", policy.task)) or acting.get(("", ""))
    if (
        policy.tenant
        and general is not None
        and policy.floor_kind is general.floor_kind
        and policy.floor < general.floor
    ):
        yield Finding(
            Severity.NOTE,
            policy.name,
            "lower_floor",
            f"tenant {policy.tenant!r} is kept at {policy.floor:g} of quality, all others, by {general.name}, at "
            f"{general.floor:g}. Raise its floor unless that was agreed",
            (general.name,),
        )


def _all_closed(
    policy: Policy,
    acting: Mapping[tuple[str, str], Policy],
    snapshot: Snapshot,
    cells: Mapping[str, Sequence[Cell]],
    now: datetime,
) -> Iterator[Finding]:
    if policy.mode is Mode.OFF:
        return
    missing: list[str] = []
    for name in policy.directives:
        if name not in snapshot.directives:
            continue
        closed: list[tuple[float, str]] = []
        for cell in cells.get(name, ()):
            if (acting.get((policy.tenant, cell.task)) or acting.get((policy.tenant, ""))) is not policy:
                continue
            bound, why = open_bound(snapshot, policy, cell.model, cell.task, name, policy.floor, now)
            if bound is not None:
                return
            value = bound_value(snapshot.bounds[cell], policy)
            closed.append((value, f"{why} (task {cell.task!r}, model {cell.model})"))
        # Of many tasks, the one that lacks least.
        missing.append(max(closed)[1] if closed else f"{name}: no quality bound for it yet")
    if missing:
        yield Finding(
            Severity.NOTE,
            policy.name,
            "all_closed",
            f"none of its directives is open now, so every request is served at L0: {'; '.join(missing)}. Let the "
            "evaluator go on, or see whether the floor is meant so high",
        )


def _unread_variables(
    directives: Mapping[str, Directive], template_variables: Mapping[str, Collection[str]]
) -> Iterator[Finding]:
    if not template_variables:
        return
    read = {variable for variables in template_variables.values() for variable in variables}
    for directive in directives.values():
        unread = [name for name, _ in directive.template_variables if name not in read]
        if directive.placement is Placement.NATIVE and unread:
            yield Finding(
                Severity.WARNING,
                directive.name,
                "unread_variables",
                f"no connected engine's chat template reads {', '.join(unread)}: answers are as without the directive. "
                "Correct the names, or connect a model that knows them",
            )
