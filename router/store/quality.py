"""Scores that evaluators gave, and the bounds that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common.quality.bound import (
    MAX_CLOCK_SKEW_SECONDS,
    BoundMethod,
    Cell,
    EpochReason,
    EpochStart,
    Floor,
    FloorKind,
    QualityBound,
    RawShare,
    is_of_future,
)
from common.quality.pairwise import Comparison
from router.samples import Score
from router.store.tables import bounds, samples, scores
from router.store.upsert import insert_new

_NOT_COMPARED = {field.name: None for field in fields(Comparison)}


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who made bounds, and from what."""

    evaluator: str
    code_revision: str = ""
    position: int | None = None
    """They rest on all scores up to this one, those of the report included; None where that was not said."""


@dataclass(frozen=True, slots=True)
class BoundRecord:
    """A line of a cell's history: a bound, or that the one before it no longer holds (`withdrawal`)."""

    bound: QualityBound
    withdrawal: EpochStart | None
    reporter: Reporter
    reported_at: datetime

    @property
    def withdrawn(self) -> bool:
        return self.withdrawal is not None


@dataclass(frozen=True, slots=True)
class Place:
    """Which cells are meant.

    model: "name@digest", or a name, of whatever digest; empty: any.
    task: None: any.
    directive: Empty: any.
    tenant: Its cells and those of all tenants together; empty: any.
    """

    model: str = ""
    task: str | None = None
    directive: str = ""
    tenant: str = ""


