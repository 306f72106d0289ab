"""The last rating of a request is the one that counts, in whatever order they are written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from sqlalchemy import select

from router.ledger import Rating
from router.store.database import Database
from router.store.ratings import RatingRepository
from router.store.tables import ratings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RATING = Rating("acme", "r1", 1.0, "good\nreally", NOW, "alice")


async def put(database: Database, *given: Rating) -> None:
    async with database.writing() as connection:
        await RatingRepository(connection).put_many(given)


async def kept(database: Database) -> list[Rating]:
    async with database.reading() as connection:
        rows = await connection.execute(select(ratings).order_by(ratings.c.tenant, ratings.c.request_id))
        return [Rating(**row._mapping) for row in rows]


async def test_a_rating_is_kept_as_it_was_given(database: Database) -> None:
    await put(database, RATING)
    await put(database, RATING)
    await put(database)
    assert await kept(database) == [RATING]


@pytest.mark.parametrize("order", [*permutations(range(3))])
async def test_the_newest_stays_whatever_was_written_last(database: Database, order: tuple[int, ...]) -> None:
    changes = [
        replace(RATING, rating=n / 2, comment=str(n), rated_at=NOW + timedelta(microseconds=n)) for n in range(3)
    ]
    for index in order:
        await put(database, changes[index])
    assert await kept(database) == [changes[2]]


async def test_within_one_batch_and_one_moment_the_last_stays(database: Database) -> None:
    last = replace(RATING, rating=0.0, comment="", rated_by="bob")
    await put(database, RATING, replace(RATING, rating=0.5), last)
    assert await kept(database) == [last]


async def test_requests_and_tenants_are_told_apart(database: Database) -> None:
    given = [RATING, replace(RATING, request_id="r2", rating=0.0), replace(RATING, tenant="rival", rating=0.25)]
    await put(database, *given)
    assert await kept(database) == given
