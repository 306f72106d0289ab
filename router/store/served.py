"""The ledger as quality budgets read it: how many requests each directive was planned for, hour by hour."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime

from sqlalchemy import case, func, null, select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.directives.decide import Reason
from router.optimizer.traffic import Cells
from router.store.reports import SERVING, Window, within
from router.store.tables import ledger

_BY_PLAN = (Reason.PLANNED.value, Reason.HOLDBACK.value, Reason.SHADOW.value)


class ServedRepository:
    """Within one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def by_hour(self, start: datetime, end: datetime) -> dict[datetime, Cells]:
        """By hour that began in UTC, the requests that started in [start, end) and for which a policy's plan decided,
        without evaluation: all that are eligible, and those of tasks that the plan keeps at L0 whole, for these are in
        the mean that a budget holds as well. Of a policy in shadow, by the directive that it would have served.
        """
        in_shadow = ledger.c.reason == Reason.SHADOW.value
        directive = case((in_shadow, ledger.c.planned), else_=ledger.c.directive)
        revision = case((in_shadow, null()), else_=ledger.c.directive_revision)
        columns = (
            ledger.c.started_hour,
            ledger.c.policy,
            ledger.c.model,
            ledger.c.task,
            directive.label("directive"),
            revision.label("revision"),
        )
        query = (
            select(*columns, func.count().label("requests"))
            .where(*within(Window(start, end)), SERVING, ledger.c.policy != "", ledger.c.reason.in_(_BY_PLAN))
            .group_by(*columns)
        )
        found: defaultdict[datetime, Counter[tuple[str, str, str, str, int | None]]] = defaultdict(Counter)
        for row in await self._connection.execute(query):
            of = row.policy, row.model, row.task, row.directive, row.revision
            found[row.started_hour][of] += row.requests
        return dict(found)