class QualityRepository:
    """Within one transaction; all that changes something within `Database.changing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_scores(self, given: Sequence[Score]) -> None:
        """Idempotent by sample_id, directive and its revision: the first score stays. The samples must exist."""
        rows = [
            {
                "sample_id": score.sample_id,
                "directive": score.cell.directive,
                "directive_revision": score.directive_revision,
                "quality": score.quality,
                "baseline_quality": score.baseline_quality,
                "judge": score.judge,
                "scored_at": score.scored_at,
                **(_NOT_COMPARED if score.comparison is None else asdict(score.comparison)),
            }
            for score in given
        ]
        await insert_new(self._connection, scores, rows, ("sample_id", "directive", "directive_revision"))

    async def scored(self, sample_ids: Collection[str]) -> set[tuple[str, str, int]]:
        """(sample_id, directive, revision) of the scores that these samples have."""
        query = select(scores).where(scores.c.sample_id.in_(sample_ids))
        return {(row.sample_id, row.directive, row.directive_revision) for row in await self._connection.execute(query)}

    async def scores_after(self, position: int, limit: int) -> tuple[tuple[int, Score], ...]:
        """(position, score), oldest first; the first page is after position 0."""
        query = (
            select(scores, samples.c.model, samples.c.task, samples.c.tenant)
            .join(samples)
            .where(scores.c.id > position)
            .order_by(scores.c.id)
            .limit(limit)
        )
        return tuple((row.id, score_of(row)) for row in await self._connection.execute(query))

    async def last_position(self) -> int:
        """Of the newest score; 0 before the first."""
        return (await self._connection.execute(select(func.max(scores.c.id)))).scalar_one() or 0

    async def last_scored_at(self) -> datetime | None:
        """None before the first score."""
        last: datetime | None = (await self._connection.execute(select(func.max(scores.c.scored_at)))).scalar_one()
        return last

    async def add_bounds(self, reported: Sequence[QualityBound], reporter: Reporter, reported_at: datetime) -> None:
        """Puts them in force, but for those that are no newer than what their cell has: repeats and stragglers. Where
        a position was said, none is either, whatever the clocks say; but a withdrawal that scores do not show may have
        come after what the bound rests on.
        """
        for bound in reported:
            last = await self._last(bound.cell)
            if last is None or _follows(bound, last, reporter, reported_at):
                await self._append(BoundRecord(bound, None, reporter, reported_at))

    async def withdraw(self, withdrawals: Sequence[EpochStart], reporter: Reporter) -> None:
        """Puts the bounds of their cells out of force; what was computed before that moment does not come back. Where
        it is not for what the scores say, tenants' own bounds rest on the same ground, and go too."""
        for start in withdrawals:
            for cell in await self._cells_on_ground(start):
                last = await self._last(cell)
                if last is None or last.withdrawn or (_is_of_judge(start) and last.bound.judge != start.judge):
                    continue
                bound = replace(last.bound, updated_at=max(last.bound.updated_at, start.at))
                position = await self.last_position() if reporter.position is None else reporter.position
                by = replace(reporter, position=position)
                await self._append(BoundRecord(bound, replace(start, cell=cell), by, start.at))

    async def mix_withdrawals(self) -> dict[tuple[Cell, str], tuple[EpochStart, int]]:
        """The last for TASK_MIX of each cell of all tenants and judge, and the position of the last score before."""
        query = (
            select(bounds)
            .where(bounds.c.reason == EpochReason.TASK_MIX.value, bounds.c.tenant == "")
            .order_by(bounds.c.id)
        )
        found = (_record(row) for row in await self._connection.execute(query))
        return {
            (start.cell, start.judge): (start, record.reporter.position or 0)
            for record in found
            if (start := record.withdrawal) is not None
        }

    async def _cells_on_ground(self, start: EpochStart) -> list[Cell]:
        if start.cell.tenant or not _is_of_judge(start):
            return [start.cell]
        cell = start.cell
        query = (
            select(bounds.c.tenant)
            .where(bounds.c.model == cell.model, bounds.c.task == cell.task, bounds.c.directive == cell.directive)
            .distinct()
            .order_by(bounds.c.tenant)
        )
        return [replace(cell, tenant=tenant) for tenant in await self._connection.scalars(query)]

    async def in_force(self) -> tuple[QualityBound, ...]:
        """The newest bound of every cell, withdrawn ones left out, in order of the cells."""
        newest = select(func.max(bounds.c.id)).group_by(
            bounds.c.model, bounds.c.task, bounds.c.directive, bounds.c.tenant
        )
        query = select(bounds).where(bounds.c.id.in_(newest), bounds.c.withdrawn.is_(False))
        found = [_record(row).bound for row in await self._connection.execute(query)]
        return tuple(sorted(found, key=lambda b: (b.cell.model, b.cell.task, b.cell.directive, b.cell.tenant)))

    async def history(self, cell: Cell) -> tuple[BoundRecord, ...]:
        """All that was ever in force for a cell, oldest first."""
        query = select(bounds).where(_of(cell)).order_by(bounds.c.id)
        return tuple(map(_record, (await self._connection.execute(query)).all()))

    async def records_after(self, place: Place, last_id: int, limit: int) -> tuple[tuple[int, BoundRecord], ...]:
        """(id, record) of all cells of a place, in order of the ids; the first are after id 0."""
        query = select(bounds).where(bounds.c.id > last_id, *_within(place)).order_by(bounds.c.id).limit(limit)
        return tuple((row.id, _record(row)) for row in await self._connection.execute(query))

    async def newest_as_of(self, place: Place, last_id: int) -> tuple[BoundRecord, ...]:
        """The newest record of every cell of a place, withdrawals too, among those up to and with an id."""
        newest = (
            select(func.max(bounds.c.id))
            .where(bounds.c.id <= last_id, *_within(place))
            .group_by(bounds.c.model, bounds.c.task, bounds.c.directive, bounds.c.tenant)
        )
        query = select(bounds).where(bounds.c.id.in_(newest))
        return tuple(map(_record, (await self._connection.execute(query)).all()))

    async def _last(self, cell: Cell) -> BoundRecord | None:
        query = select(bounds).where(_of(cell)).order_by(bounds.c.id.desc()).limit(1)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _record(row)

    async def _append(self, record: BoundRecord) -> None:
        bound, withdrawal = record.bound, record.withdrawal
        floor = withdrawal.floor if withdrawal is not None else None
        await self._connection.execute(
            insert(bounds).values(
                model=bound.cell.model,
                task=bound.cell.task,
                directive=bound.cell.directive,
                tenant=bound.cell.tenant,
                withdrawn=record.withdrawn,
                lower=bound.lower,
                upper=bound.upper,
                share=bound.share,
                absolute_lower=bound.absolute_lower,
                absolute_upper=bound.absolute_upper if bound.absolute_upper < 1 else None,
                samples=bound.samples,
                judge=bound.judge,
                revision=bound.revision,
                updated_at=bound.updated_at,
                reported_by=record.reporter.evaluator,
                reported_at=record.reported_at,
                method=bound.method.value,
                raw_lower=None if bound.raw is None else bound.raw.lower,
                raw_upper=None if bound.raw is None else bound.raw.upper,
                raw_share=None if bound.raw is None else bound.raw.share,
                since=bound.since,
                position=record.reporter.position,
                reason=None if withdrawal is None else withdrawal.reason.value,
                floor=None if floor is None else floor.quality,
                floor_kind=None if floor is None else floor.kind.value,
                code_revision=record.reporter.code_revision,
            )
        )


