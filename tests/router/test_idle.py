"""Idle engines: every second and joule that they report is charged once, at its hours, through outages and restarts."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pith.common.v1 import energy_pb2
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from common.carbon.accounting import CarbonSettings
from common.carbon.intensity import Intensity, Scope, Signal, SignalKind
from common.clock import ManualClock
from common.energy.reading import EnergySource
from router.fleet.totals import EngineTotals
from router.idle import HOUR, PERIOD_SECONDS, IdleKeeper, hourly_shares
from router.store.database import Database, StoreUnavailable
from router.store.idle import IdleRepository, IdleTotals, hour_of
from router.store.reports import Window
from router.store.tables import idle
from tests.postgres import on_both_databases
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SIGNAL = Signal(SignalKind.AVERAGE, Scope.DIRECT)
CARBON = CarbonSettings(pue=1.5, embodied_grams_total=31536.0, lifetime_years=1.0)
"""Embodied: a milligram a second."""
FIRST = EngineTotals("a", 40.0, 60.0, 120.0, EnergySource.MEASURED)


@dataclass
class Grid:
    """360 g/kWh now, a tenth of a milligram a joule; the hours before are as a test says."""

    hourly: dict[datetime, float]
    fault: str = ""

    def current(self, now: datetime) -> Intensity:
        return Intensity(360.0, "TEST", SIGNAL.kind, SIGNAL.scope, now, "test")

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        span = [hour_of(now) - back * HOUR for back in reversed(range(hours))]
        return [(hour, self.hourly[hour]) for hour in span if hour in self.hourly]


class Router:
    """As much of one as counts idle time: a connection, clocks and a memory of its own."""

    def __init__(self, url: str, grid: Grid | None = None) -> None:
        self.database = SometimesAway(url)
        self.clock = ManualClock(NOON)
        self.wall = ManualClock()
        self.keeper = IdleKeeper(self.database, self.clock, self.wall, lambda engine: grid or Grid({}), CARBON)

    async def hear(self, totals: EngineTotals, *, after: timedelta = MINUTE, engine: str = "e1") -> None:
        await self.clock.advance(after.total_seconds())
        await self.wall.advance(after.total_seconds())
        self.keeper.heard(engine, totals)

    async def counted(self) -> tuple[IdleTotals, ...]:
        await self.keeper.write()
        async with self.database.reading() as connection:
            return await IdleRepository(connection).totals(Window(), SIGNAL)

    async def by_hour(self) -> dict[datetime, tuple[float, float, float]]:
        """Device seconds, joules and operational grams."""
        await self.keeper.write()
        async with self.database.reading() as connection:
            rows = await connection.execute(select(idle).order_by(idle.c.hour))
            return {row.hour: (row.device_seconds, row.energy_joules, row.operational_grams) for row in rows}


class SometimesAway(Database):
    away = False
    meanwhile: Callable[[], None] = staticmethod(lambda: None)
    """Happens while a transaction is under way."""

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        if self.away:
            raise StoreUnavailable("scripted")
        async with super().writing() as connection:
            yield connection
            self.meanwhile()


@pytest.fixture
async def one(database_url: str) -> AsyncIterator[Router]:
    router = Router(database_url)
    await router.database.open()
    yield router
    await router.database.close()


async def test_idle_time_is_charged_with_the_building_and_the_device(one: Router) -> None:
    await one.hear(FIRST, after=2 * MINUTE)
    (total,) = await one.counted()
    assert total == IdleTotals(
        engine="e1",
        device_seconds=60.0,
        seconds_without_energy=0.0,
        energy_joules=120.0,
        energy_source=EnergySource.MEASURED,
        building_joules=180.0,
        operational_grams=pytest.approx(0.018),
        embodied_grams=pytest.approx(0.06),
    )
    assert list(await one.by_hour()) == [NOON]


async def test_each_report_adds_what_it_has_grown_by(one: Router) -> None:
    await one.hear(FIRST)
    await one.counted()
    for _ in range(3):
        await one.hear(FIRST)
        await one.counted()
    await one.hear(replace(FIRST, busy_seconds=60.0, idle_seconds=100.0, idle_joules=150.0))
    (total,) = await one.counted()
    assert (total.device_seconds, total.energy_joules) == (100.0, 150.0)


async def test_a_device_whose_energy_is_unknown_is_written_off_all_the_same(one: Router) -> None:
    unknown = replace(FIRST, idle_joules=None, idle_source=None)
    await one.hear(unknown)
    (total,) = await one.counted()
    assert (total.device_seconds, total.seconds_without_energy, total.energy_source) == (60.0, 60.0, None)
    assert (total.energy_joules, total.operational_grams, total.embodied_grams) == (0.0, 0.0, pytest.approx(0.06))
    # What it used until it is known is not: only what follows is.
    await one.hear(replace(FIRST, idle_seconds=70.0, idle_joules=500.0))
    (total,) = await one.counted()
    assert (total.seconds_without_energy, total.energy_joules) == (70.0, 0.0)
    await one.hear(replace(FIRST, idle_seconds=80.0, idle_joules=520.0))
    await one.counted()
    await one.hear(replace(unknown, idle_seconds=85.0))
    (total,) = await one.counted()
    assert (total.device_seconds, total.seconds_without_energy, total.energy_joules) == (85.0, 75.0, 20.0)


async def test_every_start_of_an_engine_counts_from_nothing(one: Router) -> None:
    await one.hear(FIRST)
    await one.hear(replace(FIRST, instance_id="b", idle_seconds=5.0, idle_joules=10.0))
    await one.hear(replace(FIRST, instance_id="c"), engine="e2")
    totals = await one.counted()
    assert [(t.engine, t.device_seconds, t.energy_joules) for t in totals] == [("e1", 65.0, 130.0), ("e2", 60.0, 120.0)]


# Spread over the hours.


async def test_what_nobody_counted_is_charged_at_the_hours_in_between(database_url: str) -> None:
    at = {NOON - HOUR: 3600.0, NOON: 720.0, NOON + HOUR: 1800.0}
    router = Router(database_url, Grid(at))
    await router.database.open()
    await router.hear(FIRST, after=30 * MINUTE)
    await router.counted()
    later = replace(FIRST, idle_seconds=60.0 + 3600.0, idle_joules=120.0 + 36000.0)
    await router.hear(later, after=3 * HOUR)
    hours = await router.by_hour()
    # From 12:30 to 15:30: a sixth, a third, a third that has no observation, and the present hour's sixth.
    grams = 36000.0 * 1.5 / 3.6e6
    assert hours == {
        NOON: (pytest.approx(660.0), pytest.approx(6120.0), pytest.approx(0.018 + grams * 720 / 6)),
        NOON + HOUR: (pytest.approx(1200.0), pytest.approx(12000.0), pytest.approx(grams * 1800 / 3)),
        NOON + 2 * HOUR: (pytest.approx(1200.0), pytest.approx(12000.0), pytest.approx(grams * 360 / 3)),
        NOON + 3 * HOUR: (pytest.approx(600.0), pytest.approx(6000.0), pytest.approx(grams * 360 / 6)),
    }
    await router.database.close()


async def test_what_an_engine_idled_before_it_was_found_is_of_the_hours_since_its_start(one: Router) -> None:
    await one.hear(replace(FIRST, busy_seconds=3600.0, idle_seconds=7200.0), after=30 * MINUTE)
    hours = await one.by_hour()
    assert {hour: seconds for hour, (seconds, _, _) in hours.items()} == {
        NOON - 3 * HOUR: pytest.approx(1200.0),
        NOON - 2 * HOUR: pytest.approx(2400.0),
        NOON - HOUR: pytest.approx(2400.0),
        NOON: pytest.approx(1200.0),
    }


async def test_idle_time_of_a_simulated_day_is_of_its_hours(one: Router) -> None:
    """An engine idles a minute while the service's clock goes on by four hours; then the database hears of it."""
    await one.hear(FIRST, after=2 * MINUTE)
    await one.clock.advance(4 * 3600.0)
    await one.hear(replace(FIRST, idle_seconds=120.0))
    hours = await one.by_hour()
    assert list(hours) == [NOON + number * HOUR for number in range(5)]
    assert hours[NOON + HOUR][0] == pytest.approx(120.0 * 3600 / (4 * 3600 + 60 + 100))


