"""Labelled prompts, as rows."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from router.store.database import Database, change_counter
from router.store.task_examples import TaskExample, TaskExampleRepository, TaskRevision

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FIRST = [
    TaskExample("summen", "1 + 1\n= ?"),
    TaskExample("", "Größe \u2028 'x' \"y\""),
    TaskExample("summen", "2 \\ 3"),
]


async def test_the_newest_prompts_come_back_in_their_order_and_older_ones_are_gone(database: Database) -> None:
    async with database.changing() as connection:
        examples = TaskExampleRepository(connection)
        assert (await examples.newest(), await examples.all(), await examples.counts()) == (None, (), Counter())
        first = await examples.replace(FIRST, "why", NOON, "root")
        assert first == await examples.newest() == TaskRevision(1, 3, "why", NOON, "root")
        assert await examples.all() == tuple(FIRST)
        assert list((await examples.counts()).items()) == [("summen", 2), ("", 1)]
        later = NOON + timedelta(hours=1)
        second = await examples.replace([TaskExample("b", "x")], "", later, "another")
        assert second == await examples.newest() == TaskRevision(2, 1, "", later, "another")
        assert await examples.all() == (TaskExample("b", "x"),)
        assert await examples.replace([], "", later, "root") == TaskRevision(3, 0, "", later, "root")
        assert (await examples.all(), await examples.counts()) == ((), Counter())


async def test_a_change_is_told_to_other_routers(database: Database) -> None:
    async with database.reading() as connection:
        before = await change_counter(connection)
    async with database.changing() as connection:
        await TaskExampleRepository(connection).replace(FIRST, "", NOON, "root")
    async with database.reading() as connection:
        assert await change_counter(connection) != before