def _is_of_judge(start: EpochStart) -> bool:
    """Whether it puts out of force all that one judge's scores have said, without a score that says so."""
    return start.reason in (EpochReason.TASK_MIX, EpochReason.JUDGE)


def _is_of_before(bound: QualityBound, start: EpochStart) -> bool:
    """Whether a bound rests on scores from before quality changed: who has other floors, or another sensitivity, may
    not have found that it did. Routers' clocks differ."""
    quality_changed = start.reason in (EpochReason.DRIFT, EpochReason.CONTRADICTION)
    skew = timedelta(seconds=MAX_CLOCK_SKEW_SECONDS)
    return quality_changed and bound.since is not None and bound.since < start.at - skew


def _follows(bound: QualityBound, last: BoundRecord, reporter: Reporter, reported_at: datetime) -> bool:
    """Whether a bound takes the place of a cell's last record."""
    if is_of_future(last.bound.updated_at, reported_at):
        return True
    if last.withdrawal is not None and last.withdrawal.reason is EpochReason.TASK_MIX:
        # Scores do not show it: who made the bound need not have known of it.
        rests_on_later = bound.since is not None and bound.since >= last.withdrawal.at
        return rests_on_later and bound.updated_at > last.bound.updated_at
    if last.withdrawal is not None and _is_of_before(bound, last.withdrawal):
        return False
    return reporter.position is not None or bound.updated_at > last.bound.updated_at


def _within(place: Place) -> list[Any]:
    conditions: list[Any] = []
    if place.model:
        # Not LIKE, to which SQLite's letters have no case.
        name = f"{place.model}@"
        conditions.append((bounds.c.model == place.model) | (func.substr(bounds.c.model, 1, len(name)) == name))
    if place.task is not None:
        conditions.append(bounds.c.task == place.task)
    if place.directive:
        conditions.append(bounds.c.directive == place.directive)
    if place.tenant:
        conditions.append(bounds.c.tenant.in_(("", place.tenant)))
    return conditions


def _of(cell: Cell) -> Any:
    return and_(
        bounds.c.model == cell.model,
        bounds.c.task == cell.task,
        bounds.c.directive == cell.directive,
        bounds.c.tenant == cell.tenant,
    )


def _record(row: Row[Any]) -> BoundRecord:
    bound = QualityBound(
        cell=Cell(row.model, row.task, row.directive, row.tenant),
        lower=row.lower,
        upper=row.upper,
        share=row.share,
        absolute_lower=row.absolute_lower,
        absolute_upper=1.0 if row.absolute_upper is None else row.absolute_upper,
        samples=row.samples,
        judge=row.judge,
        revision=row.revision,
        updated_at=row.updated_at,
        method=BoundMethod(row.method),
        raw=None if row.raw_lower is None else RawShare(row.raw_lower, row.raw_upper, row.raw_share),
        since=row.since,
    )
    reporter = Reporter(row.reported_by, row.code_revision, row.position)
    return BoundRecord(bound, _withdrawal(row) if row.withdrawn else None, reporter, row.reported_at)


def _withdrawal(row: Row[Any]) -> EpochStart:
    # Rows of before reasons were kept tell of none: most were a drop.
    reason = EpochReason.DRIFT if row.reason is None else EpochReason(row.reason)
    floor = None if row.floor is None else Floor(row.floor, FloorKind(row.floor_kind))
    return EpochStart(Cell(row.model, row.task, row.directive, row.tenant), row.judge, reason, row.reported_at, floor)


def score_of(row: Row[Any]) -> Score:
    """Of a row of `scores` with model, task and tenant of its sample."""
    return Score(
        cell=Cell(row.model, row.task, row.directive),
        directive_revision=row.directive_revision,
        sample_id=row.sample_id,
        quality=row.quality,
        baseline_quality=row.baseline_quality,
        judge=row.judge,
        scored_at=row.scored_at,
        comparison=None
        if row.characters is None
        else Comparison(row.characters, row.baseline_characters, row.shown_first, row.shown_second),
        tenant=row.tenant,
    )
