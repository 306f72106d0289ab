"""Carbon by policy, day and signal in the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.carbon.intensity import Signal
from router.store.signals import signal_of
from router.store.tables import spent


class SpendingRepository:
    """Within one transaction; `add` within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def of_day(self, day: datetime) -> dict[tuple[str, Signal], float]:
        """Grams by policy and signal of the day that begins at `day`."""
        query = select(spent.c.policy, spent.c.intensity_kind, spent.c.intensity_scope, spent.c.grams)
        rows = await self._connection.execute(query.where(spent.c.day == day))
        return {(row.policy, signal_of(row)): row.grams for row in rows}

    async def add(self, grams: Mapping[tuple[str, datetime, Signal], float]) -> None:
        """Adds to what is there, by (policy, first moment of the day, signal)."""
        if not grams:
            return
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(spent)
        statement = statement.on_conflict_do_update(
            index_elements=[column.name for column in spent.primary_key],
            set_={"grams": spent.c.grams + statement.excluded.grams},
        )
        rows = [
            {
                "policy": policy,
                "day": day,
                "intensity_kind": signal.kind.value,
                "intensity_scope": signal.scope.value,
                "grams": more,
            }
            # In one order everywhere, so that two routers never wait for each other's rows.
            for (policy, day, signal), more in sorted(grams.items(), key=lambda item: (*item[0][:2], str(item[0][2])))
        ]
        await self._connection.execute(statement, rows)
