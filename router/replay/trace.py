"""A grid's hourly carbon intensity as a replay lives through it, and what the published policies know of its year."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.carbon.csv_intensity import CsvIntensity
from common.carbon.hours import HOUR
from common.carbon.parsing import read_lines
from router.diagnosis.lines import LogError
from router.replay.recordings import Floats

MOST_HOURS: Final = 50 * 8784
_ALL = datetime(9999, 1, 1, tzinfo=UTC), (datetime(9999, 1, 1) - datetime(1, 1, 2)) // HOUR
"""A moment after all observations, and how many hours before it they may have begun."""


@dataclass(frozen=True, slots=True)
class Year:
    """gCO2eq/kWh of a whole year."""

    least: float
    most: float
    mean: float
    source: str
    """Where that was read."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Intensity by the hour.

    Attributes:
        g_per_kwh: gCO2eq/kWh, [hours].
        start: Of hour 0, UTC.
        column: Of the file.
        year: Hindsight; policies that play fair do not see it.
    """

    g_per_kwh: Floats
    start: datetime
    column: str
    year: Year

    def __len__(self) -> int:
        return len(self.g_per_kwh)


def read_trace(path: Path, column: str | None = None, year: Path | None = None) -> Trace:
    """Reads an hourly CSV file as `CsvIntensity` does, which also says what is in force where an hour is missing.

    Args:
        column: Of gCO2eq/kWh; None: the only one whose name ends in "(direct)", or the only one beside the time.
        year: JSON {zone: {min, max, mean}}; None: a file year_*.json beside the trace that knows the zone with which
            the trace's name begins; where there is none, the trace's own extremes and mean.

    Raises LogError where a file cannot be read, or names the fault's line and field.
    """
    try:
        name = column or _column(path)
        intensity = CsvIntensity(path, "", name)
    except OSError as error:
        raise LogError([f"{path} cannot be read: {error.strerror or error}"]) from None
    except ValueError as error:
        raise LogError([str(error)]) from None
    observed = intensity.history(*_ALL)
    start, end = observed[0][0].astimezone(UTC), observed[-1][0].astimezone(UTC)
    hours = (end - start) // HOUR + 1
    if hours > MOST_HOURS:
        raise LogError([f"{path.name}: spans {hours:,} hours, a trace may span at most {MOST_HOURS:,}"])
    values = np.array([intensity.current(start + hour * HOUR).g_per_kwh for hour in range(hours)])
    return Trace(values, start, name, _year(path, values, year))


def _column(path: Path) -> str:
    header = next(csv.reader(read_lines(path)), [])
    values = [name for name in header if not name.lower().startswith("datetime")]
    direct = [name for name in values if name.strip().lower().endswith("(direct)")]
    found = direct if len(direct) == 1 else values
    if len(found) != 1:
        raise ValueError(f"{path.name}, line 1: --carbon-column must say which column holds gCO2eq/kWh, got {header}")
    return found[0]


def _year(path: Path, values: Floats, file: Path | None) -> Year:
    for candidate in [file] if file else sorted(path.parent.glob("year_*.json")):
        try:
            zones = json.loads(candidate.read_text(encoding="utf-8"))
        except OSError as error:
            raise LogError([f"{candidate} cannot be read: {error.strerror or error}"]) from None
        except (ValueError, RecursionError):
            raise LogError([f"{candidate}: is not JSON"]) from None
        if not isinstance(zones, dict):
            raise LogError([f"{candidate}: must be an object by zone"])
        # The longest first: one zone's name may begin another's.
        for zone in sorted(zones, key=len, reverse=True):
            if path.name.startswith((f"{zone}_", f"{zone}.")):
                return _year_of(candidate, zone, zones[zone])
        if file:
            has = ", ".join(zones)
            raise LogError([f"{file}: has no zone with which the name of {path.name} begins; it has {has}"])
    return Year(float(values.min()), float(values.max()), float(values.mean()), path.name)


def _year_of(file: Path, zone: str, found: Any) -> Year:
    values = [found.get(key) if isinstance(found, dict) else None for key in ("min", "max", "mean")]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != 3 or not 0 <= numbers[0] <= numbers[2] <= numbers[1]:
        raise LogError([f"{file}: {zone}: min, mean and max must be numbers that ascend from 0, got {values}"])
    least, most, mean = numbers
    return Year(least, most, mean, file.name)
