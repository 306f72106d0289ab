"""Idle time in the database: each second of an engine's is counted once, whoever counts it, and sums are by engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from common.carbon.intensity import Scope, Signal, SignalKind
from common.energy.reading import EnergySource
from router.store.database import Database
from router.store.idle import IdleCount, IdleHour, IdleRepository, IdleTotals, hour_of
from router.store.reports import Window

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SIGNAL = Signal(SignalKind.AVERAGE, Scope.DIRECT)
OTHER = Signal(SignalKind.MARGINAL, Scope.DIRECT)
IDLE = IdleHour(NOON, SIGNAL, 60.0, 0.0, 120.0, EnergySource.MEASURED, 180.0, 0.5, 0.25)
UNKNOWN = IdleHour(NOON, SIGNAL, 60.0, 60.0, 0.0, None, 0.0, 0.0, 0.25)


async def add(
    database: Database, instance: str, *hours: IdleHour, engine: str = "e1", seconds: float = 60.0
) -> IdleCount:
    """What was counted before."""
    async with database.writing() as connection:
        idle = IdleRepository(connection)
        before = await idle.count(instance, NOON)
        await idle.add(instance, engine, hours, IdleCount(seconds, 2 * seconds, NOON + timedelta(seconds=seconds)))
    return before


async def totals(database: Database, window: Window | None = None, signal: Signal = SIGNAL) -> tuple[IdleTotals, ...]:
    async with database.reading() as connection:
        return await IdleRepository(connection).totals(window or Window(), signal)


async def test_sums_are_by_engine_over_its_starts_and_hours(database: Database) -> None:
    assert await totals(database) == ()
    await add(database, "a", IDLE, replace(IDLE, hour=NOON + HOUR))
    await add(database, "a", IDLE, seconds=120.0)
    await add(database, "b", replace(IDLE, energy_source=EnergySource.MODELLED))
    await add(database, "c", UNKNOWN, engine="e0")
    assert await totals(database) == (
        IdleTotals("e0", 60.0, 60.0, 0.0, None, 0.0, 0.0, 0.25),
        IdleTotals("e1", 240.0, 0.0, 480.0, EnergySource.MODELLED, 720.0, 2.0, 1.0),
    )


async def test_an_hour_keeps_the_weakest_source_of_what_is_added_to_it(database: Database) -> None:
    for addition, weakest in (
        (UNKNOWN, None),
        (IDLE, EnergySource.MEASURED),
        (replace(IDLE, energy_source=EnergySource.MODELLED), EnergySource.MODELLED),
        (replace(IDLE, energy_source=EnergySource.ATTRIBUTED), EnergySource.MODELLED),
        (UNKNOWN, EnergySource.MODELLED),
    ):
        await add(database, "a", addition)
        (total,) = await totals(database)
        assert total.energy_source is weakest
    assert (total.device_seconds, total.seconds_without_energy) == (300.0, 120.0)


async def test_grams_of_signals_are_kept_apart(database: Database) -> None:
    await add(database, "a", IDLE, replace(IDLE, signal=OTHER, operational_grams=7.0))
    assert [one.operational_grams for one in await totals(database)] == [0.5]
    assert [one.operational_grams for one in await totals(database, signal=OTHER)] == [7.0]
    assert await totals(database, signal=Signal(SignalKind.AVERAGE, Scope.LIFECYCLE)) == ()


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        (None, None, 3),
        (NOON, None, 3),
        (None, NOON, 0),
        (NOON + HOUR, NOON + 2 * HOUR, 1),
        (NOON + HOUR - timedelta(microseconds=1), NOON + 2 * HOUR, 2),
        (NOON + HOUR, NOON + 2 * HOUR + timedelta(microseconds=1), 2),
        (NOON + timedelta(minutes=10), NOON + timedelta(minutes=20), 1),
        (datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC), 3),
    ],
)
async def test_a_window_holds_the_hours_that_it_touches(
    database: Database, start: datetime | None, end: datetime | None, hours: int
) -> None:
    await add(database, "a", *(replace(IDLE, hour=NOON + number * HOUR) for number in range(3)))
    window = Window(start, end, "any tenant")
    assert sum(one.device_seconds for one in await totals(database, window)) == 60.0 * hours


async def test_what_is_new_is_counted_from_nothing_and_then_from_where_it_was_left(database: Database) -> None:
    assert await add(database, "a", IDLE) == IdleCount(0.0, 0.0, NOON)
    assert await add(database, "a", IDLE, seconds=70.0) == IdleCount(60.0, 120.0, NOON + timedelta(seconds=60))
    assert await add(database, "b") == IdleCount(0.0, 0.0, NOON), "another process of an engine starts at 0"
    async with database.writing() as connection:
        idle = IdleRepository(connection)
        await idle.count("a", NOON)
        await idle.add("a", "e1", (), IdleCount(80.0, None, NOON))
    assert await add(database, "a") == IdleCount(80.0, None, NOON)


async def test_what_is_idle_and_how_far_it_is_counted_are_written_together_or_not_at_all(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.writing() as connection:
            idle = IdleRepository(connection)
            await idle.count("a", NOON)
            await idle.add("a", "e1", [IDLE], IdleCount(60.0, 120.0, NOON))
            raise ZeroDivisionError
    assert await totals(database) == ()
    assert await add(database, "a") == IdleCount(0.0, 0.0, NOON)


async def test_those_who_count_at_once_count_one_after_another(database: Database, database_url: str) -> None:
    """On connections of their own, many read how far an engine is counted and move it on to the same total."""
    routers = [database, *(Database(database_url) for _ in range(3))]

    async def count_to(router: Database, total: float) -> None:
        async with router.writing() as connection:
            idle = IdleRepository(connection)
            before = await idle.count("a", NOON)
            await asyncio.sleep(0)
            if more := max(0.0, total - before.idle_seconds):
                hour = replace(IDLE, device_seconds=more, energy_joules=2 * more)
                await idle.add("a", "e1", [hour], IdleCount(total, 2 * total, NOON))

    await asyncio.gather(*(count_to(router, 10.0 * step) for step in range(1, 6) for router in routers))
    for router in routers[1:]:
        await router.close()
    (total,) = await totals(database)
    assert (total.device_seconds, total.energy_joules) == (50.0, 100.0)


def test_hours_are_utc() -> None:
    assert hour_of(datetime.fromisoformat("2026-01-01T23:59:59.999999+09:30")) == NOON + 2 * HOUR
