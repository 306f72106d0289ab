"""Samples, their leases, and which still lack a score."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from common.quality.bound import Cell
from router.directives.compile import Turn
from router.samples import Answer, Sample, Score
from router.store.database import Database
from router.store.quality import QualityRepository
from router.store.samples import SampleRepository
from router.store.tables import samples

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
SERVED = Answer("L0", 1, "The answer is 4.", 6)
BOTH = {"L1": 1, "L2": 3}


def sample(number: int, **changes: object) -> Sample:
    plain = Sample(
        sample_id=f"s{number}",
        tenant="acme",
        model="tiny@0123",
        task="sums",
        turns=(Turn("system", "Be kind."), Turn("user", "2 + 2? \x00 ü")),
        sampling_json='{"seed": "18446744073709551615"}',
        limits_json="{}",
        reference="4",
        grader="numeric",
        served_at=NOON + timedelta(seconds=number),
        answers=(SERVED,),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def score(number: int, directive: str, revision: int = 1) -> Score:
    return Score(Cell("tiny@0123", "sums", directive), revision, f"s{number}", 1.0, 1.0, "grader:numeric", NOON)


async def keep(database: Database, *samples: Sample) -> None:
    async with database.writing() as connection:
        await SampleRepository(connection).add_many(samples)


async def draw(
    database: Database, count: int = 9, now: datetime = LATER, holder: str = "e1", lease_seconds: float = 60
) -> Sequence[str]:
    async with database.writing() as connection:
        drawn = await SampleRepository(connection).draw("tiny@0123", "sums", BOTH, count, holder, now, lease_seconds)
    return [sample.sample_id for sample in drawn]


async def test_a_sample_comes_back_as_it_was(database: Database) -> None:
    await keep(database, sample(1), sample(1, reference="another"))
    async with database.writing() as connection:
        samples = SampleRepository(connection)
        await samples.add_answers([("s1", Answer("L1", 1, "4", 2)), ("s1", Answer("L0", 1, "changed", 9))])
        found = await samples.get_many(["s1", "s9"])
        assert await samples.answered(["s1", "s9"]) == {("s1", "L0", 1), ("s1", "L1", 1)}
    assert found == (sample(1, answers=(SERVED, Answer("L1", 1, "4", 2))),)


async def test_what_can_be_graded_is_drawn_whenever_it_was_served(database: Database) -> None:
    await keep(
        database,
        sample(5),
        sample(3),
        sample(4, served_at=NOON - timedelta(days=9)),
        sample(1, reference=""),
        sample(2, grader=""),
        sample(6, task="lists"),
        sample(7, model="other@4567"),
    )
    assert sorted(await draw(database, count=2)) == ["s3", "s4"]
    assert await draw(database, count=2) == ["s5"]


async def test_who_compares_needs_no_reference(database: Database) -> None:
    await keep(database, sample(1, reference="", grader="pairwise"), sample(2, grader="pairwise"), sample(3, grader=""))
    async with database.reading() as connection:
        assert await SampleRepository(connection).gradable() == {("tiny@0123", "sums", "pairwise"): 2}
    assert await draw(database) == ["s1", "s2"]


async def test_only_what_was_served_after_a_time_is_drawn_where_one_is_given(database: Database) -> None:
    await keep(database, sample(1), sample(2), sample(3))
    async with database.writing() as connection:
        samples = SampleRepository(connection)
        after = NOON + timedelta(seconds=2)
        drawn = await samples.draw("tiny@0123", "sums", BOTH, 9, "e1", LATER, 60, served_after=after)
    assert [sample.sample_id for sample in drawn] == ["s3"]


async def test_what_somebody_holds_is_drawn_again_only_when_the_lease_has_ended(database: Database) -> None:
    await keep(database, sample(1), sample(2))
    assert await draw(database, count=1, lease_seconds=60) == ["s1"]
    assert await draw(database, holder="e2", lease_seconds=60) == ["s2"]
    just_before = LATER + timedelta(seconds=59.999)
    assert await draw(database, now=just_before) == []
    assert await draw(database, now=LATER + timedelta(seconds=60), holder="e2") == ["s1", "s2"]


async def test_a_released_sample_is_free_but_only_its_holder_can_release_it(database: Database) -> None:
    await keep(database, sample(1), sample(2))
    await draw(database, holder="e1")
    async with database.writing() as connection:
        samples = SampleRepository(connection)
        await samples.release(["s1"], "e2")
        await samples.release(["s2"], "e1")
        leases = await samples.leases(["s1", "s2", "s3"])
    assert {name: lease.holder for name, lease in leases.items()} == {"s1": "e1", "s2": None}
    assert leases["s1"].until == LATER + timedelta(seconds=60)
    assert await draw(database) == ["s2"]


async def test_a_sample_is_drawn_while_it_lacks_a_score_of_the_present_revision(database: Database) -> None:
    await keep(database, *(sample(number) for number in range(1, 5)))
    async with database.changing() as connection:
        await QualityRepository(connection).add_scores(
            [
                score(1, "L1"),
                score(1, "L2", 3),
                score(2, "L1"),
                score(2, "L2", 2),
                score(3, "L1"),
                score(3, "other"),
                score(4, "L1", 1),
                score(4, "L1", 2),
                score(4, "L2", 3),
            ]
        )
    assert await draw(database) == ["s2", "s3"]


async def test_two_who_draw_at_once_get_different_samples(database: Database) -> None:
    await keep(database, *(sample(number) for number in range(20)))
    drawn = await asyncio.gather(*(draw(database, count=5, holder=f"e{n}") for n in range(4)))
    everything = [sample_id for one in drawn for sample_id in one]
    assert len(everything) == len(set(everything))


async def drawn_for_trial(database: Database, rng: random.Random, count: int, model: str = "") -> list[str]:
    async with database.reading() as connection:
        return [s.sample_id for s in await SampleRepository(connection).draw_any("sums", count, rng, model)]


async def test_a_draw_for_a_trial_is_uniform_and_repeats_with_its_seed(database: Database) -> None:
    await keep(database, *(sample(number) for number in range(8)), sample(9, grader=""), sample(10, task="lists"))
    await draw(database, count=4)
    rng = random.Random(1)
    drawn = [await drawn_for_trial(database, rng, 2) for _ in range(400)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = Counter(sample_id for pair in drawn for sample_id in pair)
    # Each is in a quarter of the draws: 100, with a standard deviation of 8.7.
    assert set(counts) == {f"s{number}" for number in range(8)}
    assert all(60 < count < 140 for count in counts.values())
    assert await drawn_for_trial(database, random.Random(1), 2) == drawn[0]
    assert len(await drawn_for_trial(database, rng, 200)) == 8


async def test_what_is_erased_is_not_drawn_for_a_trial(database: Database) -> None:
    await keep(database, *(sample(number) for number in range(4)))
    async with database.writing() as connection:
        await connection.execute(update(samples).where(samples.c.sample_id == "s2").values(erased_at=LATER))
    assert await drawn_for_trial(database, random.Random(1), 9) == ["s0", "s1", "s3"]


async def test_a_draw_for_a_trial_is_of_one_model(database: Database) -> None:
    others = [sample(number, model="tiny@4567") for number in range(10, 13)]
    await keep(database, sample(1), sample(2), *others, sample(20, model="other@89ab"))
    rng = random.Random(1)
    assert await drawn_for_trial(database, rng, 9) == ["s10", "s11", "s12"]
    assert await drawn_for_trial(database, rng, 9, "tiny") == ["s10", "s11", "s12"]
    assert await drawn_for_trial(database, rng, 9, "tiny@0123") == ["s1", "s2"]
    assert await drawn_for_trial(database, rng, 9, "other") == ["s20"]
    assert await drawn_for_trial(database, rng, 9, "tin") == []


async def test_counts_of_what_can_be_and_what_is_judged(database: Database) -> None:
    await keep(database, sample(1), sample(2), sample(3, task="lists"), sample(4, reference=""))
    await keep(database, sample(5, grader="exact"))
    async with database.changing() as connection:
        await QualityRepository(connection).add_scores(
            [score(1, "L1"), score(2, "L1"), score(2, "L1", 2), score(4, "L1"), score(5, "L1")]
        )
        samples = SampleRepository(connection)
        exact, numeric = ("tiny@0123", "sums", "exact"), ("tiny@0123", "sums", "numeric")
        assert await samples.gradable() == {numeric: 2, exact: 1, ("tiny@0123", "lists", "numeric"): 1}
        cell = Cell("tiny@0123", "sums", "L1")
        assert await samples.scored() == {(cell, 1, "numeric"): 2, (cell, 2, "numeric"): 1, (cell, 1, "exact"): 1}
