from __future__ import annotations

import csv
import gzip
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.trigger import EvaluationTrigger

START = datetime(2023, 2, 3, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPROUT = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "sprout"


def hourly(values: Sequence[float]) -> list[tuple[datetime, float]]:
    return [(START + hour * HOUR, value) for hour, value in enumerate(values)]


def evaluations(
    values: Sequence[float],
    trigger: EvaluationTrigger,
    mean_g_per_kwh: float | None = None,
    undecided: bool = False,
) -> list[int]:
    """Hours at which the trigger runs over a trace of hourly intensities, of which it sees the last 72."""
    points, hours, last_run = hourly(values), list[int](), None
    for hour, (now, _) in enumerate(points):
        seen = points[max(0, hour - 71) : hour + 1]
        first = last_run is None
        if trigger.should_run(now, last_run, seen, undecided or first, mean_g_per_kwh).run:
            hours.append(hour)
            last_run = now
    return hours


def day_night(days: int, swing: float = 100.0) -> list[float]:
    """A low at 04:00 of every day."""
    return [300.0 - swing * math.cos(2 * math.pi * (hour - 4) / 24) for hour in range(24 * days)]


@pytest.mark.parametrize(
    ("zone", "published"),
    [("US-TEX-ERCO", 46), ("US-CAL-CISO", 29), ("AU-SA", 46), ("NL", 40), ("GB", 34)],
)
def test_with_the_published_mean_it_runs_as_often_as_published(zone: str, published: int) -> None:
    """SPROUT's window of 720 h at hour 800 of 2023; its counts leave out the first run, at hour 0."""
    path = SPROUT / "carbon" / f"{zone}_2023_hourly.csv.gz"
    if not path.exists():
        pytest.skip(f"the recorded carbon intensities are not there: {path}")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[800 : 800 + 720]
    column = next(name for name in rows[0] if name.endswith("(direct)"))
    values = [float(row[column]) for row in rows]
    hours = evaluations(values, EvaluationTrigger(), mean_g_per_kwh=math.fsum(values) / len(values))
    assert hours[0] == 0
    assert len(hours) - 1 == published


def test_on_a_daily_cycle_it_runs_once_a_day_at_the_low() -> None:
    hours = evaluations(day_night(10), EvaluationTrigger())
    assert hours[0] == 0
    assert len(hours) == 10
    assert all(hour % 24 in (3, 4, 5) for hour in hours[2:])


def test_urgency_does_not_wait_for_the_end_of_a_slow_fall() -> None:
    """After a steep fall by 2 % an hour: less than urgency grows, so that waiting for the low is not worth it."""
    steep = [300.0 * 0.9**hour for hour in range(8)]
    slow = [steep[-1] * 0.98**hour for hour in range(1, 30)]
    points = hourly([300.0] * 40 + steep + slow)
    last_run = points[36][0]

    def first_run(trigger: EvaluationTrigger) -> int | None:
        seen = (points[: hour + 1] for hour in range(37, len(points)))
        runs = (trigger.should_run(part[-1][0], last_run, part, undecided=False).run for part in seen)
        return next((hour for hour, run in enumerate(runs, start=37) if run), None)

    assert first_run(EvaluationTrigger()) == 48  # the first hour of the slow fall
    assert first_run(EvaluationTrigger(urgency_per_hour=0.0)) is None


def test_the_first_evaluation_waits_only_for_something_to_decide() -> None:
    trigger, points = EvaluationTrigger(), hourly([500.0, 600.0])
    assert trigger.should_run(points[-1][0], None, points, undecided=True).run
    assert trigger.should_run(points[-1][0], None, [], undecided=True).run
    assert not trigger.should_run(points[-1][0], None, points, undecided=False).run


def test_never_above_the_mean_unless_forced() -> None:
    points = hourly([*[100.0] * 60, 300.0, 290.0, 295.0])
    now = points[-1][0]
    decision = EvaluationTrigger().should_run(now, now - 20 * HOUR, points, undecided=False)
    assert not decision.run
    assert "above the mean" in decision.reason
    assert EvaluationTrigger().should_run(now, now - 72 * HOUR, points, undecided=False).run


def test_while_undecided_it_waits_less_long() -> None:
    trigger, points = EvaluationTrigger(), hourly([300.0] * 10)
    now = points[-1][0]
    assert trigger.should_run(now, now - 12 * HOUR, points[:1], undecided=True).run
    assert not trigger.should_run(now, now - 12 * HOUR, points[:1], undecided=False).run
    assert not trigger.should_run(now, now - 6 * HOUR, points, undecided=True).run


def test_what_was_looked_at_is_fresh_for_long_but_not_until_the_last_moment() -> None:
    trigger = EvaluationTrigger()
    assert trigger.undecided_max_idle_seconds < trigger.fresh_seconds < trigger.max_idle_seconds


def test_a_simulated_day_may_use_shorter_times() -> None:
    trigger = EvaluationTrigger(grace_seconds=1800.0, undecided_max_idle_seconds=7200.0)
    assert evaluations(day_night(1), trigger, undecided=True)[:3] == [0, 2, 4]


def test_a_low_is_used_once_though_the_grace_period_is_over() -> None:
    trigger = EvaluationTrigger(grace_seconds=60.0)
    points = hourly([300.0, 200.0, 210.0])
    now = points[-1][0]
    assert trigger.should_run(now, now - 2 * HOUR, points, undecided=False).run
    later = now + timedelta(minutes=30)
    assert not trigger.should_run(later, now + timedelta(minutes=1), points, undecided=False).run


def test_without_a_present_intensity_only_the_maximum_idle_time_counts() -> None:
    trigger, points = EvaluationTrigger(), hourly([300.0, 200.0, 210.0])
    late = points[-1][0] + 10 * HOUR
    for known in ([], points[-1:], points):
        decision = trigger.should_run(late, late - 20 * HOUR, known, undecided=False)
        assert (decision.run, decision.reason) == (False, "intensity of the grid unknown")
        assert trigger.should_run(late, late - 72 * HOUR, known, undecided=False).run


traces = st.lists(st.floats(0, 1000), min_size=1, max_size=120)


@given(traces, st.booleans())
def test_it_keeps_to_its_grace_period_and_maximum_idle_time(values: list[float], undecided: bool) -> None:
    hours = evaluations(values, EvaluationTrigger(), undecided=undecided)
    gaps = [later - earlier for earlier, later in pairwise(hours)]
    longest = 12 if undecided else 72
    assert all(6 < gap <= longest for gap in gaps)
    assert len(values) - hours[-1] <= longest


@given(traces, st.lists(st.floats(0, 1000), max_size=20))
def test_what_comes_after_changes_nothing(values: list[float], future: list[float]) -> None:
    hours = evaluations([*values, *future], EvaluationTrigger())
    assert [hour for hour in hours if hour < len(values)] == evaluations(values, EvaluationTrigger())


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=120), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_the_unit_of_intensity_does_not_matter(values: list[int], factor: float) -> None:
    scaled = [value * factor for value in values]
    assert evaluations(scaled, EvaluationTrigger()) == evaluations([float(v) for v in values], EvaluationTrigger())


@pytest.mark.parametrize(
    ("values", "shift", "fault"),
    [([300.0], 1, "after now"), ([-1.0], 0, "g_per_kwh"), ([math.nan], 0, "g_per_kwh")],
)
def test_intensities_of_the_future_or_out_of_range_are_refused(values: list[float], shift: int, fault: str) -> None:
    points = [(at + shift * HOUR, value) for at, value in hourly(values)]
    with pytest.raises(ValueError, match=fault):
        EvaluationTrigger().should_run(START, None, points, undecided=True)


def test_intensities_out_of_order_are_refused() -> None:
    points = hourly([1.0, 2.0])
    with pytest.raises(ValueError, match="oldest first"):
        EvaluationTrigger().should_run(points[-1][0], None, points[::-1], undecided=True)


@pytest.mark.parametrize(
    "fault",
    [
        {"grace_seconds": -1.0},
        {"grace_seconds": 13 * 3600.0},
        {"max_idle_seconds": 3600.0},
        {"urgency_per_hour": -0.1},
        {"urgency_per_hour": math.nan},
        {"grace_seconds": math.nan},
    ],
)
def test_times_that_contradict_one_another_are_refused(fault: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fault))):
        EvaluationTrigger(**fault)
