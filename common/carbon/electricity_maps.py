"""Electricity Maps API v3: the hourly intensity of what a zone consumes, with flows between zones traced."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from common.carbon.hours import hour_start
from common.carbon.intensity import Scope, Signal, SignalKind
from common.carbon.json_api import JsonApi
from common.carbon.observations import Observation, hourly_means
from common.carbon.source import SourceError, readable_g_per_kwh, readable_time

URL = "https://api.electricitymaps.com"

_Point = tuple[datetime, float, bool]


class ElectricityMaps:
    """The last 24 hours of a zone: /v3/carbon-intensity/history, and /latest where that lacks the present hour.

    An entry without a usable value is a gap. The API answers for the caller's own place where it does not know a zone:
    an answer for another zone, or with other emission factors, is refused as a whole.
    """

    def __init__(self, zone: str, scope: Scope, token: str, *, url: str = URL, timeout_seconds: float = 10.0) -> None:
        self._api = JsonApi(url, timeout_seconds, {"auth-token": token})
        self._zone = zone
        self._scope = scope

    @property
    def name(self) -> str:
        return "Electricity Maps"

    @property
    def zone(self) -> str:
        return self._zone

    @property
    def signal(self) -> Signal:
        return Signal(SignalKind.AVERAGE, self._scope)

    async def fetch(self, now: datetime, since: datetime) -> Sequence[Observation]:
        history = await self._get("history", now)
        entries = history.get("history")
        if not isinstance(entries, list):
            raise SourceError("malformed", "the answer lacks its list 'history'")
        points = [point for entry in entries if (point := self._point(entry)) is not None]
        if not any(hour_start(start) == hour_start(now) for start, _, _ in points):
            latest = self._point(await self._get("latest", now))
            points += [] if latest is None else [latest]
        if not points:
            raise SourceError("malformed", "the answer holds no usable carbonIntensity")
        return hourly_means(points, since, now)

    async def close(self) -> None:
        await self._api.close()

    async def _get(self, which: str, now: datetime) -> dict[str, object]:
        parameters = {"zone": self._zone, "emissionFactorType": self._scope.value.lower()}
        answer = await self._api.get(f"/v3/carbon-intensity/{which}", now, parameters)
        if not isinstance(answer, dict):
            raise SourceError("malformed", "the answer is no JSON object")
        if answer.get("zone") != self._zone:
            raise SourceError("malformed", f"the answer is not for zone {self._zone}")
        return answer

    def _point(self, entry: object) -> _Point | None:
        if not isinstance(entry, dict):
            return None
        if entry.get("emissionFactorType", self._scope.value.lower()) != self._scope.value.lower():
            raise SourceError("malformed", f"the answer does not count {self._scope.value.lower()} emissions")
        start, g_per_kwh = readable_time(entry.get("datetime")), readable_g_per_kwh(entry.get("carbonIntensity"))
        if start is None or g_per_kwh is None:
            return None
        return start, g_per_kwh, bool(entry.get("isEstimated"))
