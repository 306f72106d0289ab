"""What policies have emitted today: over all routers, over restarts, over outages, and from zero each day."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.carbon.hours import day_start, next_day
from common.carbon.intensity import Scope, Signal, SignalKind
from common.clock import ManualClock
from router.ledger import LedgerEntry
from router.spending import Spending
from router.store.database import Database, StoreUnavailable
from router.store.ledger import LedgerRepository
from router.store.spending import SpendingRepository
from tests.postgres import on_both_databases
from tests.router.ledger_entries import GRID, UNKNOWN, entry, record

DAY = datetime(2026, 1, 1, tzinfo=UTC)
NOON = DAY + timedelta(hours=12)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def of_day(database: Database, day: datetime = DAY) -> dict[str, float]:
    async with database.reading() as connection:
        grams = await SpendingRepository(connection).of_day(day)
    assert {signal for _, signal in grams} <= {GRID.signal}
    return {policy: spent for (policy, _), spent in grams.items()}


async def served(spending: Spending, database: Database, *entries: LedgerEntry) -> None:
    """As a router does it: counted when answered, then written down."""
    for one in entries:
        spending.settled(one)
    await record(database, *entries)
    spending.written(entries)


@on_both_databases
async def test_each_request_counts_once_for_its_policy_and_day(database: Database) -> None:
    other = {"policy": "other", "embodied_grams": None}
    yesterday = {"started_at": DAY - timedelta(microseconds=1), "request_id": "y"}
    await record(database, entry(1), entry(2), entry(1, operational_grams=9.0), entry(3, **other))
    await record(database, entry(2), entry(4), entry(5, **yesterday))
    assert await of_day(database) == {"default": pytest.approx(3 * 0.021), "other": pytest.approx(0.02)}
    assert await of_day(database, DAY - timedelta(days=1)) == {"default": pytest.approx(0.021)}


@on_both_databases
async def test_what_is_unknown_or_no_policys_is_not_counted(database: Database) -> None:
    await record(database, entry(1, **UNKNOWN), entry(2, policy="", evaluation_sample_id="s"))
    assert await of_day(database) == {}


@on_both_databases
async def test_entries_and_what_they_count_are_written_together_or_not_at_all(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.writing() as connection:
            await LedgerRepository(connection).add_many([entry(1)])
            raise ZeroDivisionError
    assert await of_day(database) == {}


@on_both_databases
async def test_routers_that_write_at_once_lose_nothing(database: Database) -> None:
    policies = ["a", "b", "c"]
    batches = [
        [entry(100 * batch + number, policy=policies[(batch + number) % 3]) for number in range(6)]
        for batch in range(8)
    ]
    # Twice each, as after a commit that was not confirmed.
    await asyncio.gather(*(record(database, *batch) for batch in [*batches, *batches]))
    assert await of_day(database) == dict.fromkeys(policies, pytest.approx(16 * 0.021))


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (DAY, DAY),
        (DAY + timedelta(hours=23, minutes=59, seconds=59.999999), DAY),
        (datetime.fromisoformat("2026-01-02T08:30:00+09:00"), DAY),
    ],
)
def test_days_are_utc(moment: datetime, day: datetime) -> None:
    assert day_start(moment) == day
    assert next_day(moment) == day + timedelta(days=1)


async def test_a_request_counts_from_its_answer_on_and_once(database: Database, clock: ManualClock) -> None:
    spending = Spending(database, clock)
    assert spending.today("default") == 0.0
    one = entry(1)
    spending.settled(one)
    assert spending.today("default") == pytest.approx(0.021)
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.021)
    await record(database, one)
    spending.written([one])
    assert spending.today("default") == pytest.approx(0.021)
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.021)
    assert spending.today("other") == 0.0


async def test_what_other_routers_and_earlier_runs_have_spent_counts(database: Database, clock: ManualClock) -> None:
    await record(database, entry(1))
    spending, other = Spending(database, clock), Spending(database, clock)
    await spending.refresh()
    await other.refresh()
    assert spending.today("default") == pytest.approx(0.021)
    await served(other, database, entry(2))
    await spending.refresh()
    assert spending.today("default") == other.today("default") == pytest.approx(0.042)


MARGINAL = {"intensity": replace(GRID, kind=SignalKind.MARGINAL, scope=Scope.DIRECT)}


@on_both_databases
async def test_grams_under_two_signals_are_never_added(database: Database, clock: ManualClock) -> None:
    """The most under one is what is spent, here and as other routers see it."""
    spending, other = Spending(database, clock), Spending(database, clock)
    await served(spending, database, entry(1), entry(2), entry(3, **MARGINAL))
    assert spending.today("default") == pytest.approx(0.042)
    await other.refresh()
    assert other.today("default") == pytest.approx(0.042)
    await served(spending, database, *(entry(number, **MARGINAL) for number in (4, 5)))
    assert spending.today("default") == pytest.approx(0.063)
    for one in (spending, other):
        await one.refresh()
        assert one.today("default") == pytest.approx(0.063)
    async with database.reading() as connection:
        assert await SpendingRepository(connection).of_day(DAY) == {
            ("default", GRID.signal): pytest.approx(0.042),
            ("default", Signal(SignalKind.MARGINAL, Scope.DIRECT)): pytest.approx(0.063),
        }


async def test_what_an_earlier_run_left_behind_is_not_taken_off_from_this_runs(
    database: Database, clock: ManualClock
) -> None:
    await clock.advance(60)
    spending = Spending(database, clock)
    mine, left_behind = entry(61), entry(1)
    spending.settled(mine)
    await record(database, left_behind)
    spending.written([left_behind])
    assert spending.today("default") == pytest.approx(0.021)
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.042)


async def test_a_new_day_begins_at_zero(database: Database, clock: ManualClock) -> None:
    spending = Spending(database, clock)
    await served(spending, database, entry(1))
    spending.settled(entry(2))
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.042)
    await clock.advance(12 * 3600)
    assert spending.today("default") == 0.0
    await served(spending, database, entry(3, started_at=clock.now()))
    # Answered after midnight, but it came before.
    await served(spending, database, entry(4))
    assert spending.today("default") == pytest.approx(0.021)
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.021)


async def test_while_the_database_is_away_the_own_count_goes_on(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spending = Spending(database, clock)
    await served(spending, database, entry(1))
    reading = Database.reading
    down = True

    @asynccontextmanager
    async def maybe(self: Database) -> AsyncIterator[Any]:
        if down:
            raise StoreUnavailable("connection refused")
        async with reading(self) as connection:
            yield connection

    monkeypatch.setattr(Database, "reading", maybe)
    with capture_logs() as logs:
        for _ in range(3):
            await spending.refresh()
    assert [(log["log_level"], log["fault"]) for log in logs] == [("warning", "connection refused")]
    waiting = entry(2)
    spending.settled(waiting)
    assert spending.today("default") == pytest.approx(0.042)
    down = False
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.042)
    await record(database, waiting)
    spending.written([waiting])
    await spending.refresh()
    assert spending.today("default") == pytest.approx(0.042)


async def test_it_polls_and_survives_whatever_happens(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spending = Spending(database, clock, poll_seconds=0.001)
    looks: asyncio.Queue[int] = asyncio.Queue()
    of, count = SpendingRepository.of_day, itertools.count(1)

    async def faulty(self: SpendingRepository, day: datetime) -> dict[tuple[str, Signal], float]:
        look = next(count)
        looks.put_nowait(look)
        if look == 2:
            raise ZeroDivisionError
        return await of(self, day)

    monkeypatch.setattr(SpendingRepository, "of_day", faulty)
    with capture_logs() as logs:
        await spending.start()
        await record(database, entry(1))
        # The last one begins when the one before it is done.
        while await asyncio.wait_for(looks.get(), 10) < 5:
            pass
    assert spending.today("default") == pytest.approx(0.021)
    assert [log["event"] for log in logs] == ["spending could not be refreshed"]
    await spending.close()
