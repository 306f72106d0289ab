"""The forecast of carbon intensity: how far it misses, how honest its intervals are, and what may not move it."""

from __future__ import annotations

import csv
import gzip
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.carbon.forecast import LEAST_HISTORY_HOURS, MOST_HISTORY_HOURS, forecast
from common.quality.interval import Interval

START = datetime(2025, 3, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "carbon_em_hpe"

Observations = list[tuple[datetime, float]]


def hourly(values: Sequence[float], start: datetime = START) -> Observations:
    return [(start + index * HOUR, float(value)) for index, value in enumerate(values)]


def grid(hours: int, seed: int) -> Observations:
    """A day's and a week's cycle, and weather that stays for about ten hours."""
    rng = np.random.default_rng(seed)
    hour = np.arange(hours)
    weekend = (hour // 24) % 7 >= 5
    weather = np.zeros(hours)
    for at in range(1, hours):
        weather[at] = 0.9 * weather[at - 1] + rng.normal(0, 10)
    cycle = 80 * np.cos(2 * np.pi * hour / 24) + 25 * np.cos(4 * np.pi * hour / 24 + 1)
    return hourly(400 + cycle * (1 - 0.3 * weekend) - 40 * weekend + weather)


@dataclass(frozen=True)
class Judged:
    """Over leads 1 to 24 of all origins."""

    forecast: float
    persistence: float
    yesterday: float
    covered: float

    @property
    def gain(self) -> float:
        return 1 - self.forecast / min(self.persistence, self.yesterday)


def judge(observations: Observations, first: int, stride: int, days: int = 90) -> Judged:
    values = np.array([value for _, value in observations])
    rows = []
    for now in range(first, len(observations) - 24, stride):
        found = forecast(observations[max(0, now + 1 - 24 * days) : now + 1], observations[now][0])
        assert [start for start, _ in found] == [start for start, _ in observations[now + 1 : now + 25]]
        true = values[now + 1 : now + 25]
        hours = [interval for _, interval in found]
        rows.append(
            (
                np.abs(true - [hour.value for hour in hours]),
                np.abs(true - values[now]),
                np.abs(true - values[now - 23 : now + 1]),
                [hour.lower <= one <= hour.upper for one, hour in zip(true, hours, strict=True)],
            )
        )
    return Judged(*(float(np.mean(column)) for column in zip(*rows, strict=True)))


def recorded(zone: str) -> Observations:
    path = DATA / f"{zone}_2023_hourly.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set PITH_DATA_DIR to the data folder")
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    column = next(index for index, name in enumerate(rows[0]) if name.endswith("(direct)"))
    return [(datetime.fromisoformat(row[0]).replace(tzinfo=UTC), float(row[column])) for row in rows[1:]]


def test_recorded_grids_are_forecast_better_than_by_either_baseline() -> None:
    judged = [judge(recorded(zone), 28 * 24, 24 * 6 + 5) for zone in ("DE-LU", "AU-VIC", "CA-ON")]
    best = np.mean([min(zone.persistence, zone.yesterday) for zone in judged])
    assert np.mean([zone.forecast for zone in judged]) < 0.85 * best
    assert 0.75 < np.mean([zone.covered for zone in judged]) < 0.85


@pytest.fixture(scope="module")
def planted() -> list[Judged]:
    return [judge(grid(200 * 24, seed), 60 * 24, 24 + 19) for seed in range(4)]


def test_planted_cycles_are_found_under_the_weather(planted: list[Judged]) -> None:
    assert min(zone.gain for zone in planted) > 0.2


def test_intervals_hold_what_they_say(planted: list[Judged]) -> None:
    # Errors of what the regression was taught by would be too small: intervals of them hold 78 %.
    assert 0.795 < np.mean([zone.covered for zone in planted]) < 0.85


def test_more_confidence_takes_more_room() -> None:
    history = grid(40 * 24, 0)
    widths = [
        np.mean([hour.upper - hour.lower for _, hour in forecast(history, history[-1][0], 24, confidence)])
        for confidence in (0.5, 0.8, 0.95)
    ]
    assert widths[0] < widths[1] < widths[2]
    assert {hour.confidence for _, hour in forecast(history, history[-1][0], 24, 0.5)} == {0.5}


def test_more_history_serves_better() -> None:
    whole = grid(150 * 24, 5)
    errors = [judge(whole, 95 * 24, 24 + 7, days).forecast for days in (3, 8, 28, 90)]
    assert errors == sorted(errors, reverse=True)


def test_weekends_are_seen_coming() -> None:
    """What lowers the grid by half each Saturday is in the forecast of Friday night, not in that of Wednesday night."""
    hours = np.arange(90 * 24)
    values = 300.0 - 150 * ((hours // 24) % 7 >= 5) + np.random.default_rng(0).normal(0, 3, len(hours))
    wednesday, friday = (
        np.mean([hour.value for _, hour in forecast(history, history[-1][0])])
        for history in (hourly(list(values))[: 24 * (7 * 11 + day)] for day in (3, 5))
    )
    assert friday < 240
    assert wednesday > 280


def test_a_cycle_that_never_fails_is_continued_and_certain() -> None:
    cycle = [100.0 + 10 * (hour % 24) for hour in range(30 * 24)]
    history = hourly(cycle)
    for start, hour in forecast(history, history[-1][0], 48):
        assert hour.value == pytest.approx(100 + 10 * start.hour, abs=1e-6)
        assert hour.upper - hour.lower < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, 412.5])
@pytest.mark.parametrize("days", [2, 5, 20])
def test_a_constant_grid_stays(value: float, days: int) -> None:
    history = hourly([value] * 24 * days)
    for _, hour in forecast(history, history[-1][0], 48):
        assert (hour.lower, hour.value, hour.upper) == pytest.approx((value, value, value), abs=1e-6)


def test_a_spike_does_not_run_away() -> None:
    values = [value for _, value in grid(40 * 24, 1)]
    values[-1] = 9000.0
    history = hourly(values)
    found = forecast(history, history[-1][0])
    assert all(0 <= hour.lower <= hour.value <= hour.upper and hour.value <= 1.25 * 9000 for _, hour in found)
    # An hour later it is one hour of many.
    history.append((history[-1][0] + HOUR, 420.0))
    assert max(hour.value for _, hour in forecast(history, history[-1][0])[:20]) < 3000


def test_too_little_says_nothing() -> None:
    history = grid(LEAST_HISTORY_HOURS, 0)
    assert len(forecast(history, history[-1][0], 48)) == 48
    assert forecast(history[1:], history[-1][0]) == []
    assert forecast([], START) == []
    # Two days, of which one hour is missing, are less than 48 hours.
    assert forecast([*history[:20], *history[21:]], history[-1][0]) == []


def test_an_old_history_is_carried_on_for_a_day_and_no_longer() -> None:
    history = grid(30 * 24, 3)
    last = history[-1][0]
    later = forecast(history, last + 6 * HOUR + timedelta(minutes=59), 12)
    assert [start for start, _ in later] == [last + hour * HOUR for hour in range(7, 19)]
    same = {start: hour.value for start, hour in forecast(history, last, 18)}
    assert [hour.value for _, hour in later] == pytest.approx([same[start] for start, _ in later])
    assert len(forecast(history, last + 24 * HOUR, 48)) == 48
    assert forecast(history, last + 25 * HOUR) == []


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(lambda hour: hour % 24 == 7, id="an hour of each day"),
        pytest.param(lambda hour: hour % 5 == 2, id="every fifth hour"),
        pytest.param(lambda hour: 300 <= hour < 420, id="five days"),
        pytest.param(lambda hour: hour > 40 * 24 - 9, id="the last hours"),
        pytest.param(lambda hour: 30 <= hour < 38 * 24, id="nearly all"),
    ],
)
def test_gaps_cost_little(lost: Callable[[int], bool]) -> None:
    whole = grid(42 * 24, 7)
    history, coming = whole[: 40 * 24], [value for _, value in whole[40 * 24 :]]
    left = [row for index, row in enumerate(history) if not lost(index)]
    found = forecast(left, history[-1][0], 48)
    errors = [abs(hour.value - true) for (_, hour), true in zip(found, coming, strict=True)]
    # As far as the cycle's own amplitude would be no forecast at all.
    assert np.mean(errors) < 60
    assert all(hour.upper > hour.lower for _, hour in found)


