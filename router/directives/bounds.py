"""What decisions rest on, and which quality bound opens a directive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from common.quality.bound import MAX_CLOCK_SKEW_SECONDS, Cell, FloorKind, QualityBound, beside
from common.quality.graders import grader_of
from router.directives.levels import Directive
from router.directives.policy import Policy, counting_grader, deciding
from router.optimizer.plan import Plan

Words = Callable[[], str]
"""Made where they are read: making them takes longer than what they tell of."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that decisions depend on; replaced as a whole, so that a decision never sees half a change."""

    directives: Mapping[str, Directive]
    """By name; L0 is always there."""
    policies: Sequence[Policy]
    bounds: Mapping[Cell, QualityBound]
    plan: Plan
    _graders: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def counting_grader(self, task: str, directive: str) -> str:
        """Whose scores count, by the policies in force; empty where none names a grader, and any does."""
        grader = self._graders.get((task, directive))
        if grader is None:
            grader = counting_grader(p for p in deciding(self.policies, task) if directive in p.directives)
            # Kept, since few requests' worth of policies make for many requests; there are as many as there are bounds.
            self._graders[task, directive] = grader
        return grader

    def counts(self, bound: QualityBound) -> bool:
        """Whether a bound is by the grader whose scores count. Which of its models or rules are the present ones, the
        evaluator knows, and withdraws what is by others."""
        grader = self.counting_grader(bound.cell.task, bound.cell.directive)
        return not grader or grader == grader_of(bound.judge)


def bound_value(bound: QualityBound, policy: Policy) -> float:
    """The number that the policy's floor is held against."""
    return bound.lower if policy.floor_kind is FloorKind.RELATIVE else bound.absolute_lower


def bound_from_above(bound: QualityBound, policy: Policy) -> float:
    """The same from above."""
    return bound.upper if policy.floor_kind is FloorKind.RELATIVE else bound.absolute_upper


def own_bound(
    snapshot: Snapshot, policy: Policy, cell: Cell, floor: float, now: datetime
) -> tuple[QualityBound | None, bool]:
    """The bound of a cell's tenant itself, where it decides, and whether it opens the directive.

    It decides where it is in force and tells on which side of the floor the tenant's quality is; elsewhere, and where
    the cell names no tenant, the bound of all tenants does. It opens only on the ground of that one.
    """
    bound = snapshot.bounds.get(cell) if cell.tenant else None
    if bound is None or not snapshot.counts(bound):
        return None, False
    directive = snapshot.directives.get(cell.directive)
    if directive is None or bound.revision != str(directive.revision):
        return None, False
    if bound.is_open(floor, policy.floor_kind, now, policy.bound_max_age_seconds):
        return (bound, True) if _shares_ground(bound, snapshot.bounds.get(cell.of_all)) else (None, False)
    if bound_from_above(bound, policy) < floor and bound.is_fresh(now, policy.bound_max_age_seconds):
        return bound, False
    return None, False


def _shares_ground(own: QualityBound, of_all: QualityBound | None) -> bool:
    """Whether a tenant's bound is of the judge, the method and the epoch of that of all tenants.

    What ends for all (another judge, another mix of requests, a drop) is found by that one's scores; the bound of a
    tenant without new scores, or that an evaluator keeps no more, would outlive it.
    """
    return (
        of_all is not None
        and (own.judge, own.method) == (of_all.judge, of_all.method)
        and (of_all.since is None or own.updated_at >= of_all.since)
    )


def open_bound(
    snapshot: Snapshot, policy: Policy, cell: Cell, floor: float, now: datetime
) -> tuple[QualityBound | None, Words]:
    """The bound that opens the directive for the cell's tenant, or for all where it names none; None where it is
    closed. And why."""
    name = cell.directive
    directive = snapshot.directives.get(name)
    if directive is None:
        return None, lambda: f"{name}: there is no such directive"
    own, opens = own_bound(snapshot, policy, cell, floor, now) if cell.tenant else (None, False)
    if own is not None:
        return own if opens else None, lambda: f"{name}: {_of_own(own, opens, policy, floor)}"
    bound = snapshot.bounds.get(cell.of_all)
    if bound is None:
        return None, lambda: f"{name}: closed, no quality bound for it yet"
    if not snapshot.counts(bound):
        grader = snapshot.counting_grader(cell.task, name)
        return None, lambda: f"{name}: closed, the bound is by {bound.judge}, and scores by {grader} are what counts"
    if bound.revision != str(directive.revision):
        return (
            None,
            lambda: f"{name}: closed, the bound is of revision {bound.revision}, the directive at {directive.revision}",
        )
    if not bound.is_open(floor, policy.floor_kind, now, policy.bound_max_age_seconds):
        return None, lambda: f"{name}: closed, {_not_open(bound, policy, floor, now)}"
    return (
        bound,
        lambda: f"{name}: open, bound {beside(bound_value(bound, policy), floor)} clears the floor {floor:.3f}",
    )


def _of_own(own: QualityBound, opens: bool, policy: Policy, floor: float) -> str:
    whose = f"tenant {own.cell.tenant}'s own bound"
    if opens:
        return f"open, {whose} {beside(bound_value(own, policy), floor)} clears the floor {floor:.3f}"
    return f"closed, {whose} says at most {beside(bound_from_above(own, policy), floor)}, below the floor {floor:.3f}"


def _not_open(bound: QualityBound, policy: Policy, floor: float, now: datetime) -> str:
    age, longest = (now - bound.updated_at).total_seconds(), policy.bound_max_age_seconds
    if age < -MAX_CLOCK_SKEW_SECONDS:
        return f"the bound is of {bound.updated_at.isoformat()}, in the future"
    if age > longest:
        return f"the bound is {age:.0f} s old, the policy allows {longest} s"
    if bound.samples == 0:
        return "no sample is behind the bound"
    return f"bound {beside(bound_value(bound, policy), floor)} is below the floor {floor:.3f}"
