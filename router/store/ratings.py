"""Ratings of answers in the database: the last one of each request; and what judges said of the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from sqlalchemy import and_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.quality.agreement import RatedScore
from router.directives.levels import L0
from router.ledger import Rating
from router.samples import sample_id
from router.store.erasure import ErasureRepository
from router.store.tables import ledger, ratings, scores

_KEY = ("tenant", "request_id")


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """A user's rating, and what the user was served."""

    tenant: str
    request_id: str
    rating: float
    task: str
    directive: str
    directive_revision: int
    started_at: datetime


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

    async def answers_after(self, key: tuple[str, ...], limit: int) -> tuple[RatedAnswer, ...]:
        """Of requests that the ledger has, in order of (tenant, request_id), which `key` is; the first page is after
        empty ones."""
        columns = [ratings.c[name] for name in _KEY]
        served = [ledger.c[name] for name in ("task", "directive", "directive_revision", "started_at")]
        query = (
            select(*columns, ratings.c.rating, *served)
            .join(ledger, and_(*(ledger.c[name] == ratings.c[name] for name in _KEY)))
            .where(tuple_(*columns) > key)
            .order_by(*columns)
            .limit(limit)
        )
        return tuple(RatedAnswer(**row._mapping) for row in await self._connection.execute(query))

    async def scores_of(self, rated: Sequence[RatedAnswer], secret: bytes) -> tuple[RatedScore, ...]:
        """A judge's score of each of these answers, where there is one: L0's own, too, was it graded and not merely
        what others were compared with.

        Args:
            secret: By which samples are named.
        """
        of_sample = {sample_id(secret, one.tenant, one.request_id, one.started_at): one for one in rated}
        query = select(scores).where(scores.c.sample_id.in_(of_sample)).order_by(scores.c.id)
        found: dict[tuple[str, str], RatedScore] = {}
        for row in await self._connection.execute(query):
            answer = of_sample[row.sample_id]
            if answer.directive == L0.name and row.shown_first is None:
                quality = row.baseline_quality
            elif (answer.directive, answer.directive_revision) == (row.directive, row.directive_revision):
                quality = row.quality
            else:
                continue
            # L0's answer is graded once for every directive.
            found.setdefault(
                (row.sample_id, row.judge),
                RatedScore(
                    row.judge, answer.task, answer.directive, answer.rating, quality, row.shown_first is not None
                ),
            )
        return tuple(found.values())