def test_hours_are_means_of_what_was_observed_in_them() -> None:
    history = grid(10 * 24, 2)
    halves = [(start + minutes, value + add) for start, value in history for minutes, add in HALVES]
    assert values_of(forecast(halves, history[-1][0] + 59 * timedelta(minutes=1))) == pytest.approx(
        values_of(forecast(history, history[-1][0]))
    )


HALVES = ((timedelta(0), -5.0), (timedelta(minutes=30), 5.0))


def values_of(found: Sequence[tuple[datetime, Interval]]) -> list[float]:
    return [end for _, hour in found for end in (hour.lower, hour.value, hour.upper)]


def test_time_zones_name_the_same_hours() -> None:
    history = grid(20 * 24, 4)
    tokyo = timezone(9 * HOUR)
    moved = [(start.astimezone(tokyo), value) for start, value in history]
    assert forecast(moved, moved[-1][0]) == forecast(history, history[-1][0])


def test_what_is_older_than_the_longest_history_is_not_looked_at() -> None:
    history = grid(MOST_HISTORY_HOURS + 100, 4)
    assert forecast(history, history[-1][0]) == forecast(history[100:], history[-1][0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda it: it | {"now": datetime(2025, 5, 1)}, "now must carry a time zone"),
        (lambda it: it | {"hours": 0}, "hours must be 1 to 48, got 0"),
        (lambda it: it | {"hours": 49}, "hours must be 1 to 48, got 49"),
        (lambda it: it | {"confidence": 1.0}, "confidence must be above 0 and below 1, got 1.0"),
        (lambda it: it | {"history": [(START, 1.0), (START, math.nan)]}, r"history\[1\]: g_per_kwh must be finite"),
        (lambda it: it | {"history": [(START, -1.0)]}, r"history\[0\]: g_per_kwh must be .* at least 0, got -1.0"),
        (lambda it: it | {"history": [(datetime(2025, 1, 1), 1.0)]}, r"history\[0\]: the moment must carry a time"),
    ],
)
def test_faults_are_named(change: Callable[[dict[str, object]], dict[str, object]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        forecast(**change({"history": grid(72, 0), "now": START + 72 * HOUR}))  # type: ignore[arg-type]


GRIDS = st.tuples(st.integers(48, 24 * 24), st.integers(0, 2**32 - 1)).map(lambda drawn: grid(drawn[0], drawn[1]))


@settings(deadline=None, max_examples=25)
@given(GRIDS, st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60), st.integers(0, 59))
def test_nothing_after_now_is_looked_at(history: Observations, future: list[float], minute: int) -> None:
    now = history[-1][0] + timedelta(minutes=minute)
    coming = [(history[-1][0] + (index + 1) * HOUR, value) for index, value in enumerate(future)]
    assert forecast([*history, *coming], now, 48) == forecast(history, now, 48)


@settings(deadline=None, max_examples=25)
@given(GRIDS, st.randoms(use_true_random=False))
def test_order_is_of_no_matter(history: Observations, rng: random.Random) -> None:
    shuffled = rng.sample(history, len(history))
    assert forecast(shuffled, history[-1][0], 48) == forecast(history, history[-1][0], 48)


@settings(deadline=None, max_examples=25)
@given(GRIDS, st.floats(0, 1000), st.floats(1e-3, 1e3))
def test_grids_that_differ_by_a_constant_and_a_factor_have_forecasts_that_do(
    history: Observations, add: float, factor: float
) -> None:
    moved = [(start, (1000 + value + add) * factor) for start, value in history]
    plain = [(start, 1000 + value) for start, value in history]
    expected = [(value + add) * factor for value in values_of(forecast(plain, plain[-1][0], 30))]
    assert values_of(forecast(moved, moved[-1][0], 30)) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1e300), st.floats(0, 900), st.just(0.0)), min_size=48, max_size=500),
    st.integers(1, 48),
)
def test_whatever_the_history_the_interval_is_sound(values: list[float | None], hours: int) -> None:
    history = [(START + index * HOUR, value) for index, value in enumerate(values) if value is not None]
    now = START + len(values) * HOUR
    found = forecast(history, now, hours)
    assert len(found) in (0, hours)
    for start, hour in found:
        assert start > now
        assert 0 <= hour.lower <= hour.value <= hour.upper < math.inf
