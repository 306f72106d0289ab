"""Servers on this machine that speak as the grid's APIs do, and fail as they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tests.faulty_http import Answer, Asked, FaultyHttp

HALF_HOUR = timedelta(minutes=30)
HOUR = timedelta(hours=1)
TOKEN = "s3cret-token-of-the-grid"

Values = Callable[[datetime], float | None]


def said(value: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


GridApi = FaultyHttp


def electricity_maps(
    values: Values, now: Callable[[], datetime], zone: str = "DE", estimated: bool = False
) -> Callable[[Asked], Answer]:
    """Electricity Maps v3: the last 24 hours, or the latest, of one zone; a token is asked for."""

    def entry(start: datetime, scope: str) -> dict[str, object]:
        return {
            "zone": zone,
            "carbonIntensity": values(start),
            "datetime": f"{start:%Y-%m-%dT%H:%M:%S}.000Z",
            "updatedAt": f"{start + HOUR:%Y-%m-%dT%H:%M:%S}.221Z",
            "createdAt": f"{start - HOUR:%Y-%m-%dT%H:%M:%S}.101Z",
            "emissionFactorType": scope,
            "isEstimated": estimated,
            "estimationMethod": "TIME_SLICER_AVERAGE" if estimated else None,
        }

    def answer(asked: Asked) -> Answer:
        if asked.headers.get("auth-token") != TOKEN:
            return said({"error": "Invalid auth-token"}, 401)
        if asked.query.get("zone") != zone:
            return said({"status": "error", "message": f"Zone '{asked.query.get('zone')}' does not exist."}, 404)
        scope = asked.query.get("emissionFactorType", "lifecycle")
        hour = now().replace(minute=0, second=0, microsecond=0)
        if asked.path == "/v3/carbon-intensity/latest":
            return said({**entry(hour, scope), "temporalGranularity": "hourly"})
        if asked.path == "/v3/carbon-intensity/history":
            entries = [entry(hour - back * HOUR, scope) for back in reversed(range(24))]
            return said({"zone": zone, "history": entries, "temporalGranularity": "hourly"})
        return said({"error": "Not found"}, 404)

    return answer


def uk_carbon_intensity(actual: Values, forecast: Values) -> Callable[[Asked], Answer]:
    """Great Britain's Carbon Intensity API: half-hours of a span of at most 14 days, from the one before its begin on;
    regions have forecasts alone."""

    def answer(asked: Asked) -> Answer:
        match asked.path.strip("/").split("/"):
            case ["intensity", begin, end]:
                region = None
            case ["regional", "intensity", begin, end, "regionid", number]:
                region = int(number)
            case _:
                return said({"error": {"code": "404 Not Found", "message": "Not found"}}, 404)
        first, last = _minute(begin), _minute(end)
        if last - first > timedelta(days=14):
            return said({"error": {"code": "400 Bad Request", "message": "Please enter a shorter span"}}, 400)
        rows: list[dict[str, object]] = []
        start = first - HALF_HOUR
        while start < last:
            intensity: dict[str, object] = {"forecast": forecast(start), "index": "moderate"}
            if region is None:
                intensity["actual"] = actual(start)
            row = {"from": f"{start:%Y-%m-%dT%H:%MZ}", "to": f"{start + HALF_HOUR:%Y-%m-%dT%H:%MZ}"}
            rows.append({**row, "intensity": intensity})
            start += HALF_HOUR
        if region is None:
            return said({"data": rows})
        mix = [{"fuel": "gas", "perc": 40.5}, {"fuel": "wind", "perc": 59.5}]
        rows = [{**row, "generationmix": mix} for row in rows]
        return said({"data": {"regionid": region, "dnoregion": "UKPN London", "shortname": "London", "data": rows}})

    return answer


def _minute(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)