async def test_a_gap_of_weeks_is_charged_to_its_last_two_days(one: Router) -> None:
    weeks = timedelta(days=30).total_seconds()
    await one.hear(replace(FIRST, idle_seconds=weeks, idle_joules=weeks))
    hours = await one.by_hour()
    assert min(hours) == NOON - 48 * HOUR
    assert sum(seconds for seconds, _, _ in hours.values()) == pytest.approx(weeks)


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 4), timezones=st.just(UTC)),
    st.timedeltas(timedelta(), timedelta(hours=50)),
)
def test_shares_of_hours_are_whole(since: datetime, span: timedelta) -> None:
    shares = hourly_shares(since, since + span)
    assert sum(share for _, share in shares) == pytest.approx(1.0)
    assert all(share > 0 and hour == hour_of(hour) for hour, share in shares)
    assert all(after - before == HOUR for (before, _), (after, _) in itertools.pairwise(shares))
    assert shares[0][0] == hour_of(since)
    assert shares[-1][0] in (hour_of(since + span), since + span - HOUR)


async def test_a_clock_that_was_set_back_charges_the_present_hour(one: Router) -> None:
    """A simulated day begins anew while the engine goes on."""
    await one.hear(FIRST, after=10 * HOUR)
    await one.counted()
    again = Router(one.database.url.render_as_string(hide_password=False).replace("+aiosqlite", ""))
    await again.hear(replace(FIRST, idle_seconds=100.0, idle_joules=200.0))
    hours = await again.by_hour()
    assert hours[NOON][:2] == (40.0, 80.0)
    await again.database.close()


