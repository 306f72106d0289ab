"""What was asked for when scores were gathered, beside the last day, from the samples that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from common.quality.bound import Cell, EpochReason, EpochStart, QualityBound
from common.quality.mix import Part, TaskMix
from router.directives.compile import Turn
from router.samples import Sample, Score
from router.store.database import Database
from router.store.erasure import ErasureRepository
from router.store.mix import MixRepository
from router.store.quality import QualityRepository, Reporter
from router.store.samples import SampleRepository

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CELL = Cell("tiny@0123", "sums", "L1")
JUDGE = "grader:numeric@2"
BY = Reporter("e1")


def hours(later: float) -> datetime:
    return NOON + timedelta(hours=later)


def sample(name: str, at: float, *, text: str = "2 + 2?", tenant: str = "acme", **changes: str) -> Sample:
    plain = Sample(
        sample_id=name,
        tenant=tenant,
        model=CELL.model,
        task=CELL.task,
        turns=(Turn("user", text),),
        sampling_json="{}",
        limits_json="{}",
        reference="",
        grader="numeric",
        served_at=hours(at),
        answers=(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


async def keep(database: Database, kept: Iterable[Sample]) -> None:
    async with database.writing() as connection:
        await SampleRepository(connection).add_many(list(kept))


async def score(
    database: Database, names: Iterable[str], at: float, *, judge: str = JUDGE, revision: int = 1, since: float = 0.0
) -> None:
    """With the bound that follows."""
    given = [Score(CELL, revision, name, 1.0, 1.0, judge, hours(at)) for name in names]
    bound = QualityBound(CELL, 0.9, 1.0, 1.0, 0.9, 9, judge, str(revision), hours(at), since=hours(since))
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_scores(given)
        await quality.add_bounds([bound], BY, hours(at))


async def mixes(database: Database, at: float) -> dict[Cell, TaskMix]:
    async with database.reading() as connection:
        return await MixRepository(connection).mixes(hours(at))


async def test_the_day_of_the_scores_beside_the_last(database: Database) -> None:
    """All that was kept of either day counts, text or none; what other days, tasks and graders have does not."""
    await keep(database, (sample(f"a{hour}", hour) for hour in range(24)))
    await keep(database, (sample(f"b{hour}", 30 + hour, text="x" * 700, tenant="zed") for hour in range(10)))
    await keep(database, [sample("other task", 40, task="qa"), sample("other grader", 40, grader="exact")])
    await score(database, [f"a{hour}" for hour in range(0, 24, 2)], 25, since=25)
    await keep(database, (sample(f"c{hour}", 73.5 + hour, text="x" * 700) for hour in range(20)))
    await keep(
        database, [sample("empty", 95, text=""), sample("huge", 95, text="x" * (1 << 17)), sample("to come", 97)]
    )
    async with database.writing() as connection:
        # Retention must not make two days of equal mix look different.
        assert await ErasureRepository(connection).erase_samples(hours(12), hours(50), 100) == 12
    found = await mixes(database, 96)
    assert found == {
        CELL: TaskMix(
            lengths={"0": Part(0, 1), "2": Part(24, 0), "9": Part(0, 20), "17": Part(0, 1)},
            tenants={"acme": Part(24, 22)},
        )
    }
    assert list(found[CELL].lengths) == ["0", "2", "9", "17"]


@pytest.mark.parametrize(
    ("at", "days"),
    # The first of the scored samples is of 0 h, the middle one of 12 h.
    [(1, None), (24, None), (47.9, None), (48.5, 0.5), (71, 23), (73, 1), (24 * 4 + 6, 6), (24 * 30 + 6, 6)],
)
async def test_the_day_before_has_the_middle_one_and_none_from_before_the_first(
    database: Database, at: float, days: float | None
) -> None:
    """For before the first it may have been another mix; until there is such a day, nothing is said."""
    names = [f"s{hour:02d}" for hour in range(24)]
    await keep(database, (sample(name, hour) for hour, name in enumerate(names)))
    # From before: of another length.
    await keep(database, (sample(f"old{hour}", -1 - hour, text="x" * 9_000) for hour in range(24)))
    await keep(database, (sample(f"later{hour}", 24 + hour, text="x" * 100) for hour in range(900)))
    await score(database, names, 0.9)
    found = await mixes(database, at)
    if days is None:
        assert found == {}
        return
    lengths = found[CELL].lengths
    assert "13" not in lengths, "none from before the first"
    begun = int(days + 1) if days % 1 else int(days)
    assert lengths["2"] == Part(24 - begun, 0)
    assert lengths["6"].recent == 24


async def test_only_scores_behind_a_bound_in_force_count(database: Database) -> None:
    await keep(database, (sample(f"a{hour}", hour) for hour in range(24)))
    await keep(database, (sample(f"b{hour}", 100 + hour) for hour in range(24)))
    await score(database, [f"a{hour}" for hour in range(24)], 25, judge="grader:numeric@1")
    assert CELL in await mixes(database, 240)
    # Another judge's, another revision's, and an epoch that has begun since: all of b.
    recent = [f"b{hour}" for hour in range(24)]
    await score(database, recent, 125, judge=JUDGE, since=125)
    assert (await mixes(database, 100 + 48.5))[CELL].lengths == {"2": Part(23, 0)}
    assert await mixes(database, 100 + 30) == {}
    withdrawal = EpochStart(CELL, JUDGE, EpochReason.DRIFT, hours(126))
    async with database.changing() as connection:
        await QualityRepository(connection).withdraw([withdrawal], BY)
    assert await mixes(database, 240) == {}


async def test_a_clock_that_went_back_says_nothing(database: Database) -> None:
    await keep(database, (sample(f"a{hour}", hour) for hour in range(24)))
    await score(database, [f"a{hour}" for hour in range(24)], 25)
    assert await mixes(database, -1_000) == {}


async def test_a_withdrawal_that_scores_do_not_show_takes_tenants_bounds_along(database: Database) -> None:
    """And those of its judge alone: where another counts, what this one says of nobody holds."""
    tenants = [replace(CELL, tenant=tenant) for tenant in ("", "acme", "zed")]
    bounds = [QualityBound(cell, 0.9, 1.0, 1.0, 0.9, 9, JUDGE, "1", NOON, since=NOON) for cell in tenants]
    bounds[2] = replace(bounds[2], judge="grader:exact@1")
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_bounds(bounds, BY, NOON)
        await quality.withdraw([EpochStart(tenants[1], JUDGE, EpochReason.DRIFT, NOON)], BY)
        assert await quality.in_force() == (bounds[0], bounds[2])
        for reason in (EpochReason.JUDGE, EpochReason.TASK_MIX):
            again = [replace(bound, updated_at=hours(1), since=hours(1)) for bound in bounds]
            await quality.add_bounds(again, BY, hours(1))
            await quality.withdraw([EpochStart(CELL, JUDGE, reason, hours(2))], BY)
            assert await quality.in_force() == (again[2],)


async def test_scores_up_to_a_shift_are_told_from_those_after_it(database: Database) -> None:
    """By the order in which they came, whatever the clocks said; the last shift counts."""
    await keep(database, (sample(f"a{number}", number) for number in range(9)))
    cell, start = CELL, EpochStart(CELL, JUDGE, EpochReason.TASK_MIX, hours(50))
    await score(database, ["a0", "a1"], 49)
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        assert await quality.mix_withdrawals() == {}
        await quality.withdraw([start], BY)
        assert await quality.mix_withdrawals() == {(cell, JUDGE): (start, await quality.last_position())}
        await quality.withdraw([replace(start, at=hours(51))], BY)
        assert len(await quality.history(cell)) == 2, "it was withdrawn already"
    await score(database, ["a2"], 52, since=52)
    later = replace(start, at=hours(53))
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        before = (await quality.mix_withdrawals())[cell, JUDGE][1]
        await quality.withdraw([later], BY)
        assert await quality.mix_withdrawals() == {(cell, JUDGE): (later, before + 1)}


@pytest.mark.parametrize(
    ("since", "updated_at", "reported_at", "enters"),
    [
        # Withdrawn at 50 h.
        (49, 49.5, 51, False),
        (49, 51, 51, False),
        (None, 51, 51, False),
        (50, 51, 51, True),
        # The clock has gone back.
        (44, 45, 45, True),
    ],
    ids=["made before", "rests on scores of before", "nobody knows on what", "rests on later scores", "clock set back"],
)
async def test_after_a_shift_a_bound_rests_on_later_scores(
    database: Database, since: float | None, updated_at: float, reported_at: float, enters: bool
) -> None:
    """Even of one who knew every score: the shift is none of them."""
    bound = QualityBound(CELL, 0.9, 1.0, 1.0, 0.9, 9, JUDGE, "1", hours(updated_at))
    bound = replace(bound, since=None if since is None else hours(since))
    async with database.changing() as connection:
        quality = QualityRepository(connection)
        await quality.add_bounds([replace(bound, updated_at=hours(48), since=NOON)], BY, hours(48))
        await quality.withdraw([EpochStart(CELL, JUDGE, EpochReason.TASK_MIX, hours(50))], BY)
        await quality.add_bounds([bound], Reporter("e1", position=7), hours(reported_at))
        assert await quality.in_force() == ((bound,) if enters else ())
