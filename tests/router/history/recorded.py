"""Records of a router's life, and a history told from them page by page, as the database gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind, QualityBound
from router.directives.levels import Directive
from router.directives.policy import Mode, Policy
from router.history.records import Cursor, Known, Records
from router.history.replay import Question, tell
from router.history.step import Step
from router.store.directives import DirectiveRevision
from router.store.policies import PolicyRevision
from router.store.quality import BoundRecord, Reporter
from router.store.revisions import Action

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CELL = Cell("tiny@0123", "sums", "L1")
REPORTER = Reporter("e1", "0.1.0+abc", 73)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def bound(
    minutes: float, lower: float = 0.96, *, cell: Cell = CELL, revision: int = 1, upper: float = 1.1
) -> BoundRecord:
    """Reported a second after its last score."""
    reported_at = at(minutes)
    scored_at = reported_at - timedelta(seconds=1)
    found = QualityBound(cell, lower, max(lower, upper), 1.0, lower, 73, "grader:numeric", str(revision), scored_at)
    return BoundRecord(found, None, REPORTER, reported_at)


def withdrawal(minutes: float, last: BoundRecord) -> BoundRecord:
    start = EpochStart(
        last.bound.cell, last.bound.judge, EpochReason.DRIFT, at(minutes), Floor(0.95, FloorKind.RELATIVE)
    )
    return BoundRecord(replace(last.bound, updated_at=start.at), start, REPORTER, start.at)


def directive(minutes: float, revision: int = 1, name: str = "L1", action: Action = Action.UPDATE) -> DirectiveRevision:
    by = Directive(name, f"text {revision}", revision=revision, updated_at=at(minutes), updated_by="root")
    return DirectiveRevision(by, action, "because")


def policy(minutes: float, revision: int = 1, action: Action = Action.UPDATE, **fields: object) -> PolicyRevision:
    given = Policy("sums", mode=Mode.ON, directives=("L1",), floor=0.95, bound_max_age_seconds=3600)
    given = replace(given, **fields, revision=revision, updated_at=at(minutes), updated_by="ann")  # type: ignore[arg-type]
    return PolicyRevision(given, action, "because")


@dataclass(frozen=True)
class Life:
    """All that was recorded; bounds in the order of their ids, which count from 1."""

    bounds: Sequence[BoundRecord] = ()
    directives: Sequence[DirectiveRevision] = ()
    policies: Sequence[PolicyRevision] = ()

    def page(
        self, question: Question, cursor: Cursor, size: int, now: datetime, most_records: int = 1000
    ) -> tuple[tuple[Step, ...], Cursor | None]:
        """As the database would have it."""
        numbered = list(enumerate(self.bounds, 1))
        directives = sorted(self.directives, key=lambda revision: revision.key)
        policies = sorted(self.policies, key=lambda revision: revision.key)
        known = Known(
            list({record.bound.cell: record for number, record in numbered if number <= cursor.bound}.values()),
            _newest([revision for revision in directives if cursor.directive and revision.key <= cursor.directive]),
            _newest([revision for revision in policies if cursor.policy and revision.key <= cursor.policy]),
        )
        bounds = [(number, record) for number, record in numbered if number > cursor.bound]
        directives = [revision for revision in directives if not cursor.directive or revision.key > cursor.directive]
        policies = [revision for revision in policies if not cursor.policy or revision.key > cursor.policy]
        sizes = {"bound": len(bounds), "directive": len(directives), "policy": len(policies)}
        records = Records(
            bounds[:most_records],
            directives[:most_records],
            policies[:most_records],
            frozenset(kind for kind, found in sizes.items() if found > most_records),
        )
        return tell(question, known, records, cursor, size, now)

    def steps(
        self, now: datetime, question: Question | None = None, size: int = 10_000, most_records: int = 1000
    ) -> list[Step]:
        """Of all pages."""
        return [step for page in self.pages(now, question, size, most_records) for step in page]

    def pages(
        self, now: datetime, question: Question | None = None, size: int = 10_000, most_records: int = 1000
    ) -> Iterator[tuple[Step, ...]]:
        cursor: Cursor | None = Cursor()
        while cursor is not None:
            page, cursor = self.page(question or Question(), cursor, size, now, most_records)
            yield page


def _newest(revisions: list[DirectiveRevision] | list[PolicyRevision]) -> list[object]:  # type: ignore[misc]
    newest: dict[str, object] = {}
    for revision in sorted(revisions, key=lambda one: one.key[2]):
        newest[revision.key[1]] = revision
    return list(newest.values())
