from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.carbon.observations import Observation, Observations, hourly_means
from tests.common.carbon.grid_file import HOUR, MIDNIGHT


def hourly(*values: float) -> list[Observation]:
    return [Observation(MIDNIGHT + index * HOUR, value) for index, value in enumerate(values)]


def test_the_last_is_the_newest_that_has_begun() -> None:
    observations = Observations(reversed(hourly(100, 200, 300)))
    assert observations.last(MIDNIGHT - timedelta(seconds=1)) is None
    for minutes, value in ((0, 100), (59, 100), (60, 200), (500, 300)):
        last = observations.last(MIDNIGHT + timedelta(minutes=minutes))
        assert last is not None and last.g_per_kwh == value


def test_newer_ones_take_the_place_of_those_of_the_same_hour_and_old_ones_go() -> None:
    east = timezone(timedelta(hours=2))
    revised = Observation((MIDNIGHT + HOUR).astimezone(east), 250.0)
    updated = Observations(hourly(100, 200, 300)).updated([revised], since=MIDNIGHT + HOUR)
    assert [one.g_per_kwh for one in updated] == [250.0, 300.0]


def test_an_impossible_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="g_per_kwh must be finite and at least 0"):
        Observation(MIDNIGHT, -1.0)
    with pytest.raises(ValueError, match="start must carry a time zone"):
        Observation(datetime(2023, 1, 1), 1.0)


def test_the_mean_is_of_the_year_up_to_the_observation() -> None:
    old = Observation(MIDNIGHT - timedelta(days=365), 900.0)
    observations = Observations([old, *hourly(100, 300, 800)])
    last = observations.last(MIDNIGHT + HOUR)
    assert last is not None and observations.year_mean(last) == 200.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 5000, allow_subnormal=False), min_size=1, max_size=60))
def test_a_mean_lies_among_its_values(values: list[float]) -> None:
    observations = Observations(hourly(*values))
    last = observations.last(MIDNIGHT + 100 * HOUR)
    assert last is not None
    slack = 1e-9 * max(values)
    assert min(values) - slack <= observations.year_mean(last) <= max(values) + slack


def test_finer_values_are_averaged_by_the_hour() -> None:
    half = timedelta(minutes=30)
    points = [
        (MIDNIGHT + index * half, value, index == 2) for index, value in enumerate((100.0, 200.0, 50.0, 70.0, 80.0))
    ]
    found = hourly_means(points, since=MIDNIGHT, now=MIDNIGHT + 2 * HOUR)
    assert found == [
        Observation(MIDNIGHT, 150.0),
        Observation(MIDNIGHT + HOUR, 60.0, estimated=True),
        Observation(MIDNIGHT + 2 * HOUR, 80.0),
    ]


def test_neither_what_came_before_nor_what_has_not_begun_counts() -> None:
    points = [(MIDNIGHT + timedelta(minutes=30 * index), 100.0 * index, False) for index in range(-1, 4)]
    now = MIDNIGHT + timedelta(minutes=45)
    assert hourly_means(points, since=MIDNIGHT, now=now) == [Observation(MIDNIGHT, 50.0)]
