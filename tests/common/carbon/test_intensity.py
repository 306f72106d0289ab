import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from common.carbon.intensity import Intensity, Scope, SignalKind

NOON = datetime(2023, 5, 1, 12, tzinfo=UTC)


def test_age_counts_from_the_observation_whatever_the_zone_of_the_clock() -> None:
    intensity = Intensity(300.0, "DE", SignalKind.AVERAGE, Scope.DIRECT, NOON, "test")
    assert intensity.age_seconds(NOON + timedelta(minutes=90)) == 5400
    assert intensity.age_seconds(datetime(2023, 5, 1, 14, tzinfo=timezone(timedelta(hours=2)))) == 0


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_impossible_intensity_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="g_per_kwh must be finite and at least 0"):
        Intensity(value, "DE", SignalKind.AVERAGE, Scope.DIRECT, NOON, "test")


def test_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="observed_at must carry a time zone, got 2023-05-01T12:00:00"):
        Intensity(1.0, "DE", SignalKind.AVERAGE, Scope.DIRECT, NOON.replace(tzinfo=None), "test")
