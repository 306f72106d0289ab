"""Erasure of text, also of what is written at that very moment."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from common.quality.bound import Cell
from router.directives.compile import Turn
from router.ledger import Rating
from router.samples import Answer, Sample, Score
from router.store.database import Database
from router.store.erasure import ErasureRepository
from router.store.quality import QualityRepository
from router.store.ratings import RatingRepository
from router.store.samples import SampleRepository
from router.store.tables import answers, ratings, samples
from router.store.upsert import insert_new

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TEXT = "the text"
PLAIN = Sample(
    "s", "acme", "tiny@0", "sums", (Turn("user", TEXT),), '{"suppressedWords": ["the text"]}', '{"stop": ["the text"]}',
    TEXT, "numeric", NOON, (Answer("L0", 1, TEXT, 3),),
)  # fmt: skip


def sample(name: str, tenant: str = "acme", hours: int = 0) -> Sample:
    return replace(PLAIN, sample_id=name, tenant=tenant, served_at=NOON + hours * HOUR)


async def write(database: Database, *kept: Sample) -> None:
    async with database.writing() as connection:
        await SampleRepository(connection).add_many(kept)


async def rate(database: Database, *given: Rating) -> None:
    async with database.writing() as connection:
        await RatingRepository(connection).put_many(given)


def rating(request_id: str, tenant: str = "acme", hours: int = 0, comment: str = TEXT) -> Rating:
    return Rating(tenant, request_id, 1.0, comment, NOON + hours * HOUR, "shop")


async def record(database: Database, tenant: str, before: datetime) -> None:
    async with database.changing() as connection:
        await ErasureRepository(connection).record(tenant, before, NOON, "root")


async def erase(database: Database, before: datetime, limit: int = 100, tenant: str | None = None) -> tuple[int, int]:
    async with database.writing() as connection:
        erasures = ErasureRepository(connection)
        return (
            await erasures.erase_samples(before, NOON + 9 * HOUR, limit, tenant),
            await erasures.erase_comments(before, limit, tenant),
        )


async def texts(database: Database) -> dict[str, int]:
    """How often the text stands in each row, by sample or request."""
    async with database.reading() as connection:
        rows: Sequence[Any] = [
            *(await connection.execute(select(samples))).all(),
            *(await connection.execute(select(answers))).all(),
        ]
        found: dict[str, int] = {}
        for row in rows:
            found[row.sample_id] = found.get(row.sample_id, 0) + str(row).count(TEXT)
        for row in (await connection.execute(select(ratings))).all():
            found[row.request_id] = row.comment.count(TEXT)
    return found


WHOLE = 5
"""Places of a sample that hold text: turns, sampling, limits, reference, answer."""


async def test_what_is_older_loses_its_text_a_batch_at_a_time(database: Database) -> None:
    await write(database, *(sample(f"s{n}", hours=n) for n in range(4)))
    await rate(database, *(rating(f"r{n}", hours=n) for n in range(4)), rating("empty", comment=""))
    before = NOON + 3 * HOUR
    assert [await erase(database, before, 2) for _ in range(3)] == [(2, 2), (1, 1), (0, 0)]
    assert await texts(database) == {
        "s0": 0, "s1": 0, "s2": 0, "s3": WHOLE, "r0": 0, "r1": 0, "r2": 0, "r3": 1, "empty": 0,
    }  # fmt: skip
    async with database.reading() as connection:
        erased = (await SampleRepository(connection).get_many(["s0"]))[0]
        at = (await connection.execute(select(samples.c.erased_at).where(samples.c.sample_id == "s0"))).scalar_one()
    assert (erased.turns, erased.reference, erased.answers, at) == ((), "", (), NOON + 9 * HOUR)


async def test_only_the_tenant_that_is_named_loses_its_text(database: Database) -> None:
    await write(database, sample("a"), sample("b", "other"))
    await rate(database, rating("ra"), rating("rb", "other"))
    assert await erase(database, NOON + HOUR, tenant="acme") == (1, 1)
    assert await texts(database) == {"a": 0, "b": WHOLE, "ra": 0, "rb": 1}


async def test_an_erased_sample_is_neither_drawn_nor_counted_and_its_scores_stay(database: Database) -> None:
    await write(database, sample("a"), sample("b", hours=2))
    cell = Cell("tiny@0", "sums", "L1")
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_scores([Score(cell, 1, name, 1.0, 1.0, "grader:numeric", NOON) for name in ("a", "b")])
    await erase(database, NOON + HOUR)
    async with database.writing() as connection:
        repository = SampleRepository(connection)
        assert await repository.gradable() == {("tiny@0", "sums", "numeric"): 1}
        assert await repository.scored() == {(cell, 1, "numeric"): 1}
        drawn = await repository.draw("tiny@0", "sums", {"L2": 1}, 9, "e1", NOON, 60)
        assert [one.sample_id for one in drawn] == ["b"]
        scores = [score.sample_id for _, score in await QualityRepository(connection).scores_after(0, 9)]
        assert scores == ["a", "b"]


async def test_an_answer_to_an_erased_sample_is_not_kept(database: Database) -> None:
    await write(database, sample("a"), sample("b", hours=2))
    await erase(database, NOON + HOUR)
    async with database.writing() as connection:
        await SampleRepository(connection).add_answers([(name, Answer("L1", 1, TEXT, 3)) for name in ("a", "b")])
    assert await texts(database) == {"a": 0, "b": WHOLE + 1}


async def test_what_comes_late_from_before_an_erasure_is_not_written(database: Database) -> None:
    await record(database, "acme", NOON + HOUR)
    await write(database, sample("late"), sample("new", hours=1), sample("foreign", "other"))
    await rate(database, rating("late-rating"), rating("new-rating", hours=1), rating("foreign-rating", "other"))
    assert await texts(database) == {
        "new": WHOLE, "foreign": WHOLE, "late-rating": 0, "new-rating": 1, "foreign-rating": 1,
    }  # fmt: skip


async def test_a_sample_that_is_written_again_after_its_erasure_stays_erased(database: Database) -> None:
    await write(database, sample("a"))
    await erase(database, NOON + HOUR)
    await write(database, sample("a"))
    assert await texts(database) == {"a": 0}


async def test_an_earlier_erasure_takes_no_later_one_back(database: Database) -> None:
    await record(database, "acme", NOON + 2 * HOUR)
    await record(database, "acme", NOON + HOUR)
    await record(database, "other", NOON)
    async with database.reading() as connection:
        assert await ErasureRepository(connection).all() == {"acme": NOON + 2 * HOUR, "other": NOON}


async def test_an_erasure_waits_for_who_is_writing_and_finds_what_they_wrote(database: Database) -> None:
    async with database.writing() as connection:
        await SampleRepository(connection).add_many([sample("a")])
        recording = asyncio.create_task(record(database, "acme", NOON + HOUR))
        # As long as it is not let through, it cannot be done however long this is.
        await asyncio.wait({recording}, timeout=0.3)
        assert not recording.done()
    await recording
    assert await erase(database, NOON + HOUR, tenant="acme") == (1, 0)
    assert await texts(database) == {"a": 0}


async def test_an_answer_that_is_written_while_its_sample_is_erased_goes_with_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(database, sample("a"))
    erasing: list[asyncio.Task[tuple[int, int]]] = []

    async def slow(*arguments: Any) -> None:
        """Between the look whether the sample is erased and the answer's row."""
        erasing.append(asyncio.create_task(erase(database, NOON + HOUR)))
        await asyncio.wait(erasing, timeout=0.3)
        await insert_new(*arguments)

    monkeypatch.setattr("router.store.samples.insert_new", slow)
    async with database.writing() as connection:
        await SampleRepository(connection).add_answers([("a", Answer("L1", 1, TEXT, 3))])
    await asyncio.wait_for(erasing[0], 10)
    assert await texts(database) == {"a": 0}
