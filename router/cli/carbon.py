"""`pithctl carbon`: the grid's carbon intensity, how it was and how it is likely to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.output import coloured, console, details, dim, print_document, table
from router.cli.status import grid
from router.cli.units import percent

if TYPE_CHECKING:
    from pith.router.v1.reports_pb2 import IntensityOutlook
    from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 72
"""Longer histories are averaged, to stand on one line."""
_CLEANEST_HOURS = 3
_RANGE_COLUMNS = 36
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Cleanest:
    """Consecutive hours with the least mean of the forecast, in gCO2eq/kWh."""

    start: datetime
    end: datetime
    g_per_kwh: float


def register(app: typer.Typer) -> None:
    command(app, "carbon")(carbon)


def carbon(
    session: Session,
    history: Annotated[
        int, typer.Option("--history", metavar="HOURS", min=1, max=744, help="How far back to look.")
    ] = 24,
    forecast: Annotated[
        int, typer.Option("--forecast", metavar="HOURS", min=1, max=48, help="How far ahead to look.")
    ] = 24,
    zone: Annotated[
        str, typer.Option("--zone", metavar="ZONE", help="One of the router's zones; without, its own grid.")
    ] = "",
) -> None:
    """Shows how clean the grid was, is and will be. What is ahead comes with its uncertainty."""
    from pith.router.v1.reports_pb2 import GetIntensityRequest

    request = GetIntensityRequest(history_hours=history, forecast_hours=forecast, zone=zone)
    with session.router() as router:
        reply = router.call(router.reports.GetIntensity, request)
    if session.as_json:
        print_document(_document(reply))
    else:
        _print(reply, history)


def cleanest(reply: IntensityOutlook) -> Cleanest | None:
    """None where there is no forecast, or no hour of it is cleaner than another."""
    hours = [(hour.start_time.ToDatetime(tzinfo=UTC), hour.g_per_kwh.value) for hour in reply.forecast]
    length = min(_CLEANEST_HOURS, len(hours))
    spells = [hours[start : start + length] for start in range(len(hours) - length + 1)] if hours else []
    found = [Cleanest(spell[0][0], spell[-1][0] + _HOUR, sum(value for _, value in spell) / length) for spell in spells]
    # What differs by less than is shown does not differ.
    if not found or round(min(value for _, value in hours)) == round(max(value for _, value in hours)):
        return None
    return min(found, key=lambda spell: spell.g_per_kwh)


def sparkline(values: Sequence[float | None], least: float, most: float) -> str:
    """A bar a value between `least` and `most`, a blank where there is none; means where there are too many."""
    if len(values) > _MOST_BARS:
        size = -(-len(values) // _MOST_BARS)
        values = [_mean(values[start : start + size]) for start in range(0, len(values), size)]
    room = most - least
    return "".join(
        " " if value is None else _BARS[round((value - least) / room * (len(_BARS) - 1)) if room > 0 else 0]
        for value in values
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _document(reply: IntensityOutlook) -> dict[str, Any]:
    """The outlook, with the cleanest hours of the forecast."""
    from router.cli.document import as_document

    document = as_document(reply)
    found = cleanest(reply)
    document["cleanest"] = found and {
        "start_time": _iso(found.start),
        "end_time": _iso(found.end),
        "g_per_kwh": found.g_per_kwh,
    }
    return document


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _print(reply: IntensityOutlook, history: int) -> None:
    out = console()
    out.print(details(_facts(reply, history)))
    # What is declared is no forecast.
    if not reply.forecast or len({hour.g_per_kwh.upper for hour in reply.forecast} | _known_values(reply)) == 1:
        return
    most = max(hour.g_per_kwh.upper for hour in reply.forecast)
    rows = [
        (
            _hour(hour.start_time.ToDatetime(tzinfo=UTC)),
            f"{hour.g_per_kwh.value:.0f}",
            f"{hour.g_per_kwh.lower:.0f} to {hour.g_per_kwh.upper:.0f}",
            _range(hour.g_per_kwh.lower, hour.g_per_kwh.value, hour.g_per_kwh.upper, most),
        )
        for hour in reply.forecast
    ]
    sure = f"{100 * reply.forecast[0].g_per_kwh.confidence:g} % INTERVAL"
    out.print()
    out.print(table(("HOUR", "g/kWh", sure, ""), rows, right=("g/kWh", sure)))
    out.print()
    out.print(dim(f"Forecast by {reply.forecast[0].g_per_kwh.method}."))


def _known_values(reply: IntensityOutlook) -> set[float]:
    return {hour.g_per_kwh for hour in reply.history} | {hour.g_per_kwh.lower for hour in reply.forecast}


def _facts(reply: IntensityOutlook, history: int) -> Sequence[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text]] = [("grid", grid(reply, "current"))]
    if reply.fault:
        facts.append(("not fresh", coloured(reply.fault, "red")))
    past, ahead = [hour.g_per_kwh for hour in reply.history], [hour.g_per_kwh.value for hour in reply.forecast]
    if not past:
        facts.append(("before", coloured("no observation", "yellow")))
    else:
        least, most = min(past + ahead), max(past + ahead)
        facts.append(("before", f"{sparkline(_hourly(reply, history), least, most)}  {_span_of(past)}"))
        if ahead:
            facts.append(("ahead", f"{sparkline(ahead, least, most)}  {_span_of(ahead)}"))
    if not ahead:
        facts.append(("ahead", coloured("too little is known for a forecast, which takes 48 observed hours", "yellow")))
        return facts
    found = cleanest(reply)
    facts.append(("cleanest", "no hour ahead is cleaner than another" if found is None else _words(found, reply)))
    return facts


def _words(found: Cleanest, reply: IntensityOutlook) -> str:
    begin, end = _hour(found.start), found.end.strftime("%H:%MZ")
    now = reply.current.g_per_kwh
    below = 1 - found.g_per_kwh / now if now else 0.0
    against = f", {percent(abs(below))} {'below' if below >= 0 else 'above'} now" if now else ""
    return f"{begin} to {end}, about {found.g_per_kwh:.0f} g/kWh{against}"


def _hourly(reply: IntensityOutlook, history: int) -> Sequence[float | None]:
    """A value for each hour up to the present one, None for those without an observation."""
    known = {hour.start_time.ToDatetime(): hour.g_per_kwh for hour in reply.history}
    now = reply.current.observed_at.ToDatetime() + timedelta(seconds=reply.current.age_seconds)
    last = now.replace(minute=0, second=0, microsecond=0)
    return [known.get(last - back * _HOUR) for back in reversed(range(history))]


def _span_of(values: Sequence[float]) -> str:
    hours = "1 hour" if len(values) == 1 else f"{len(values)} hours"
    return f"{hours}, {min(values):.0f} to {max(values):.0f} g/kWh"


def _hour(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%MZ")


def _range(lower: float, value: float, upper: float, most: float) -> str:
    """The interval as a line on a scale from 0 to `most`, with the forecast on it."""
    if most <= 0:
        return ""
    columns = [round(end / most * (_RANGE_COLUMNS - 1)) for end in (lower, value, upper)]
    line = " " * columns[0] + "─" * (columns[2] - columns[0] + 1)
    return line[: columns[1]] + "●" + line[columns[1] + 1 :]
