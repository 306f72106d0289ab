from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.carbon.intensity import Scope, Signal, SignalKind
from common.carbon.observations import Observation
from common.carbon.source import SourceError
from common.carbon.uk_carbon_intensity import UkCarbonIntensity
from tests.common.carbon.grid_api import HALF_HOUR, HOUR, Answer, GridApi, said, uk_carbon_intensity

NOW = datetime(2026, 3, 1, 12, 40, tzinfo=UTC)
NOON = NOW.replace(minute=0)
LONG_AGO = NOW - timedelta(days=365)


def metered(start: datetime) -> float | None:
    """Known once the half-hour is over."""
    return None if start + HALF_HOUR > NOW else 100.0 + start.hour + (20.0 if start.minute else 0.0)


def forecast(start: datetime) -> float:
    return 300.0


async def fetched(
    answer: Any, since: datetime = LONG_AGO, region: int | None = None, now: datetime = NOW
) -> tuple[Sequence[Observation], str]:
    async with GridApi(answer) as server:
        source = UkCarbonIntensity(region, url=server.url, timeout_seconds=60.0)
        try:
            found = await source.fetch(now, since)
        finally:
            await source.close()
    return found, server.asked[0].path


async def test_half_hours_are_averaged_to_hours_from_a_whole_hour_on() -> None:
    since = NOON - 2 * HOUR + timedelta(minutes=10)
    found, path = await fetched(uk_carbon_intensity(metered, forecast), since)
    assert path == "/intensity/2026-03-01T10:00Z/2026-03-01T12:40Z"
    # The answer begins with 09:30, which alone would make 09:00 anew; 12:30 is not over, so its forecast stands in.
    assert found == [
        Observation(NOON - 2 * HOUR, 120.0),
        Observation(NOON - HOUR, 121.0),
        Observation(NOON, (112.0 + 300.0) / 2, estimated=True),
    ]


async def test_the_first_look_reaches_as_far_back_as_the_api_does() -> None:
    found, _ = await fetched(uk_carbon_intensity(metered, forecast))
    assert found[0].start == NOON - timedelta(days=14) + HOUR
    assert len(found) == 14 * 24


async def test_one_half_of_an_hour_is_enough() -> None:
    rows = [
        {"from": "2026-03-01T10:00Z", "to": "2026-03-01T10:30Z", "intensity": {"forecast": 1, "actual": 90}},
        {"from": "2026-03-01T11:30Z", "to": "2026-03-01T12:00Z", "intensity": {"forecast": 80, "actual": None}},
    ]
    found, _ = await fetched(lambda _: said({"data": rows}))
    assert found == [Observation(NOON - 2 * HOUR, 90.0), Observation(NOON - HOUR, 80.0, estimated=True)]


async def test_a_region_has_forecasts_alone() -> None:
    answer = uk_carbon_intensity(metered, forecast)
    found, path = await fetched(answer, since=NOON - HOUR, region=13)
    assert path == "/regional/intensity/2026-03-01T11:00Z/2026-03-01T12:40Z/regionid/13"
    assert found == [Observation(NOON - HOUR, 300.0, True), Observation(NOON, 300.0, True)]
    source = UkCarbonIntensity(13)
    assert (source.name, source.zone) == ("UK Carbon Intensity API", "GB-13")
    assert source.signal == Signal(SignalKind.AVERAGE, Scope.DIRECT)
    assert UkCarbonIntensity().zone == "GB"


@pytest.mark.parametrize("day", [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)])
async def test_clocks_that_change_change_nothing(day: datetime) -> None:
    """British clocks change at 01:00 UTC on these days, which have 24 hours of UTC like any other."""

    def actual(start: datetime) -> float:
        return (start - day) / HALF_HOUR

    now = day + 24 * HOUR - timedelta(minutes=1)
    found, _ = await fetched(uk_carbon_intensity(actual, forecast), since=day, now=now)
    assert found == [Observation(day + hour * HOUR, 2 * hour + 0.5) for hour in range(24)]


async def test_offsets_are_heeded_where_there_are_some() -> None:
    row = {"from": "2026-07-01T13:00+01:00", "to": "2026-07-01T13:30+01:00", "intensity": {"actual": 90}}
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)
    found, _ = await fetched(lambda _: said({"data": [row]}), now=noon + timedelta(minutes=20))
    assert found == [Observation(noon, 90.0)]


async def test_values_that_are_none_are_gaps() -> None:
    def row(start: str, intensity: object) -> dict[str, object]:
        return {"from": start, "intensity": intensity}

    rows = [
        row("2026-03-01T08:00Z", {"forecast": None, "actual": None}),
        row("2026-03-01T09:00Z", {"forecast": -1, "actual": "90"}),
        row("2026-03-01T10:00Z", None),
        row("tea time", {"actual": 90}),
        "half an hour",
        row("2026-03-01T11:00Z", {"forecast": 70, "actual": -3}),
        row("2026-03-01T18:00Z", {"forecast": 70, "actual": None}),
    ]
    found, _ = await fetched(lambda _: said({"data": rows}))
    assert found == [Observation(NOON - HOUR, 70.0, estimated=True)]


@pytest.mark.parametrize(
    ("answer", "region", "text"),
    [
        (said([]), None, "lacks its list 'data'"),
        (said({"data": {}}), None, "lacks its list 'data'"),
        (said({"data": []}), None, "holds no usable intensity"),
        (said({"data": []}), 13, "is not for region 13"),
        (said({"data": {"regionid": 12, "data": []}}), 13, "is not for region 13"),
        (said({"data": {"regionid": 13, "data": None}}), 13, "lacks its list 'data'"),
    ],
)
async def test_an_answer_of_another_shape_is_malformed(answer: Answer, region: int | None, text: str) -> None:
    with pytest.raises(SourceError, match=text) as raised:
        await fetched(lambda _: answer, region=region)
    assert raised.value.failure == "malformed"


def test_a_region_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="region must be 1 to 17, got 18"):
        UkCarbonIntensity(18)