# Nonsense.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"idle_seconds": 59.0}, "within"),
        ({"idle_seconds": 60.0 + 121.0}, "within"),
        ({"idle_seconds": math.nan}, "from 0"),
        ({"idle_seconds": -1.0}, "from 0"),
        ({"idle_seconds": math.inf}, "from 0"),
        ({"idle_seconds": 1e12}, "from 0"),
        ({"busy_seconds": math.nan}, "from 0"),
        ({"busy_seconds": -1.0}, "from 0"),
        ({"busy_seconds": 1e300}, "from 0"),
        ({"idle_joules": math.nan}, "finite"),
        ({"idle_joules": math.inf}, "finite"),
        ({"idle_joules": -1.0}, "finite"),
        ({"idle_joules": 119.0}, "-1.0 J"),
        ({"idle_seconds": 61.0, "idle_joules": 120.0 + 20e3 + 20e3 + 1}, "J within 1.0"),
        ({"instance_id": "x" * 129}, "129 characters"),
        ({"instance_id": "b", "idle_seconds": 10.0, "idle_joules": 1e9}, "J within 10.0"),
    ],
)
async def test_nonsense_is_left_out_with_one_warning(one: Router, changes: dict[str, Any], said: str) -> None:
    await one.hear(FIRST)
    await one.counted()
    with capture_logs() as logs:
        await one.hear(replace(FIRST, **changes))
        one.keeper.heard("e1", replace(FIRST, **changes))
        (total,) = await one.counted()
    (warning,) = logs
    assert (warning["log_level"], warning["engine"]) == ("warning", "e1")
    assert said in warning["fault"]
    assert (total.device_seconds, total.energy_joules) == (60.0, 120.0)
    await one.hear(replace(FIRST, idle_seconds=90.0, idle_joules=180.0))
    (total,) = await one.counted()
    assert (total.device_seconds, total.energy_joules) == (90.0, 180.0), "what makes sense again is counted in full"


