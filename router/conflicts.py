"""What is probably not meant about the policies taken together: matches that collide, words without effect. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

from common.quality.bound import Cell, FloorKind
from router.directives.bounds import Snapshot, bound_value, open_bound, own_bound
from router.directives.levels import L0, Directive, Placement
from router.directives.policy import Mode, Policy, WhenSpent, match


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
    snapshot: Snapshot,
    template_variables: Mapping[str, Collection[str]],
    now: datetime,
    models: Collection[str] = (),
) -> tuple[Finding, ...]:
    """All findings, the gravest first, then by subject.

    A policy that another one of the same match keeps from ever acting is only told of as that.

    Args:
        template_variables: By engine, what its model's chat template reads; engines that never said are left out.
        models: "name@digest" of what engines serve, as they last said.
    """
    of_match: dict[tuple[str, str], list[Policy]] = defaultdict(list)
    for policy in sorted(snapshot.policies, key=lambda policy: policy.name):
        of_match[policy.tenant, policy.task].append(policy)
    # Several policies of one match cover what any of them does; so none is covered by more specific ones, as there is
    # always another tenant and another task.
    acting = {match: policies[0] for match, policies in of_match.items()}
    evidence = _Evidence(acting.values())
    cells: dict[str, list[Cell]] = defaultdict(list)
    for cell in snapshot.bounds:
        cells[cell.directive].append(cell)
    findings = [
        *_same_match(of_match),
        *_different_graders(acting),
        *_without_effect(snapshot.directives),
        *_unread_variables(snapshot.directives, template_variables),
        *_unserved_models(snapshot.directives, models),
    ]
    for policy in acting.values():
        findings += _about_directives(policy, snapshot.directives)
        findings += _about_evidence(policy, evidence)
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
    if policy.quality_budget is not None and not policy.directives:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "quality_budget_without_directives",
            "its quality budget has no effect: without directives there is nothing to spend it on. Name directives, or "
            "take the budget out",
        )
    missing = [name for name in policy.directives if name not in directives]
    if missing:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "unknown_directive",
            f"it allows {', '.join(missing)}, which do not exist and are never served. Create them, or take them out",
        )


class _Evidence:
    """What samples are kept and judged, by task; empty is any.

    Bounds speak of a task, whoever's requests they come from: another policy's samples serve as well, if they carry
    the grader of one that allows the directive.
    """

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._sampled: dict[str, set[str]] = defaultdict(set)
        self._wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
        for policy in policies:
            if policy.mode is Mode.OFF or not policy.grader:
                continue
            for directive in policy.directives:
                self._wanted[policy.task, directive].add(policy.grader)
            if policy.sample_share > 0:
                self._sampled[policy.task].add(policy.grader)

    def lacks(self, policy: Policy) -> bool:
        """Whether some task of the policy's has no evidence on one of its directives."""
        # Whoever decides for any task decides for tasks that no policy names.
        tasks = {"", policy.task}
        sampled = {grader for task in tasks for grader in self._sampled[task]}
        wanted = [{g for task in tasks for g in self._wanted[task, name]} for name in policy.directives]
        return any(sampled.isdisjoint(graders) for graders in wanted)


def _about_evidence(policy: Policy, evidence: _Evidence) -> Iterator[Finding]:
    if policy.mode is Mode.OFF or not policy.directives or not evidence.lacks(policy):
        return
    if not policy.grader:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "no_grader",
            "it has no grader, nor has another policy for all its tasks and directives: samples are kept but never "
            "judged, so its directives never open. Name a grader",
        )
    else:
        yield Finding(
            Severity.WARNING,
            policy.name,
            "no_samples",
            "its sample_share is 0, and no other policy keeps graded samples for all its tasks and directives: its "
            f"directives never open, or close once their bounds are {policy.bound_max_age_seconds:,} s old. Raise "
            "sample_share",
        )


def _different_graders(acting: Mapping[tuple[str, str], Policy]) -> Iterator[Finding]:
    """Of the policies that decide for one task and allow one directive, whoever's requests they decide for."""
    tenants = sorted({tenant for tenant, _ in acting})
    found: dict[tuple[Policy, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    if len({policy.grader for policy in acting.values() if policy.mode is not Mode.OFF and policy.grader}) < 2:
        return
    for task in sorted({"", *(task for _, task in acting)}):
        of_directive: dict[str, list[Policy]] = defaultdict(list)
        for tenant in tenants:
            policy = acting.get((tenant, task)) or acting.get((tenant, ""))
            if policy is not None and policy.mode is not Mode.OFF and policy.grader:
                for directive in policy.directives:
                    of_directive[directive].append(policy)
        for directive, policies in of_directive.items():
            if len({policy.grader for policy in policies}) > 1:
                found[tuple(sorted(policies, key=lambda policy: policy.name))][task].add(directive)
    for (first, *others), tasks in found.items():
        graders = ", ".join(f"{policy.name} {policy.grader}" for policy in (first, *others))
        where = "; ".join(
            f"{f'task {task!r}' if task else 'other tasks'}: {', '.join(sorted(names))}"
            for task, names in tasks.items()
        )
        yield Finding(
            Severity.CONFLICT,
            first.name,
            "grader_mismatch",
            f"they decide for the same task with different graders ({graders}), but only one grader's scores count for "
            f"a directive: samples of the others are never judged ({where}). Name the same grader in all",
            tuple(policy.name for policy in others),
        )


def _without_effect(directives: Mapping[str, Directive]) -> Iterator[Finding]:
    for directive in directives.values():
        if directive.name != L0.name and not (directive.changes_messages or directive.model):
            yield Finding(
                Severity.WARNING,
                directive.name,
                "no_effect",
                "it has no text and nothing else that changes an answer: requests under it are served as at L0. Give "
                "it a text, or delete it",
            )


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
            of_tenant = cell if cell.tenant else replace(cell, tenant=policy.tenant)
            if match(acting.values(), of_tenant.tenant, cell.task) is not policy:
                continue
            bound, why = open_bound(snapshot, policy, of_tenant, policy.opening_floor, now)
            if bound is not None:
                return
            own, _ = own_bound(snapshot, policy, of_tenant, policy.opening_floor, now)
            known = own or snapshot.bounds.get(cell.of_all)
            value = bound_value(known, policy) if known is not None else 0.0
            closed.append((value, f"{why()} (task {cell.task!r}, model {cell.model})"))
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


def _unserved_models(directives: Mapping[str, Directive], models: Collection[str]) -> Iterator[Finding]:
    if not models:
        return
    for directive in directives.values():
        if directive.model and directive.model not in models:
            yield Finding(
                Severity.WARNING,
                directive.name,
                "unserved_model",
                f"no engine of this router serves {directive.model}, so that it is closed but for callers with engines "
                f"of their own. Connect one, or name one that is served: {', '.join(sorted(models))}",
            )
