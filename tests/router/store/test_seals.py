"""One key a database, whoever makes it."""

from __future__ import annotations

import asyncio

from router.store.database import Database
from router.store.seals import SealRepository


async def key(database: Database, proposed: bytes) -> bytes:
    async with database.writing() as connection:
        return await SealRepository(connection).key(proposed)


async def test_the_first_key_stays(database: Database) -> None:
    first, second = bytes(range(32)), bytes(32)
    assert await key(database, first) == first
    assert await key(database, second) == first


async def test_routers_that_start_at_once_agree(database: Database, database_url: str) -> None:
    others = [Database(database_url) for _ in range(7)]
    proposed = [bytes([number]) * 32 for number in range(8)]
    keys = await asyncio.gather(
        *(key(at, own) for at, own in zip([database, *others], proposed, strict=True)),
    )
    assert len(set(keys)) == 1
    assert keys[0] in proposed
    for other in others:
        await other.close()


async def test_a_key_that_was_rolled_back_is_nobodys(database: Database) -> None:
    lost = bytes([1]) * 32
    try:
        async with database.writing() as connection:
            await SealRepository(connection).key(lost)
            raise RuntimeError("the router dies")
    except RuntimeError:
        pass
    assert await key(database, bytes([2]) * 32) == bytes([2]) * 32
