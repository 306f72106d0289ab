"""Simulated time: processes agree on it, sleeps follow it, and a test moves it by hand."""

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock, ScaledClock, SystemClock, clock_from_spec

START = datetime(2026, 7, 1, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@pytest.mark.parametrize("spec", [None, "", "system"])
def test_no_spec_is_wall_time(spec: str | None) -> None:
    clock = clock_from_spec(spec)
    assert isinstance(clock, SystemClock)
    before = datetime.now(UTC)
    assert before <= clock.now() <= datetime.now(UTC)


def test_a_scaled_clock_runs_factor_times_as_fast_from_its_anchor() -> None:
    anchor = datetime.now(UTC) - timedelta(hours=1)
    before = datetime.now(UTC)
    now = ScaledClock(START, 24, anchor).now()
    after = datetime.now(UTC)
    assert START + (before - anchor) * 24 <= now <= START + (after - anchor) * 24


def test_two_processes_with_one_anchor_agree() -> None:
    spec = "scaled:2026-07-01T00:00:00Z@2026-06-01T12:00:00+02:00:3600"
    one, other = clock_from_spec(spec), clock_from_spec(spec)
    assert abs(other.now() - one.now()) < timedelta(hours=10)


def test_without_an_anchor_the_start_is_now() -> None:
    clock = clock_from_spec("scaled:2026-07-01T00:00:00Z:1")
    assert timedelta(0) <= clock.now() - START < timedelta(minutes=1)


@given(start=MOMENTS, anchor=MOMENTS)
def test_moments_are_utc_whatever_zone_they_were_given_in(start: datetime, anchor: datetime) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    clock = ScaledClock(start.astimezone(zone), 1e-9, anchor.astimezone(zone))
    assert clock.now().tzinfo is UTC
    assert abs(clock.now() - start) < timedelta(seconds=5)


async def test_a_scaled_sleep_lasts_its_share_of_wall_time() -> None:
    clock = ScaledClock(START, 1e6, datetime.now(UTC))
    before, wall_before = clock.monotonic(), time.monotonic()
    await clock.sleep(10_000)
    assert clock.monotonic() - before >= 10_000
    assert time.monotonic() - wall_before < 60


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("fast", "must be 'system' or 'scaled:"),
        ("scaled", "START '' is not an ISO 8601 time"),
        ("scaled:yesterday:60", "START 'yesterday' is not an ISO 8601 time"),
        ("scaled:2026-07-01T00:00:00:60", "START '2026-07-01T00:00:00' has no timezone; add Z"),
        ("scaled:2026-07-01T00:00:00Z@noon:60", "ANCHOR 'noon' is not an ISO 8601 time"),
        ("scaled:2026-07-01T00:00:00Z@2026-07-01:60", "ANCHOR '2026-07-01' has no timezone"),
        ("scaled:2026-07-01T00:00:00Z:quick", "FACTOR 'quick' must be a finite number > 0"),
        ("scaled:2026-07-01T00:00:00Z:0", "FACTOR '0' must be"),
        ("scaled:2026-07-01T00:00:00Z:-1", "FACTOR '-1' must be"),
        ("scaled:2026-07-01T00:00:00Z:nan", "FACTOR 'nan' must be"),
        ("scaled:2026-07-01T00:00:00Z:inf", "FACTOR 'inf' must be"),
    ],
)
def test_a_bad_spec_is_named_part_by_part(spec: str, fault: str) -> None:
    with pytest.raises(ValueError) as raised:
        clock_from_spec(spec)
    assert fault in str(raised.value)


def test_moments_need_a_timezone() -> None:
    naive = datetime(2026, 7, 1)
    with pytest.raises(ValueError, match="timezone"):
        ScaledClock(naive, 1, START)
    with pytest.raises(ValueError, match="timezone"):
        ManualClock(naive)


async def test_manual_time_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(START)
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        for seconds in (30, 10, 20):
            tasks.create_task(sleeper(seconds))
        await clock.asleep(3)
        await clock.advance(9.5)
        assert woken == []
        await clock.advance(15)
        assert woken == [10, 20]
        await clock.advance(5.5)
    assert woken == [10, 20, 30]
    assert clock.now() == START + timedelta(seconds=30)


@given(periods=st.lists(st.integers(1, 50), min_size=1, max_size=4), span=st.integers(0, 200))
def test_periodic_sleepers_each_wake_at_every_multiple_of_their_period(periods: list[int], span: int) -> None:
    async def run() -> list[list[float]]:
        clock = ManualClock()
        woken: list[list[float]] = [[] for _ in periods]

        async def tick(index: int) -> None:
            while True:
                await clock.sleep(periods[index])
                woken[index].append(clock.monotonic())

        tasks = [asyncio.create_task(tick(index)) for index in range(len(periods))]
        await clock.advance(span)
        assert clock.monotonic() == span
        for task in tasks:
            task.cancel()
        return woken

    assert asyncio.run(run()) == [list(range(period, span + 1, period)) for period in periods]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await clock.asleep()
    task.cancel()
    await clock.advance(20)
    assert task.cancelled() and clock.monotonic() == 20


async def test_a_sleep_of_nothing_lets_others_run_and_returns() -> None:
    clock = ManualClock()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert clock.monotonic() == 0


async def test_manual_time_does_not_go_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        await ManualClock().advance(-1)
