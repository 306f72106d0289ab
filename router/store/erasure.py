"""Erasure of what was said. What was found out about it, scores, ratings and choices, stays: that holds no text."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import delete, insert, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.tables import answers, erasures, ratings, samples


class ErasureRepository:
    """Within one transaction; `record` within `Database.changing`, the rest that changes something within `writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def record(self, tenant: str, before: datetime, erased_at: datetime, erased_by: str) -> None:
        """From now on no text of the tenant from before that moment is written any more, by any router."""
        known = (await self.all()).get(tenant)
        await self._connection.execute(delete(erasures).where(erasures.c.tenant == tenant))
        await self._connection.execute(
            insert(erasures).values(
                tenant=tenant,
                before=before if known is None else max(before, known),
                erased_at=erased_at,
                erased_by=erased_by,
            )
        )

    async def all(self) -> dict[str, datetime]:
        """By tenant, before when its text was erased."""
        return {row.tenant: row.before for row in await self._connection.execute(select(erasures))}

    async def hold(self, tenants: Collection[str]) -> dict[str, datetime]:
        """As `all`, of these tenants, and true until the transaction ends: for who is about to write text of theirs.

        A change waits for who shares the row that is its lock. So an erasure that is recorded later finds what this
        transaction has written.
        """
        if self._connection.dialect.name == "postgresql":
            # Not the row: those who share a row overtake a change that waits for it, for as long as they keep coming.
            await self._connection.execute(text("LOCK TABLE changes IN SHARE MODE"))
        query = select(erasures).where(erasures.c.tenant.in_(tenants))
        return {row.tenant: row.before for row in await self._connection.execute(query)}

    async def erase_samples(self, before: datetime, now: datetime, limit: int, tenant: str | None = None) -> int:
        """Of samples served before a moment; returns how many, at most `limit`. Leases stay, so that scores come in."""
        query = (
            select(samples.c.sample_id)
            .where(
                samples.c.erased_at.is_(None),
                samples.c.served_at < before,
                *([] if tenant is None else [samples.c.tenant == tenant]),
            )
            .order_by(samples.c.sample_id)
            .limit(limit)
            .with_for_update()
        )
        due = (await self._connection.execute(query)).scalars().all()
        await self._connection.execute(
            update(samples)
            .where(samples.c.sample_id.in_(due))
            # Stop strings and suppressed words are the caller's text too.
            .values(turns=[], reference="", sampling_json="{}", limits_json="{}", erased_at=now)
        )
        await self._connection.execute(delete(answers).where(answers.c.sample_id.in_(due)))
        return len(due)

    async def erase_comments(self, before: datetime, limit: int, tenant: str | None = None) -> int:
        """Of ratings given before a moment; returns how many, at most `limit`."""
        query = (
            select(ratings.c.tenant, ratings.c.request_id)
            .where(
                ratings.c.comment != "",
                ratings.c.rated_at < before,
                *([] if tenant is None else [ratings.c.tenant == tenant]),
            )
            .order_by(ratings.c.tenant, ratings.c.request_id)
            .limit(limit)
            .with_for_update()
        )
        due = [tuple(row) for row in await self._connection.execute(query)]
        key = tuple_(ratings.c.tenant, ratings.c.request_id)
        await self._connection.execute(update(ratings).where(key.in_(due)).values(comment=""))
        return len(due)
