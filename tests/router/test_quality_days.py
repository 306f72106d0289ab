"""What quality budgets over a day go by: every router's requests, hour by hour, and the hours that are left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from common.carbon.accounting import CarbonSettings
from common.carbon.daily_profile import DailyProfile
from common.clock import ManualClock
from router.directives.decide import Reason
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget
from router.grid_forecast import GridForecast
from router.ledger import LedgerEntry
from router.optimizer.costs import Cost
from router.optimizer.grants import EARLIER_REVISION, Day, Hour
from router.quality_days import QualityDays
from router.snapshot import SnapshotKeeper
from router.store.database import Database, StoreUnavailable
from tests.postgres import on_both_databases
from tests.router.admin_client import MODEL
from tests.router.ledger_entries import entry, record

DAY = datetime(2026, 1, 5, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
CARBON = CarbonSettings(pue=1.5, embodied_grams_total=31_536.0, lifetime_years=1.0)
BY_HOUR = [100.0 + 10 * hour for hour in range(24)]
OF_DAY = Policy(
    "default", mode=Mode.ON, quality_budget=QualityBudget(0.8, BudgetScope.DAY), directives=("L1", "L2"), updated_at=DAY
)
SUMS, LISTS = (MODEL, "sums"), (MODEL, "lists")


class Grid(DailyProfile):
    """A daily profile that has been observed for `days` days."""

    days = 10

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        return super().history(now, min(hours, 24 * self.days))


@pytest.fixture
def grid() -> Grid:
    return Grid("TEST", BY_HOUR)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(DAY + 10 * HOUR)


@pytest.fixture
def days(database: Database, keeper: SnapshotKeeper, grid: Grid) -> QualityDays:
    keeper.snapshot = replace(keeper.snapshot, policies=(OF_DAY,))
    return QualityDays(database, keeper, grid, GridForecast(grid), CARBON)


_numbers = iter(range(10**6))


def requests(count: int, started_at: datetime, directive: str = "L1", **changes: Any) -> list[LedgerEntry]:
    served = {"started_at": started_at, "directive": directive, "planned": directive} | changes
    return [replace(entry(), request_id=f"r{next(_numbers)}", **served) for _ in range(count)]


async def known(days: QualityDays, now: datetime) -> Day:
    day = await days.read(now)
    assert day is not None
    return day


@pytest.fixture
def queries(database: Database) -> list[tuple[Any, ...]]:
    """Parameters of each that was asked of the ledger."""
    asked: list[tuple[Any, ...]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "FROM ledger" in statement:
            asked.append(tuple(parameters.values() if isinstance(parameters, dict) else parameters))

    event.listen(database._engine.sync_engine, "before_cursor_execute", note)
    return asked


@on_both_databases
async def test_todays_requests_by_directive_and_rates_by_three_days(database: Database, days: QualityDays) -> None:
    now = DAY + 10 * HOUR + 30 * MINUTE
    await record(
        database,
        *requests(30, now),
        *requests(5, now, "L0"),
        *requests(10, DAY, "L2"),
        *requests(15, DAY - MINUTE),
        *requests(1, DAY + HOUR, task="lists"),
        *requests(40, DAY - 61 * HOUR),
        # Before the last 72 hours.
        *requests(99, DAY - 61 * HOUR - MINUTE),
        *requests(99, DAY - 70 * HOUR, task="lists"),
        *requests(99, DAY - 70 * HOUR, task="forgotten"),
        *requests(99, now, policy="other"),
    )
    day = await known(days, now)
    assert set(day.served) == {"default"}
    served = day.served["default"]
    assert set(served) == {SUMS, LISTS}
    assert served[SUMS].today == {"L0": 5, "L1": 30, "L2": 10}
    assert served[SUMS].per_hour == pytest.approx(100 / 71.5)
    assert served[LISTS].today == {"L1": 1}
    assert served[LISTS].per_hour == pytest.approx(1 / 9.5)


async def test_what_a_directive_was_before_is_not_counted_as_what_it_is(database: Database, days: QualityDays) -> None:
    """Bounds are of a revision: that of a better wording would else vouch for the answers of the one before."""
    now = DAY + 10 * HOUR
    shadow: dict[str, Any] = {"reason": Reason.SHADOW.value, "directive": "L0", "directive_revision": 3}
    await record(
        database,
        *requests(3, now, directive_revision=1),
        *requests(2, now, directive_revision=2),
        *requests(4, now, "L0", directive_revision=7),
        *(replace(one, **shadow) for one in requests(5, now, "L2")),
    )
    assert (await known(days, now)).served["default"][SUMS].today == {"L1": 3, EARLIER_REVISION: 2, "L0": 4, "L2": 5}


async def test_hours_to_come_are_expected_as_those_of_the_days_before(database: Database, days: QualityDays) -> None:
    """A day's last hours would else be taken for as busy as the others, and what they never leave be spent."""
    usual = {8: 40, 12: 60, 20: 20}
    for back in (1, 2):
        for hour, count in usual.items():
            await record(database, *requests(count + 10 * back - 15, DAY - back * 24 * HOUR + hour * HOUR))
    await record(database, *requests(40, DAY + 8 * HOUR + MINUTE))
    served = (await known(days, DAY + 10 * HOUR)).served["default"][SUMS]
    assert served.ahead == [usual.get(hour, 0.0) for hour in range(10, 24)]
    # A day that is slower than those before: 40 of 100, and 20 as if they had come.
    slow = (await known(days, DAY + 13 * HOUR)).served["default"][SUMS]
    assert slow.ahead == [pytest.approx(usual.get(hour, 0.0) * 60 / 120) for hour in range(13, 24)]
    await record(database, *requests(500, DAY + 13 * HOUR))
    busy = (await known(days, DAY + 14 * HOUR)).served["default"][SUMS]
    assert busy.ahead == [usual.get(hour, 0.0) for hour in range(14, 24)]


