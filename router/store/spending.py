"""Carbon by policy and day in the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.tables import spent


def day_of(moment: datetime) -> datetime:
    """The first moment of its day (UTC)."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


class SpendingRepository:
    """Within one transaction; `add` within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def of_day(self, day: datetime) -> dict[str, float]:
        """Grams by policy of the day that begins at `day`."""
        rows = await self._connection.execute(select(spent.c.policy, spent.c.grams).where(spent.c.day == day))
        return {row.policy: row.grams for row in rows}

    async def add(self, grams: Mapping[tuple[str, datetime], float]) -> None:
        """Adds to what is there, by (policy, first moment of the day)."""
        if not grams:
            return
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(spent)
        statement = statement.on_conflict_do_update(
            index_elements=["policy", "day"], set_={"grams": spent.c.grams + statement.excluded.grams}
        )
        # In one order everywhere, so that two routers never wait for each other's rows.
        rows = [{"policy": policy, "day": day, "grams": more} for (policy, day), more in sorted(grams.items())]
        await self._connection.execute(statement, rows)
