from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.carbon.electricity_maps import ElectricityMaps
from common.carbon.intensity import Scope, Signal, SignalKind
from common.carbon.observations import Observation
from common.carbon.source import SourceError
from tests.common.carbon.grid_api import HOUR, TOKEN, Answer, Asked, GridApi, electricity_maps, said

NOW = datetime(2026, 3, 1, 12, 20, tzinfo=UTC)
NOON = NOW.replace(minute=0)
LONG_AGO = NOW - timedelta(days=365)


@asynccontextmanager
async def maps(
    server: GridApi, zone: str = "DE", scope: Scope = Scope.LIFECYCLE, token: str = TOKEN
) -> AsyncIterator[ElectricityMaps]:
    source = ElectricityMaps(zone, scope, token, url=server.url, timeout_seconds=60.0)
    try:
        yield source
    finally:
        await source.close()


async def fetched(answer: Any, since: datetime = LONG_AGO, **kinds: Any) -> Sequence[Observation]:
    async with GridApi(answer) as server, maps(server, **kinds) as source:
        return await source.fetch(NOW, since)


def by_hour(start: datetime) -> float:
    return 100.0 + start.hour


def entry(start: str, value: object, **more: object) -> dict[str, object]:
    return {"zone": "DE", "carbonIntensity": value, "datetime": start, "isEstimated": False, **more}


def history(*entries: object, zone: str = "DE") -> Answer:
    return said({"zone": zone, "history": list(entries)})


async def test_the_last_day_by_the_hour_in_one_request() -> None:
    async with GridApi(electricity_maps(by_hour, lambda: NOW)) as server, maps(server) as source:
        found = await source.fetch(NOW, LONG_AGO)
    assert found == [Observation(NOON - back * HOUR, by_hour(NOON - back * HOUR)) for back in reversed(range(24))]
    (asked,) = server.asked
    assert asked.path == "/v3/carbon-intensity/history"
    assert asked.query == {"zone": "DE", "emissionFactorType": "lifecycle"}
    assert asked.headers["auth-token"] == TOKEN
    assert (source.name, source.zone) == ("Electricity Maps", "DE")
    assert source.signal == Signal(SignalKind.AVERAGE, Scope.LIFECYCLE)


async def test_direct_emissions_are_asked_for_as_such() -> None:
    async with GridApi(electricity_maps(by_hour, lambda: NOW)) as server, maps(server, scope=Scope.DIRECT) as source:
        await source.fetch(NOW, LONG_AGO)
    assert server.asked[0].query["emissionFactorType"] == "direct"
    assert source.signal == Signal(SignalKind.AVERAGE, Scope.DIRECT)


async def test_estimates_are_marked() -> None:
    found = await fetched(electricity_maps(by_hour, lambda: NOW, estimated=True))
    assert all(one.estimated for one in found)


async def test_the_latest_fills_in_the_present_hour_where_the_history_lacks_it() -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("history"):
            return history(entry("2026-03-01T11:00:00.000Z", 111))
        return said(entry("2026-03-01T12:00:00.000Z", 120, isEstimated=True, emissionFactorType="lifecycle"))

    assert await fetched(answer) == [Observation(NOON - HOUR, 111.0), Observation(NOON, 120.0, estimated=True)]


async def test_gaps_stay_gaps() -> None:
    noon = entry("2026-03-01T12:00:00.000Z", 112)
    gaps = [
        entry("2026-03-01T01:00:00Z", None),
        entry("2026-03-01T02:00:00Z", -5),
        entry("2026-03-01T03:00:00Z", "90"),
        entry("2026-03-01T04:00:00Z", True),
        entry("yesterday", 90),
        entry("2026-03-01T05:00:00Z", 10**400),
        {"carbonIntensity": 90},
        {"datetime": 5, "carbonIntensity": 90},
        None,
        [],
    ]
    assert await fetched(lambda _: history(*gaps, noon)) == [Observation(NOON, 112.0)]


async def test_neither_the_future_nor_what_is_known_is_taken() -> None:
    entries = [entry(f"2026-03-01T{hour}:00:00Z", hour) for hour in (10, 11, 12, 13, 14)]
    assert await fetched(lambda _: history(*entries), since=NOON - HOUR) == [
        Observation(NOON - HOUR, 11.0),
        Observation(NOON, 12.0),
    ]


async def test_hours_are_utc_whatever_the_offset_says_through_a_change_of_clocks() -> None:
    # In Berlin 02:00 did not exist on that day; an hour later by UTC is two by the clock on the wall.
    now = datetime(2026, 3, 29, 2, 5, tzinfo=UTC)
    offsets = ("2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T04:00:00+02:00")
    answer = history(*(entry(text, 100 + index) for index, text in enumerate(offsets)))
    async with GridApi(lambda _: answer) as server, maps(server) as source:
        found = await source.fetch(now, LONG_AGO)
    midnight = datetime(2026, 3, 29, tzinfo=UTC)
    assert found == [Observation(midnight + index * HOUR, 100.0 + index) for index in range(3)]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (said([]), "is no JSON object"),
        (said("fine"), "is no JSON object"),
        (said({"zone": "DE"}), "lacks its list 'history'"),
        (said({"zone": "DE", "history": {}}), "lacks its list 'history'"),
        # What the API does for a zone that it does not know: the caller's own place.
        (history(entry("2026-03-01T12:00:00Z", 5), zone="US-CAL-CISO"), "is not for zone DE"),
        (said({"history": []}), "is not for zone DE"),
        (history(entry("2026-03-01T12:00:00Z", 5, emissionFactorType="direct")), "does not count lifecycle emissions"),
    ],
)
async def test_an_answer_of_another_shape_is_malformed(answer: Answer, text: str) -> None:
    with pytest.raises(SourceError, match=text) as raised:
        await fetched(lambda _: answer)
    assert raised.value.failure == "malformed"


async def test_an_answer_without_one_usable_value_is_malformed() -> None:
    def answer(asked: Asked) -> Answer:
        null = entry("2026-03-01T12:00:00Z", None)
        return history(null) if asked.path.endswith("history") else said(null)

    with pytest.raises(SourceError, match="holds no usable carbonIntensity"):
        await fetched(answer)


@pytest.mark.parametrize(("kinds", "status"), [({"token": "wrong"}, 401), ({"zone": "XX"}, 404)])
async def test_what_the_api_refuses(kinds: dict[str, Any], status: int) -> None:
    with pytest.raises(SourceError, match=f"HTTP {status}") as raised:
        await fetched(electricity_maps(by_hour, lambda: NOW), **kinds)
    assert raised.value.failure == "refused"
    assert kinds.get("token", "?") not in str(raised.value)