async def test_what_was_not_seen_for_a_day_has_no_usual_hours(database: Database, days: QualityDays) -> None:
    await record(database, *requests(4, DAY - 13 * HOUR))
    assert (await known(days, DAY + 10 * HOUR)).served["default"][SUMS].ahead == ()
    assert (await known(days, DAY + 11 * HOUR)).served["default"][SUMS].ahead == [4.0, *[0.0] * 12]


async def test_a_rate_is_told_from_an_hour_at_least(database: Database, days: QualityDays) -> None:
    """A router that has just begun would else take its first minute's requests for those of every minute."""
    first = DAY + 10 * HOUR + 2 * MINUTE
    await record(database, *requests(12, first))
    for minutes, rate in ((3, 12), (60, 12), (120, 6)):
        served = (await known(days, DAY + 10 * HOUR + minutes * MINUTE)).served["default"]
        assert served[SUMS].per_hour == pytest.approx(rate), minutes


async def test_hours_are_read_again_as_long_as_they_may_change(
    database: Database, days: QualityDays, queries: list[tuple[Any, ...]]
) -> None:
    """Other routers' requests and late ones count: of this hour and the one before at once, of others of the day when
    the hour turns."""
    now = DAY + 10 * HOUR

    async def today(minutes: int) -> int:
        return (await known(days, now + minutes * MINUTE)).served["default"][SUMS].today["L1"]

    await record(database, *requests(1, DAY))
    assert await today(1) == 1
    await record(database, *requests(2, now), *requests(4, now - MINUTE), *requests(8, DAY + HOUR))
    assert await today(5) == 7
    assert await today(59) == 7
    assert await today(60) == 15
    await record(database, *requests(16, DAY + HOUR), *requests(32, now))
    assert await today(65) == 47
    assert await today(120) == 63
    assert len(queries) == 6


async def test_a_day_ends_at_midnight_utc(database: Database, days: QualityDays) -> None:
    midnight = DAY + 24 * HOUR
    await record(database, *requests(3, midnight - MINUTE))
    late = await known(days, midnight - timedelta(seconds=1))
    assert late.served["default"][SUMS].today == {"L1": 3}
    assert len(late.hours) == 1
    await record(database, *requests(1, midnight), *requests(2, midnight - HOUR))
    new = await known(days, midnight + MINUTE)
    assert new.served["default"][SUMS].today == {"L1": 1}
    assert new.served["default"][SUMS].per_hour == pytest.approx(6 / (1 + 1 / 60))
    assert len(new.hours) == 24


async def test_what_is_three_days_old_is_forgotten(database: Database, days: QualityDays) -> None:
    await record(database, *requests(3, DAY))
    assert SUMS in (await known(days, DAY + 71 * HOUR + 59 * MINUTE)).served["default"]
    assert (await known(days, DAY + 72 * HOUR)).served == {}
    await record(database, *requests(3, DAY + 72 * HOUR))
    assert (await known(days, DAY + 144 * HOUR)).served == {}


