"""What was asked for when the scores behind each bound were gathered, and what is asked for now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Text, case, cast, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from common.quality.bound import Cell
from common.quality.graders import grader_of
from common.quality.mix import DAY_SECONDS, Part, TaskMix, largest
from router.store.tables import bounds, samples, scores

_DAY = timedelta(seconds=DAY_SECONDS)
MAX_DAYS = 3650
"""Since the scores were gathered: a clock may say anything."""
_MAX_LOG2 = 24
"""Of a prompt's characters: longer ones are one category. A message has at most 2**24 bytes."""

_Group = tuple[str, str, str]
"""(model, task, grader)"""
_Kept = Mapping[_Group, Counter[tuple[str, int]]]
"""Samples of one day by (tenant, log2 of the prompt's characters)."""


@dataclass(frozen=True, slots=True)
class _Gathered:
    """The scores behind a cell's bound."""

    cell: Cell
    grader: str
    first: datetime
    """When the first of the scored samples was served."""
    middle: datetime

    @property
    def group(self) -> _Group:
        return self.cell.model, self.cell.task, self.grader

    def days_ago(self, now: datetime) -> int:
        """How many whole days before the last 24 h the scores' day is: from the same hour on, with the middle one of
        the samples in it, or later where it would begin before the first, for that may have been another mix. 0 where
        no such day is over yet.
        """
        since_middle, since_first = (int((now - at) / _DAY) for at in (self.middle, self.first))
        return max(min(since_middle, since_first - 1, MAX_DAYS), 0)


class MixRepository:
    """Within one transaction that only reads."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def mixes(self, now: datetime) -> dict[Cell, TaskMix]:
        """Of the cells, of all tenants together, that have a bound in force whose scores' day can be told from the last
        24 h. All samples that were kept for the scores' grader count, whether they could be graded or not.
        """
        of_days: defaultdict[int, list[_Gathered]] = defaultdict(list)
        for gathered in await self._gathered():
            if days := gathered.days_ago(now):
                of_days[days].append(gathered)
        recent = await self._kept({g.group for several in of_days.values() for g in several}, now)
        found = {}
        for days, several in of_days.items():
            before = await self._kept({gathered.group for gathered in several}, now - days * _DAY)
            for gathered in several:
                found[gathered.cell] = _mix(before[gathered.group], recent[gathered.group])
        return found

    async def _gathered(self) -> list[_Gathered]:
        newest = select(func.max(bounds.c.id)).group_by(
            bounds.c.model, bounds.c.task, bounds.c.directive, bounds.c.tenant
        )
        cell = (bounds.c.model, bounds.c.task, bounds.c.directive, bounds.c.judge)
        by_time = (samples.c.served_at, samples.c.sample_id)
        scored = (
            select(
                *cell,
                samples.c.served_at,
                func.row_number().over(partition_by=cell, order_by=by_time).label("place"),
                func.count().over(partition_by=cell).label("total"),
            )
            .select_from(bounds)
            .join(samples, (samples.c.model == bounds.c.model) & (samples.c.task == bounds.c.task))
            .join(
                scores,
                (scores.c.sample_id == samples.c.sample_id)
                & (scores.c.directive == bounds.c.directive)
                & (scores.c.judge == bounds.c.judge)
                & (cast(scores.c.directive_revision, Text) == bounds.c.revision)
                & or_(bounds.c.since.is_(None), scores.c.scored_at >= bounds.c.since),
            )
            .where(bounds.c.id.in_(newest), bounds.c.withdrawn.is_(False), bounds.c.tenant == "")
            .subquery()
        )
        query = select(
            scored.c.model,
            scored.c.task,
            scored.c.directive,
            scored.c.judge,
            func.min(scored.c.served_at).label("first"),
            func.min(case((2 * scored.c.place > scored.c.total, scored.c.served_at))).label("middle"),
        ).group_by(scored.c.model, scored.c.task, scored.c.directive, scored.c.judge)
        return [
            _Gathered(Cell(row.model, row.task, row.directive), grader_of(row.judge), row.first, row.middle)
            for row in await self._connection.execute(query)
        ]

    async def _kept(self, groups: Iterable[_Group], until: datetime) -> _Kept:
        """Of the 24 h up to a moment."""
        found: defaultdict[_Group, Counter[tuple[str, int]]] = defaultdict(Counter)
        tasks = sorted({(model, task) for model, task, _ in groups})
        log2 = _log2(samples.c.prompt_characters).label("log2")
        group = (samples.c.model, samples.c.task, samples.c.grader, samples.c.tenant, log2)
        # The databases take only so many values at once.
        for begin in range(0, len(tasks), 500):
            query = (
                select(*group, func.count().label("n"))
                .where(
                    tuple_(samples.c.model, samples.c.task).in_(tasks[begin : begin + 500]),
                    samples.c.served_at >= until - _DAY,
                    samples.c.served_at < until,
                    samples.c.prompt_characters.is_not(None),
                )
                .group_by(*group)
            )
            for row in await self._connection.execute(query):
                found[row.model, row.task, row.grader][row.tenant, row.log2] += row.n
        return found


def _log2(characters: ColumnElement[Any]) -> ColumnElement[int]:
    """Rounded down; 0 of 0. SQLite may have been built without logarithms."""
    return case(*((characters < 2 ** (log2 + 1), log2) for log2 in range(_MAX_LOG2)), else_=_MAX_LOG2)


def _mix(before: Counter[tuple[str, int]], recent: Counter[tuple[str, int]]) -> TaskMix:
    lengths: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    tenants: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for day, kept in enumerate((before, recent)):
        for (tenant, log2), count in kept.items():
            lengths[str(log2)][day] += count
            tenants[tenant][day] += count
    by_tenant = {name: Part(*counts) for name, counts in tenants.items()}
    return TaskMix({name: Part(*lengths[name]) for name in sorted(lengths, key=int)}, largest(by_tenant))