@pytest.mark.parametrize("changes", [{"idle_seconds": 600.0}, {"idle_seconds": 3700.0, "idle_joules": 1.0}])
async def test_a_router_that_starts_knows_nonsense_from_what_is_counted(one: Router, changes: dict[str, Any]) -> None:
    await one.hear(replace(FIRST, idle_seconds=3600.0))
    await one.counted()
    again = Router(one.database.url.render_as_string(hide_password=False).replace("+aiosqlite", ""))
    with capture_logs() as logs:
        await again.hear(replace(FIRST, **changes))
        (total,) = await again.counted()
    assert (total.device_seconds, total.energy_joules) == (3600.0, 120.0)
    assert [log["event"] for log in logs] == ["an engine's idle time is not counted"]
    await again.database.close()


# Outages, and more than one router.


async def test_an_outage_of_the_database_loses_nothing(one: Router) -> None:
    one.database.away = True
    with capture_logs() as logs:
        for minutes in (1, 2, 3):
            seconds = 60.0 * minutes
            await one.hear(replace(FIRST, idle_seconds=seconds, idle_joules=2 * seconds))
            await one.keeper.write()
        await one.hear(replace(FIRST, instance_id="b"))
        await one.keeper.write()
    assert [log["event"] for log in logs] == ["database is down; idle time is counted once it is back"]
    one.database.away = False
    (total,) = await one.counted()
    assert (total.device_seconds, total.energy_joules) == (180.0 + 60.0, 360.0 + 120.0)


async def test_what_is_reported_during_a_writing_is_written_by_the_next(one: Router) -> None:
    await one.hear(FIRST)
    one.database.meanwhile = lambda: one.keeper.heard("e1", replace(FIRST, idle_seconds=70.0))
    (total,) = await one.counted()
    assert total.device_seconds == 60.0
    one.database.meanwhile = lambda: None
    (total,) = await one.counted()
    assert total.device_seconds == 70.0


async def test_a_fault_with_one_engine_leaves_the_others_counted(one: Router) -> None:
    def fail() -> None:
        one.database.meanwhile = lambda: None
        raise RuntimeError("planted")

    await one.hear(FIRST)
    await one.hear(replace(FIRST, instance_id="b"), engine="e2")
    one.database.meanwhile = fail
    with capture_logs() as logs:
        totals = await one.counted()
    assert [total.engine for total in totals] == ["e2"]
    assert [(log["event"], log["engine"]) for log in logs] == [("idle time could not be counted", "e1")]
    assert [total.engine for total in await one.counted()] == ["e1", "e2"]


async def test_what_another_router_heard_earlier_changes_nothing(one: Router) -> None:
    other = Router(one.database.url.render_as_string(hide_password=False).replace("+aiosqlite", ""))
    await other.hear(FIRST)
    await one.hear(replace(FIRST, idle_seconds=90.0, idle_joules=180.0))
    before = await one.counted()
    with capture_logs() as logs:
        assert await other.counted() == before
    assert logs == []
    await other.database.close()


async def test_it_writes_now_and_then_and_at_the_end(one: Router) -> None:
    one.keeper.start()
    await one.wall.asleep()
    await one.hear(FIRST, after=timedelta(seconds=1))
    await one.wall.advance(PERIOD_SECONDS)
    await one.wall.asleep()
    async with one.database.reading() as connection:
        (total,) = await IdleRepository(connection).totals(Window(), SIGNAL)
    assert total.device_seconds == 60.0
    await one.hear(replace(FIRST, idle_seconds=90.0), after=timedelta(seconds=1))
    await one.keeper.close()
    async with one.database.reading() as connection:
        (total,) = await IdleRepository(connection).totals(Window(), SIGNAL)
    assert total.device_seconds == 90.0


