"""What decisions rest on, and which quality bound opens a directive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from common.quality.bound import MAX_CLOCK_SKEW_SECONDS, Cell, FloorKind, QualityBound, beside
from common.quality.graders import grader_of
from router.directives.levels import Directive
from router.directives.policy import Policy, counting_grader, deciding
from router.optimizer.plan import Plan

Words = Callable[[], str]
"""Made where they are read: making them takes longer than what they tell of."""
MAX_OPENINGS: Final = 10_000
"""Kept at once: a task is any string that a caller names."""
_NEVER = datetime.max.replace(tzinfo=UTC)


class _Openings(NamedTuple):
    """What is open for a class of requests, and from when to when that is so."""

    bounds: Mapping[str, float]
    since: datetime
    until: datetime
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that decisions depend on; replaced as a whole, so that a decision never sees half a change."""

    directives: Mapping[str, Directive]
    """By name; L0 is always there."""
    policies: Sequence[Policy]
    bounds: Mapping[Cell, QualityBound]
    plan: Plan
    _graders: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _openings: dict[tuple[str, str, str, str], _Openings] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _tenants: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """With bounds of their own, and the empty one for all."""

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


def open_bounds(
    snapshot: Snapshot, policy: Policy, model: str, task: str, tenant: str, floor: float, now: datetime
) -> Mapping[str, float]:
    """What each of the policy's open directives keeps at least, by `open_bound`.

    Kept, where the floor is the policy's, until some bound comes of age or grows too old: a decision looks at all of
    the policy's directives, and between two changes of the snapshot they are the same for millions of requests.
    """
    if not snapshot._tenants:
        snapshot._tenants.update({"", *(cell.tenant for cell in snapshot.bounds)})
    whose = tenant if tenant in snapshot._tenants else ""
    if floor != policy.opening_floor:
        return _opened(snapshot, policy, model, task, whose, floor, now)
    key = (policy.name, model, task, whose)
    found = snapshot._openings.get(key)
    if found is None or not found.since <= now < found.until:
        bounds = _opened(snapshot, policy, model, task, whose, floor, now)
        found = _Openings(bounds, now, _next_change(snapshot, policy, model, task, whose, now))
        if len(snapshot._openings) >= MAX_OPENINGS:
            snapshot._openings.clear()
        snapshot._openings[key] = found
    return found.bounds


def _opened(
    snapshot: Snapshot, policy: Policy, model: str, task: str, tenant: str, floor: float, now: datetime
) -> Mapping[str, float]:
    found = {}
    for name in policy.directives:
        bound, _ = open_bound(snapshot, policy, Cell(model, task, name, tenant), floor, now)
        if bound is not None:
            found[name] = bound_value(bound, policy)
    return found


def _next_change(snapshot: Snapshot, policy: Policy, model: str, task: str, tenant: str, now: datetime) -> datetime:
    """The first moment at which time alone may open or close one of the policy's directives."""
    cells = {Cell(model, task, name, whose) for name in policy.directives for whose in ("", tenant)}
    moments = [_NEVER]
    for bound in filter(None, map(snapshot.bounds.get, cells)):
        moments.append(bound.updated_at - timedelta(seconds=MAX_CLOCK_SKEW_SECONDS))
        # It is in force to the end of its last moment.
        moments.append(bound.updated_at + timedelta(seconds=policy.bound_max_age_seconds, microseconds=1))
    return min(moment for moment in moments if moment > now)


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
