"""A file of hourly observations as an intensity provider."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.carbon.observations import Observation, Observations
from common.carbon.parsing import parse_g_per_kwh, parse_time, read_lines
from common.clock import Clock

EXPIRES_AFTER_SECONDS = 6 * 3600.0
"""From which age on the last observation is worth less than a mean."""


class CsvIntensity:
    """Hourly observations from a CSV file (plain or .gz), such as an Electricity Maps export.

    The file has one column whose name begins with "datetime" (ISO 8601, UTC where no offset is given,
    strictly increasing) and the named column of gCO2eq/kWh, blank where there is no observation. `zone` is
    the label under which the values are reported.

    An observation is in force from its hour on. In a gap, and after the end of the file, the last one stays
    in force until it is expires_after_seconds old; then the mean of the last year of observations up to it
    takes over, whose source says so. Before the first observation that is the mean of the whole file, the
    one case where there is no past to take it from. The file is read once, here.

    `clock`: by which `fault` tells of an observation that has expired; None: it does not.

    Raises OSError where the file cannot be read and ValueError that names the file, the line and the field.
    """

    def __init__(
        self,
        path: Path,
        zone: str,
        column: str,
        *,
        kind: SignalKind = SignalKind.AVERAGE,
        scope: Scope = Scope.DIRECT,
        expires_after_seconds: float = EXPIRES_AFTER_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._observations = Observations(_read_observations(path, column))
        self._zone = zone
        self._kind = kind
        self._scope = scope
        self._source = path.name
        self._expires_after_seconds = expires_after_seconds
        self._clock = clock

    @property
    def fault(self) -> str:
        if self._clock is None:
            return ""
        now = self._clock.now()
        last = self._observations.last(now)
        if last is None:
            return f"{self._source} begins later"
        if self._expired(last, now):
            return f"{self._source} has nothing since {last.start.astimezone(UTC):%Y-%m-%d %H:%M}Z"
        return ""

    def current(self, now: datetime) -> Intensity:
        last = self._observations.last(now)
        if last is None:
            return self._mean(self._observations.mean(), observed_at=now)
        if self._expired(last, now):
            return self._mean(self._observations.year_mean(last), observed_at=last.start)
        return Intensity(last.g_per_kwh, self._zone, self._kind, self._scope, last.start, self._source)

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        return self._observations.history(now, hours)

    def _expired(self, last: Observation, now: datetime) -> bool:
        return (now - last.start).total_seconds() > self._expires_after_seconds

    def _mean(self, g_per_kwh: float, observed_at: datetime) -> Intensity:
        source = f"annual mean of {self._source}"
        return Intensity(g_per_kwh, self._zone, self._kind, self._scope, observed_at, source)


def _read_observations(path: Path, column: str) -> list[Observation]:
    rows = csv.reader(read_lines(path))
    header = next(rows, [])
    time_columns = [name for name in header if name.lower().startswith("datetime")]
    if len(time_columns) != 1:
        raise ValueError(f"{path.name}, line 1: exactly one column must begin with 'datetime', got {header}")
    if header.count(column) != 1:
        raise ValueError(f"{path.name}, line 1: column {column!r} must be there once, got {header}")
    time_index, value_index = header.index(time_columns[0]), header.index(column)
    observations: list[Observation] = []
    previous = datetime.min.replace(tzinfo=UTC)
    for row in rows:
        if not row:
            continue
        where = f"{path.name}, line {rows.line_num}"
        if len(row) != len(header):
            raise ValueError(f"{where}: must hold {len(header)} fields, got {len(row)}")
        start = parse_time(row[time_index], f"{where}: {time_columns[0]}")
        if start <= previous:
            raise ValueError(f"{where}: {time_columns[0]} must be after the line before, got {start.isoformat()}")
        previous = start
        if row[value_index].strip():
            observations.append(Observation(start, parse_g_per_kwh(row[value_index], f"{where}: {column}")))
    if not observations:
        raise ValueError(f"{path.name}: column {column!r} must hold at least one value, got none")
    return observations
