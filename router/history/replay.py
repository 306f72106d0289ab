"""Why directives opened and closed: all that is recorded, replayed through the code that decides. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.levels import L0, Directive
from router.directives.policy import Mode, Policy
from router.history.records import BEGINNING, Cursor, Known, Records, merged
from router.history.step import Cause, Opening, PolicyChange, Step
from router.openings import allowing, opening
from router.optimizer.plan import Plan
from router.store.directives import DirectiveRevision
from router.store.policies import PolicyRevision
from router.store.quality import BoundRecord
from router.store.revisions import Action

# A bound is fresh up to and with its greatest age.
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Question:
    """Which steps are wanted.

    tenant: Cells as this tenant's requests have them; empty: every cell that is in the records.
    policy: Only what concerns it; empty: any.
    all_steps: Also those by which nothing opened or closed.
    """

    tenant: str = ""
    policy: str = ""
    all_steps: bool = False


def tell(
    question: Question, known: Known, records: Records, start: Cursor, size: int, now: datetime
) -> tuple[tuple[Step, ...], Cursor | None]:
    """At most `size` steps that follow `start`, oldest first, and from where to go on: None at the end.

    Records of a kind stay in their order, and the kinds are merged by time. Clocks of routers differ, and may be set
    back: ages then count from the latest time so far.

    Args:
        known: As of `start`.
        records: What follows `start`, cut wherever one likes.
    """
    replayed = _Replay(question, known, start)
    told: list[Step] = []
    for before, steps in replayed.through(records, now):
        for number, step in enumerate(steps[before.told :], before.told):
            if len(told) == size:
                return tuple(told), replace(before, told=number)
            told.append(step)
    return tuple(told), replayed.cursor if records.cut else None


class _Replay:
    """What decisions depended on, as it was at the cursor, and what was open by it."""

    def __init__(self, question: Question, known: Known, start: Cursor) -> None:
        self.cursor = start
        self._question = question
        self._records: dict[Cell, BoundRecord] = {}
        self._bounds: dict[Cell, QualityBound] = {}
        self._views: dict[Cell, list[Cell]] = {}
        self._directives = {revision.directive.name: revision for revision in known.directives}
        self._policies = {revision.policy.name: revision for revision in known.policies}
        self._open: dict[Cell, dict[str, bool]] = {}
        self._due: dict[Cell, datetime] = {}
        for record in known.bounds:
            self._take(record)
        self._snapshot = self._present()
        if start.at is not None:
            for view in self._every_view():
                self._weigh(view, start.at)

    def through(self, records: Records, now: datetime) -> Iterator[tuple[Cursor, Sequence[Step]]]:
        """(cursor before it, wanted steps) of all that happened, up to the present where the records are all."""
        for kind, key, time, occurred in merged(records):
            at = time if self.cursor.at is None else max(time, self.cursor.at)
            yield from self._aged(at)
            before, steps = self.cursor, self._wanted(self._occur(occurred, time, at))
            moved: dict[str, Any] = {kind: key}
            self.cursor = replace(before, **moved, at=at, told=0)
            yield before, steps
        if not records.cut:
            yield from self._aged(now)

    def _aged(self, until: datetime) -> Iterator[tuple[Cursor, Sequence[Step]]]:
        """What time alone closes up to a moment."""
        while self._due and (at := min(self._due.values())) <= until:
            views = [view for view in self._every_view() if self._due.get(view) == at]
            before, steps = self.cursor, [self._step(view, at, at, Cause.AGE) for view in views]
            self.cursor = replace(before, at=at, told=0)
            yield before, self._wanted(steps)

    def _occur(
        self, occurred: BoundRecord | DirectiveRevision | PolicyRevision, time: datetime, at: datetime
    ) -> list[Step]:
        if isinstance(occurred, BoundRecord):
            self._take(occurred, at)
            cause = Cause.WITHDRAWAL if occurred.withdrawn else Cause.BOUND
            views = self._views[occurred.bound.cell.of_all]
            if occurred.bound.cell.tenant and not self._question.tenant:
                views = [occurred.bound.cell]
            return [self._step(view, time, at, cause, occurred) for view in views]
        if isinstance(occurred, DirectiveRevision):
            name = occurred.directive.name
            # By a clock that was behind, an older one may come after a newer one.
            if name in self._directives and self._directives[name].directive.revision >= occurred.directive.revision:
                return []
            self._directives[name] = occurred
            self._snapshot = self._present()
            concerned = [view for view in self._every_view() if view.directive == name]
            return [self._step(view, time, at, Cause.DIRECTIVE, change=occurred) for view in concerned]
        last = self._policies.get(occurred.policy.name)
        if last is not None and last.policy.revision >= occurred.policy.revision:
            return []
        self._policies[occurred.policy.name] = occurred
        self._snapshot = self._present()
        change = PolicyChange(occurred, None if last is None or last.action is Action.DELETE else last.policy)
        return [self._step(view, time, at, Cause.POLICY, change=change) for view in self._every_view()]

    def _take(self, record: BoundRecord, at: datetime | None = None) -> None:
        """`at`: of a record that was not there at the start, so that what it changes is a step."""
        cell = record.bound.cell
        views = self._views.setdefault(cell.of_all, [])
        view = replace(cell, tenant=self._question.tenant or cell.tenant)
        if view not in views:
            views.append(view)
            views.sort(key=lambda view: view.tenant)
            if at is not None:
                # Until now a tenant had what all tenants together have.
                self._weigh(view, at)
                self._leave_to_tenant(view)
        self._records[cell] = record
        if record.withdrawn:
            self._bounds.pop(cell, None)
        else:
            self._bounds[cell] = record.bound

    def _leave_to_tenant(self, view: Cell) -> None:
        """Policies of a tenant that has a view of its own are told of there."""
        was_open = self._open.get(view.of_all, {}) if view.tenant else {}
        for name in [name for name in was_open if self._policies[name].policy.tenant == view.tenant]:
            del was_open[name]

    def _present(self) -> Snapshot:
        directives: dict[str, Directive] = {L0.name: L0}
        for name, revision in self._directives.items():
            if revision.action is not Action.DELETE:
                directives[name] = revision.directive
        policies = [revision.policy for revision in self._policies.values() if revision.action is not Action.DELETE]
        policies.sort(key=lambda policy: policy.name)
        return Snapshot(directives, policies, self._bounds, Plan({}, BEGINNING))

    def _every_view(self) -> list[Cell]:
        return [view for _, views in sorted(self._views.items(), key=_cell_key) for view in views]

    def _step(
        self,
        view: Cell,
        time: datetime,
        at: datetime,
        cause: Cause,
        record: BoundRecord | None = None,
        change: DirectiveRevision | PolicyChange | None = None,
    ) -> Step:
        openings = self._weigh(view, at)
        changed = change.revision.policy.name if isinstance(change, PolicyChange) else ""
        # One that decides no more is told of where that closes something, and where it is what has changed.
        told = (one for one in openings if one.was_open or one.policy.name in {changed, *self._open[view]})
        newest = record or self._records.get(view) or self._records.get(view.of_all)
        return Step(time, view, cause, newest, change, tuple(told))

    def _weigh(self, view: Cell, at: datetime) -> tuple[Opening, ...]:
        """What is open at a moment, beside what was."""
        was_open, openings = self._open.get(view, {}), []
        deciding = self._deciding(view)
        for policy in deciding:
            bound, why = opening(self._snapshot, policy, view, at)
            openings.append(Opening(policy, was_open.get(policy.name, False), bound is not None, why))
        self._open[view] = {one.policy.name: one.is_open for one in openings}
        gone = sorted(was_open.keys() - {policy.name for policy in deciding})
        openings += [
            Opening(self._policies[name].policy, was_open[name], False, self._why_not(name, view)) for name in gone
        ]
        bounds = [self._bounds[cell] for cell in {view, view.of_all} if cell in self._bounds]
        ends = [
            bound.updated_at + timedelta(seconds=policy.bound_max_age_seconds) + _INSTANT
            for bound in bounds
            for policy in deciding
        ]
        self._due.pop(view, None)
        if coming := [end for end in ends if end > at]:
            self._due[view] = min(coming)
        return tuple(openings)

    def _deciding(self, view: Cell) -> Sequence[Policy]:
        """The policies, not OFF, that decide for the cell and allow its directive."""
        policies = allowing(self._snapshot.policies, view.task, view.directive, view.tenant)
        if view.tenant:
            return policies
        elsewhere = {other.tenant for other in self._views[view]} - {""}
        return [policy for policy in policies if policy.tenant not in elsewhere]

    def _why_not(self, name: str, view: Cell) -> str:
        """Of a policy that decided, and allowed the directive."""
        last = self._policies[name]
        if last.action is Action.DELETE:
            return f"policy {name} is deleted"
        if last.policy.mode is Mode.OFF:
            return f"policy {name} is off"
        if view.directive not in last.policy.directives:
            return f"policy {name} does not allow {view.directive} any more"
        return f"policy {name} decides for task '{view.task}' no more"

    def _wanted(self, steps: Iterable[Step]) -> list[Step]:
        only, wanted = self._question.policy, []
        for step in steps:
            if only:
                mine = tuple(one for one in step.openings if one.policy.name == only)
                step = replace(step, openings=mine)
            concerns = bool(step.openings) or not only
            if isinstance(step.change, PolicyChange):
                name = step.change.revision.policy.name
                concerns = any(one.policy.name == name for one in step.openings)
            if step.changes_something or (self._question.all_steps and concerns and step.cause is not Cause.AGE):
                wanted.append(step)
        return wanted


def _cell_key(item: tuple[Cell, object]) -> tuple[str, str, str]:
    return item[0].model, item[0].task, item[0].directive