@on_both_databases
async def test_routers_that_hear_of_the_same_engines_count_every_second_once(database_url: str) -> None:
    """They hear at different moments, write at once, are cut off while they write, restart, and lose the database;
    engines start anew."""
    rng = random.Random(6)
    routers = [Router(database_url) for _ in range(3)]
    await routers[0].database.open()
    engines = {name: replace(FIRST, instance_id=f"{name}-0", idle_seconds=0.0, idle_joules=0.0) for name in "xy"}
    ended: list[EngineTotals] = []
    for _ in range(60):
        for name, totals in engines.items():
            if rng.random() < 0.1:
                for router in routers:
                    await router.hear(totals, engine=name)
                    router.database.away = False
                await asyncio.gather(*(router.keeper.write() for router in routers))
                ended.append(totals)
                totals = replace(totals, instance_id=f"{name}-{len(ended)}", idle_seconds=0.0, idle_joules=0.0)
            seconds, joules = rng.uniform(0, 60), rng.uniform(0, 100)
            assert totals.idle_joules is not None
            engines[name] = replace(
                totals, idle_seconds=totals.idle_seconds + seconds, idle_joules=totals.idle_joules + joules
            )
        for index, router in enumerate(routers):
            router.database.away = rng.random() < 0.2
            if rng.random() < 0.1:
                await router.database.close()
                new = routers[index] = Router(database_url)
                await new.clock.advance((router.clock.now() - NOON).total_seconds())
            for name, totals in engines.items():
                if rng.random() < 0.7:
                    await routers[index].hear(totals, engine=name)
        writing = [asyncio.create_task(router.keeper.write()) for router in routers]
        if rng.random() < 0.3:
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            rng.choice(writing).cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    for router in routers:
        router.database.away = False
        for name, totals in engines.items():
            await router.hear(totals, engine=name)
    await asyncio.gather(*(router.keeper.write() for router in routers))
    totals_by_engine = await routers[0].counted()
    for total in totals_by_engine:
        reports = [one for one in (*ended, *engines.values()) if one.instance_id.startswith(total.engine)]
        assert total.device_seconds == pytest.approx(sum(one.idle_seconds for one in reports), rel=1e-9)
        assert total.energy_joules == pytest.approx(sum(one.idle_joules or 0.0 for one in reports), rel=1e-9)
    assert [total.engine for total in totals_by_engine] == ["x", "y"]
    for router in routers:
        await router.database.close()


# The whole router.


async def idled(router: Running) -> list[tuple[str, float, float]]:
    await router.router.idle.write()
    async with router.router._database.reading() as connection:
        totals = await IdleRepository(connection).totals(Window(), SIGNAL)
    return [(total.engine, total.device_seconds, total.energy_joules) for total in totals]


def energy(joules: float, source: int = energy_pb2.ENERGY_SOURCE_MEASURED) -> energy_pb2.Energy:
    return energy_pb2.Energy(joules=joules, source=source)  # type: ignore[arg-type]


async def test_a_router_counts_what_its_engines_report(router: Running, engine: FakeEngine) -> None:
    assert await idled(router) == [], "an engine of an earlier version tells of no totals"
    await engine.report(instance_id="a", idle_seconds_total=30.0, idle_energy_total=energy(90.0))
    while not await idled(router):
        pass
    assert await idled(router) == [("e1", 30.0, 90.0)]


async def test_the_last_that_an_engine_reported_before_it_was_lost_is_counted(
    router: Running, engine: FakeEngine
) -> None:
    await engine.report(instance_id="a", idle_seconds_total=30.0, draining=True)
    while not (await router.engines())[0].load.draining:
        pass
    await engine.stop()
    await router.until_ready(0)
    assert await idled(router) == [("e1", 30.0, 0.0)]


async def test_an_energy_that_no_source_vouches_for_is_unknown(router: Running, engine: FakeEngine) -> None:
    unknown = energy(90.0, energy_pb2.ENERGY_SOURCE_UNSPECIFIED)
    await engine.report(instance_id="a", idle_seconds_total=30.0, idle_energy_total=unknown)
    while not await idled(router):
        pass
    assert await idled(router) == [("e1", 30.0, 0.0)]
