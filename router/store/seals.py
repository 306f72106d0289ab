"""The key by which every router of a database knows the decisions that another one sealed."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.tables import seals
from router.store.upsert import insert_new

_ONLY = 1


class SealRepository:
    """Within one transaction of `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def key(self, proposed: bytes) -> bytes:
        """The database's key; `proposed`, random bytes, becomes it where there is none yet.

        Of routers that start at once, one's is taken: the second waits for the first one's transaction to end.
        """
        await insert_new(self._connection, seals, [{"id": _ONLY, "key": proposed.hex()}], ("id",))
        kept = await self._connection.execute(select(seals.c.key).where(seals.c.id == _ONLY))
        return bytes.fromhex(kept.scalar_one())
