"""The Carbon Intensity API of Great Britain's system operator (NESO): half-hours, national or by region."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from common.carbon.hours import hour_start
from common.carbon.intensity import Scope, Signal, SignalKind
from common.carbon.json_api import JsonApi
from common.carbon.observations import Observation, hourly_means
from common.carbon.source import SourceError, readable_g_per_kwh, readable_time

URL = "https://api.carbonintensity.org.uk"
REGIONS = range(1, 18)
"""1 to 14 are distribution areas (13: London), 15 England, 16 Scotland, 17 Wales."""
REACH = timedelta(days=14)
"""The longest span that the API answers for."""


class UkCarbonIntensity:
    """Great Britain (zone GB), or one of its regions (such as GB-13), by /intensity/FROM/TO and
    /regional/intensity/FROM/TO/regionid/REGION.

    Half-hours are averaged to hours; one is enough. All times are UTC, in summer too. `actual` is the operator's
    estimate from what was metered; where it is null, which it always is in regions, the forecast for the half-hour
    stands in and is marked as estimated.

    Average signal. The scope is given as direct: the operator counts what is emitted in operation (nuclear, wind, sun
    and water count 0), with losses of the grid, imports at their countries' means, and 120 g/kWh for biomass, some of
    which is its supply. (NESO, Carbon Intensity Forecast Methodology, 2024.)

    Raises ValueError for a region that is not there.
    """

    def __init__(self, region: int | None = None, *, url: str = URL, timeout_seconds: float = 10.0) -> None:
        if region is not None and region not in REGIONS:
            raise ValueError(f"region must be {REGIONS.start} to {REGIONS.stop - 1}, got {region}")
        self._api = JsonApi(url, timeout_seconds)
        self._region = region

    @property
    def name(self) -> str:
        return "UK Carbon Intensity API"

    @property
    def zone(self) -> str:
        return "GB" if self._region is None else f"GB-{self._region}"

    @property
    def signal(self) -> Signal:
        return Signal(SignalKind.AVERAGE, Scope.DIRECT)

    async def fetch(self, now: datetime, since: datetime) -> Sequence[Observation]:
        # From a whole hour on, so that no hour that is known is made anew of one of its halves; within the reach.
        begin = hour_start(max(since, now - REACH + timedelta(hours=1)))
        span = f"intensity/{_minute(begin)}/{_minute(now)}"
        path = f"/{span}" if self._region is None else f"/regional/{span}/regionid/{self._region}"
        rows = self._rows(await self._api.get(path, now))
        points = [point for row in rows if (point := _point(row)) is not None]
        # The answer begins with the half-hour before the one that was asked for, which hourly_means drops.
        observations = hourly_means(points, begin, now)
        if not observations:
            raise SourceError("malformed", "the answer holds no usable intensity")
        return observations

    async def close(self) -> None:
        await self._api.close()

    def _rows(self, answer: object) -> list[object]:
        data = answer.get("data") if isinstance(answer, dict) else None
        if self._region is not None:
            if isinstance(data, list) and len(data) == 1:
                data = data[0]
            if not isinstance(data, dict) or data.get("regionid") != self._region:
                raise SourceError("malformed", f"the answer is not for region {self._region}")
            data = data.get("data")
        if not isinstance(data, list):
            raise SourceError("malformed", "the answer lacks its list 'data'")
        return data


def _point(row: object) -> tuple[datetime, float, bool] | None:
    intensity = row.get("intensity") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(intensity, dict):
        return None
    start = readable_time(row.get("from"))
    actual, forecast = readable_g_per_kwh(intensity.get("actual")), readable_g_per_kwh(intensity.get("forecast"))
    g_per_kwh = forecast if actual is None else actual
    if start is None or g_per_kwh is None:
        return None
    return start, g_per_kwh, actual is None


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