async def test_the_hours_of_the_day_are_the_rest_of_this_one_and_the_forecasts(days: QualityDays) -> None:
    day = await known(days, DAY + 20 * HOUR + 45 * MINUTE)
    assert day.hours[0] == Hour(pytest.approx(0.25), 300.0)
    assert [hour.hours for hour in day.hours[1:]] == [1.0] * 3
    assert [hour.g_per_kwh for hour in day.hours[1:]] == [
        pytest.approx(BY_HOUR[hour], rel=0.02) for hour in (21, 22, 23)
    ]
    whole = await known(days, DAY)
    assert [hour.hours for hour in whole.hours] == [1.0] * 24
    assert [hour.g_per_kwh for hour in whole.hours] == [pytest.approx(value, rel=0.02) for value in BY_HOUR]
    assert whole.grams(Cost(3.6e6, 10.0), 100.0) == pytest.approx(1.5 * 100 + 0.01)


async def test_without_a_forecast_all_hours_are_as_this_one(days: QualityDays, grid: Grid) -> None:
    grid.days = 1
    day = await known(days, DAY + 20 * HOUR)
    assert day.hours == [Hour(1.0, 300.0)] * 4


@pytest.mark.parametrize(
    "policy",
    [
        replace(OF_DAY, mode=Mode.OFF),
        replace(OF_DAY, quality_budget=QualityBudget(0.8)),
        replace(OF_DAY, quality_budget=None),
    ],
    ids=["off", "of each task", "none"],
)
async def test_without_such_a_budget_nothing_is_read(
    days: QualityDays, keeper: SnapshotKeeper, queries: list[tuple[Any, ...]], policy: Policy
) -> None:
    keeper.snapshot = replace(keeper.snapshot, policies=(policy,))
    assert await days.read(DAY) is None
    assert queries == []


async def test_a_policy_that_is_given_a_budget_finds_its_requests_of_before(
    database: Database, days: QualityDays, keeper: SnapshotKeeper
) -> None:
    now = DAY + 10 * HOUR
    await record(database, *requests(2, DAY), *requests(3, now, policy="other"), *requests(1, DAY, policy="other"))
    assert set((await known(days, now)).served) == {"default"}
    keeper.snapshot = replace(keeper.snapshot, policies=(OF_DAY, replace(OF_DAY, name="other", task="sums")))
    served = (await known(days, now)).served
    assert {name: of[SUMS].today for name, of in served.items()} == {"default": {"L1": 2}, "other": {"L1": 4}}


async def test_hours_that_passed_while_nobody_read_are_made_up_for(
    database: Database, days: QualityDays, keeper: SnapshotKeeper
) -> None:
    await known(days, DAY + 20 * HOUR)
    of_day, keeper.snapshot = keeper.snapshot, replace(keeper.snapshot, policies=())
    await record(database, *requests(2, DAY + 21 * HOUR), *requests(4, DAY + 20 * HOUR), *requests(8, DAY + 25 * HOUR))
    assert await days.read(DAY + 23 * HOUR) is None
    keeper.snapshot = of_day
    served = (await known(days, DAY + 34 * HOUR)).served["default"][SUMS]
    assert served.today == {"L1": 8}
    assert served.per_hour == pytest.approx(14 / 14)


@asynccontextmanager
async def _refusing(self: Database) -> AsyncIterator[Any]:
    raise StoreUnavailable("connection refused")
    yield


async def test_in_an_outage_the_last_counts_stand_for_an_hour(
    database: Database, days: QualityDays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that nobody knows what is left of the budget, and no more of it is spent."""
    now = DAY + 10 * HOUR
    await record(database, *requests(2, DAY), *requests(1, now))
    await known(days, now)
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Database, "reading", _refusing)
        for minutes in (5, 55, 60):
            day = await known(days, now + minutes * MINUTE)
            assert day.served["default"][SUMS].today == {"L1": 3}
        assert day.hours[0] == Hour(1.0, 210.0)
        assert await days.read(now + 61 * MINUTE) is None
        assert await days.read(now + 62 * MINUTE) is None
    assert [(log["log_level"], log["fault"]) for log in logs] == [("warning", "connection refused")]
    # Outboxes deliver what was served meanwhile.
    await record(database, *requests(4, now), *requests(8, now - 5 * HOUR))
    day = await known(days, now + 65 * MINUTE)
    assert day.served["default"][SUMS].today == {"L1": 15}
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Database, "reading", _refusing)
        await known(days, now + 70 * MINUTE)
    assert len(logs) == 1
    await record(database, *requests(16, now - 5 * HOUR))
    day = await known(days, now + 75 * MINUTE)
    assert day.served["default"][SUMS].today == {"L1": 31}


async def test_before_the_database_was_ever_read_there_is_no_day(
    database: Database, days: QualityDays, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Database, "reading", _refusing)
        assert await days.read(DAY) is None
        assert await days.read(DAY + MINUTE) is None
    assert len(logs) == 1
    await record(database, *requests(1, DAY - 70 * HOUR))
    assert SUMS in (await known(days, DAY + 2 * MINUTE)).served["default"]
