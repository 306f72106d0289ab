"""Ratings of answers in the database: the last one of each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from router.ledger import Rating
from router.store.erasure import ErasureRepository
from router.store.tables import ratings

_KEY = ("tenant", "request_id")


class RatingRepository:
    """Within one transaction of `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put_many(self, given: Sequence[Rating]) -> None:
        """Keeps the newest of each request, in whatever order they come: outboxes are late. Harmless when repeated.

        Comments that their tenant had erased are left out.
        """
        if not given:
            return
        erased = await ErasureRepository(self._connection).hold({rating.tenant for rating in given})
        given = [
            replace(one, comment="") if one.tenant in erased and one.rated_at < erased[one.tenant] else one
            for one in given
        ]
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(ratings)
        changed = {column.name: insert.excluded[column.name] for column in ratings.c if column.name not in _KEY}
        statement = insert.on_conflict_do_update(
            index_elements=list(_KEY), set_=changed, where=insert.excluded.rated_at >= ratings.c.rated_at
        )
        # In one order everywhere, so that two routers never wait for each other's rows.
        rows = sorted(map(asdict, given), key=lambda row: (row["tenant"], row["request_id"]))
        await self._connection.execute(statement, rows)
