"""Scores once each, bounds in force and their history."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import exc

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind, QualityBound
from common.quality.pairwise import Comparison
from router.directives.compile import Turn
from router.samples import Sample, Score
from router.store.database import Database
from router.store.quality import QualityRepository, Reporter
from router.store.samples import SampleRepository

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CELL = Cell("tiny@0123", "sums", "L1")
BOUND = QualityBound(CELL, 0.96, 1.1, 1.0, 0.9, 80, "grader:numeric", "1", NOON)
SCORE = Score(CELL, 1, "s1", 0.5, 1.0, "grader:numeric", NOON, tenant="acme")


def later(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


async def keep_samples(database: Database) -> None:
    async with database.writing() as connection:
        await SampleRepository(connection).add_many(
            [
                Sample(f"s{n}", "acme", CELL.model, CELL.task, (Turn("user", "?"),), "{}", "{}", "", "", NOON, ())
                for n in range(1, 10)
            ]
        )


async def test_the_first_score_of_a_revision_stays(database: Database) -> None:
    await keep_samples(database)
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        assert await quality.last_scored_at() is None
        await quality.add_scores([SCORE, replace(SCORE, quality=0.9)])
        await quality.add_scores(
            [replace(SCORE, quality=0.1), replace(SCORE, directive_revision=2, scored_at=later(5))]
        )
        found = [score for _, score in await quality.scores_after(0, 9)]
        assert found == [SCORE, replace(SCORE, directive_revision=2, scored_at=later(5))]
        assert await quality.scored(["s1", "s2"]) == {("s1", "L1", 1), ("s1", "L1", 2)}
        assert await quality.last_scored_at() == later(5)


async def test_what_was_compared_is_kept_with_the_score(database: Database) -> None:
    await keep_samples(database)
    given = [
        replace(SCORE, comparison=Comparison(0, 10_000_000, 0.0, 1 / 3)),
        replace(SCORE, sample_id="s2"),
        replace(SCORE, sample_id="s3", comparison=Comparison(5, 0, 1.0, 1.0)),
    ]
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_scores(given)
        assert [score for _, score in await quality.scores_after(0, 9)] == given


async def test_a_score_of_no_sample_is_refused(database: Database) -> None:
    with pytest.raises(exc.IntegrityError):
        async with database.changing() as connection:
            await QualityRepository(connection).add_scores([SCORE])


async def test_scores_are_read_on_from_a_position(database: Database) -> None:
    await keep_samples(database)
    scores = [replace(SCORE, sample_id=f"s{n}") for n in (5, 2, 9, 1)]
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        for score in scores:
            await quality.add_scores([score])
        first = await quality.scores_after(0, 3)
        rest = await quality.scores_after(first[-1][0], 3)
    assert [score for _, score in (*first, *rest)] == scores


async def test_the_newest_bound_is_in_force_and_stragglers_are_not(database: Database) -> None:
    other = replace(BOUND, cell=replace(CELL, directive="L2"), share=None)
    newer = replace(BOUND, lower=0.97, updated_at=later(2))
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_bounds([BOUND, other], Reporter("e1"), later(1))
        await quality.add_bounds([newer], Reporter("e1"), later(3))
        for straggler in (replace(BOUND, lower=0.5, updated_at=later(1)), replace(newer, lower=0.4), BOUND):
            await quality.add_bounds([straggler], Reporter("e2"), later(4))
        assert await quality.in_force() == (newer, other)
        history = await quality.history(CELL)
    assert [(record.bound, record.withdrawn, record.reporter) for record in history] == [
        (BOUND, False, Reporter("e1")),
        (newer, False, Reporter("e1")),
    ]
    assert history[1].reported_at == later(3)


async def test_tenants_bounds_are_in_force_beside_that_of_all(database: Database) -> None:
    of_acme = replace(BOUND, cell=replace(CELL, tenant="acme"), lower=0.5, upper=0.9, absolute_upper=0.8)
    of_beta = replace(BOUND, cell=replace(CELL, tenant="beta"))
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_bounds([of_beta, BOUND, of_acme], Reporter("e1"), later(1))
        assert await quality.in_force() == (BOUND, of_acme, of_beta)
        await quality.withdraw([drop(of_beta.cell, 2)], Reporter("e1"))
        assert await quality.in_force() == (BOUND, of_acme)
        await quality.withdraw([drop(CELL, 3)], Reporter("e1"))
        assert await quality.in_force() == (of_acme,), "each drop is told of"


def drop(cell: Cell, minutes: int) -> EpochStart:
    return EpochStart(cell, "grader:exact", EpochReason.DRIFT, later(minutes), Floor(0.95, FloorKind.RELATIVE))


async def test_a_withdrawn_bound_is_out_of_force_until_a_newer_one_comes(database: Database) -> None:
    ahead = replace(BOUND, updated_at=later(7))  # by a clock that is ahead of ours
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_bounds([ahead], Reporter("e1"), later(5))
        await quality.withdraw([drop(CELL, 5), drop(replace(CELL, task="never judged"), 5)], Reporter("e1"))
        assert await quality.in_force() == ()
        await quality.add_bounds([ahead, replace(BOUND, updated_at=later(6))], Reporter("e1"), later(6))
        assert await quality.in_force() == ()
        await quality.withdraw([drop(CELL, 9)], Reporter("e1"))
        newer = replace(BOUND, updated_at=later(8))
        await quality.add_bounds([newer], Reporter("e1"), later(8))
        assert await quality.in_force() == (newer,)
        assert [record.withdrawn for record in await quality.history(CELL)] == [False, True, False]


@pytest.mark.parametrize("reason", [EpochReason.DRIFT, EpochReason.CONTRADICTION])
async def test_who_has_not_noticed_a_drop_does_not_open_again(database: Database, reason: EpochReason) -> None:
    """An evaluator with other floors, or another sensitivity, knows the same scores."""
    old = replace(BOUND, updated_at=later(80), since=NOON)
    fresh = replace(old, since=later(60))
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_bounds([replace(BOUND, since=NOON)], Reporter("e1", position=5), later(1))
        await quality.withdraw([EpochStart(CELL, BOUND.judge, reason, later(60))], Reporter("e1", position=6))
        await quality.add_bounds([old], Reporter("e2", position=7), later(80))
        assert await quality.in_force() == ()
        await quality.add_bounds([fresh], Reporter("e1", position=8), later(80))
        assert await quality.in_force() == (fresh,)
