"""Declared intensities: one value, or the 24 of a day."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from common.carbon.hours import HOUR, hour_start
from common.carbon.intensity import Intensity, Scope, SignalKind, check_g_per_kwh
from common.carbon.parsing import parse_g_per_kwh, parse_scope, read_lines


class DailyProfile:
    """24 hourly values of the UTC day, repeated every day; each holds for its whole hour.

    Raises ValueError where there are not 24 values or one is negative or not finite.
    """

    def __init__(
        self,
        zone: str,
        hourly_g_per_kwh: Sequence[float],
        *,
        kind: SignalKind = SignalKind.AVERAGE,
        scope: Scope = Scope.DIRECT,
        source: str = "daily profile",
    ) -> None:
        if len(hourly_g_per_kwh) != 24:
            raise ValueError(f"hourly_g_per_kwh must hold 24 values, got {len(hourly_g_per_kwh)}")
        self._hourly_g_per_kwh = tuple(check_g_per_kwh(value) for value in hourly_g_per_kwh)
        self._zone = zone
        self._kind = kind
        self._scope = scope
        self._source = source

    @property
    def fault(self) -> str:
        return ""

    def current(self, now: datetime) -> Intensity:
        start = hour_start(now)
        g_per_kwh = self._hourly_g_per_kwh[start.hour]
        return Intensity(g_per_kwh, self._zone, self._kind, self._scope, start, self._source)

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        last = hour_start(now)
        starts = [last - back * HOUR for back in reversed(range(hours))]
        return [(start, self._hourly_g_per_kwh[start.hour]) for start in starts]


class ConstantIntensity(DailyProfile):
    """One declared value at every hour."""

    def __init__(
        self,
        zone: str,
        g_per_kwh: float,
        *,
        kind: SignalKind = SignalKind.AVERAGE,
        scope: Scope = Scope.DIRECT,
        source: str = "constant",
    ) -> None:
        super().__init__(zone, [g_per_kwh] * 24, kind=kind, scope=scope, source=source)


def read_daily_profile(path: Path) -> DailyProfile:
    """Read a daily profile: a CSV file of the columns hour (0 to 23, UTC) and g_per_kwh.

    Lines that begin with # come first: `# zone: NAME` is required, `# scope: direct` or `lifecycle` is
    direct where absent, any other is a comment.

    Raises OSError where the file cannot be read and ValueError that names the file, the line and the field.
    """
    lines = read_lines(path)
    comments = list(takewhile(lambda line: line.startswith("#"), lines))
    declared: dict[str, str] = {}
    for comment in comments:
        name, _, value = comment.lstrip("# ").partition(":")
        declared[name.strip()] = value.strip()
    rows = csv.reader(lines[len(comments) :])
    header = next(rows, [])
    if header != ["hour", "g_per_kwh"]:
        raise ValueError(f"{path.name}: columns must be hour,g_per_kwh, got {','.join(header)!r}")
    hourly: dict[int, float] = {}
    for row in rows:
        if not row:
            continue
        where = f"{path.name}, line {len(comments) + rows.line_num}"
        if len(row) != 2:
            raise ValueError(f"{where}: must hold 2 fields, got {len(row)}")
        hour = int(row[0]) if row[0].isdecimal() else -1
        if not 0 <= hour <= 23 or hour in hourly:
            raise ValueError(f"{where}: hour must be one of 0 to 23, each once, got {row[0]!r}")
        hourly[hour] = parse_g_per_kwh(row[1], f"{where}: g_per_kwh")
    for hour in range(24):
        if hour not in hourly:
            raise ValueError(f"{path.name}: hour {hour} is missing")
    if not declared.get("zone"):
        raise ValueError(f"{path.name}: zone is missing, the first lines must hold '# zone: NAME'")
    scope = parse_scope(declared.get("scope", "direct"), f"{path.name}: scope")
    return DailyProfile(declared["zone"], [hourly[hour] for hour in range(24)], scope=scope, source=path.name)
