"""The ledger as a replay reads it: requests one by one, and what those of a cell cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common.carbon.intensity import Signal
from common.quality.bound import Cell
from router.directives.decide import Reason
from router.replay.recorded import CellCost, Recorded
from router.store.reports import SERVING, Window, of_no_other, within
from router.store.tables import ledger

CHUNK = 2_000
"""Rows in memory at once."""


class ReplayRepository:
    """Within one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def cell_costs(self, window: Window) -> dict[tuple[Cell, int], CellCost]:
        """What requests with known energy cost, by cell and the directive's revision; without evaluation.

        Nor with requests that were left alone: they are of another kind than those that may have a directive.
        """
        joules = ledger.c.energy_joules
        cell = (ledger.c.model, ledger.c.task, ledger.c.directive, ledger.c.directive_revision)
        query = (
            select(
                *cell,
                func.count().label("requests"),
                func.sum(joules).label("joules"),
                func.sum(joules * joules).label("joules_squared"),
            )
            .where(
                *within(window),
                SERVING,
                joules.is_not(None),
                ledger.c.reason.not_in((Reason.LEFT_ALONE.value, Reason.OPT_OUT.value)),
            )
            .group_by(*cell)
        )
        return {
            (Cell(row.model, row.task, row.directive), row.directive_revision): CellCost(
                row.requests, row.joules, row.joules_squared
            )
            for row in await self._connection.execute(query)
        }

    async def newest(self, window: Window, task: str, most: int, signal: Signal | None) -> datetime | None:
        """From when on there are at most `most` requests of the window; None where all of it has no more.

        Args:
            task: Empty is every task.
            signal: Requests whose carbon was counted under another one are left out.
        """
        started = ledger.c.started_at
        query = select(started).where(*_serving(window, task, signal)).order_by(started.desc()).offset(most).limit(1)
        last_left_out = (await self._connection.execute(query)).scalar_one_or_none()
        return None if last_left_out is None else last_left_out + timedelta(microseconds=1)

    async def recorded(self, window: Window, task: str, signal: Signal | None) -> AsyncIterator[Sequence[Recorded]]:
        """The requests of the window and, unless empty, of a task, without evaluation, and without those whose carbon
        was counted under another signal: in chunks, oldest first."""
        query = (
            select(
                ledger.c.tenant,
                ledger.c.request_id,
                ledger.c.task,
                ledger.c.model,
                ledger.c.directive,
                ledger.c.directive_revision,
                ledger.c.reason,
                ledger.c.energy_joules,
                (ledger.c.operational_grams + func.coalesce(ledger.c.embodied_grams, 0.0)).label("grams"),
                ledger.c.started_at,
            )
            .where(*_serving(window, task, signal))
            .order_by(ledger.c.started_at)
        )
        async with self._connection.stream(query.execution_options(yield_per=CHUNK)) as rows:
            async for chunk in rows.partitions():
                yield [_recorded(row) for row in chunk]


def _serving(window: Window, task: str, signal: Signal | None) -> list[ColumnElement[bool]]:
    of_task = [ledger.c.task == task] if task else []
    return [*within(window), SERVING, of_no_other(signal), *of_task]


def _recorded(row: Any) -> Recorded:
    return Recorded(
        tenant=row.tenant,
        request_id=row.request_id,
        task=row.task,
        model=row.model,
        directive=row.directive,
        directive_revision=row.directive_revision,
        reason=row.reason,
        grams=None if row.energy_joules is None else row.grams,
        started_at=row.started_at,
    )
