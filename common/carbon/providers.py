"""Intensity providers that need no network: a constant, a daily profile, a file of hourly observations."""

from __future__ import annotations

import csv
import gzip
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, takewhile
from pathlib import Path

from common.carbon.intensity import Intensity, IntensityProvider, Scope, SignalKind, check_g_per_kwh

HOUR = timedelta(hours=1)
YEAR = timedelta(days=365)
SPEC_FORMS = "constant:ZONE:G_PER_KWH[:SCOPE], profile:PATH or csv:PATH:ZONE:COLUMN[:SCOPE]"


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

    def current(self, now: datetime) -> Intensity:
        start = _hour_start(now)
        g_per_kwh = self._hourly_g_per_kwh[start.hour]
        return Intensity(g_per_kwh, self._zone, self._kind, self._scope, start, self._source)

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        last = _hour_start(now)
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


class CsvIntensity:
    """Hourly observations from a CSV file (plain or .gz), such as an Electricity Maps export.

    The file has one column whose name begins with "datetime" (ISO 8601, UTC where no offset is given,
    strictly increasing) and the named column of gCO2eq/kWh, blank where there is no observation. `zone` is
    the label under which the values are reported.

    An observation is in force from its hour on. In a gap, and after the end of the file, the last one stays
    in force until it is expires_after_seconds old; then the mean of the last year of observations up to it
    takes over, whose source says so. Before the first observation that is the mean of the whole file, the
    one case where there is no past to take it from.

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
        expires_after_seconds: float = 6 * 3600.0,
    ) -> None:
        observations = _read_observations(path, column)
        self._starts = [start for start, _ in observations]
        self._g_per_kwh = [value for _, value in observations]
        self._running_sum = [0.0, *accumulate(self._g_per_kwh)]
        self._zone = zone
        self._kind = kind
        self._scope = scope
        self._source = path.name
        self._expires_after_seconds = expires_after_seconds

    def current(self, now: datetime) -> Intensity:
        known = bisect_right(self._starts, now)
        if known == 0:
            return self._mean(0, len(self._starts), observed_at=now)
        last = self._starts[known - 1]
        if (now - last).total_seconds() > self._expires_after_seconds:
            return self._mean(bisect_right(self._starts, last - YEAR), known, observed_at=last)
        g_per_kwh = self._g_per_kwh[known - 1]
        return Intensity(g_per_kwh, self._zone, self._kind, self._scope, last, self._source)

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        window = slice(bisect_right(self._starts, now - hours * HOUR), bisect_right(self._starts, now))
        return list(zip(self._starts[window], self._g_per_kwh[window], strict=True))

    def _mean(self, begin: int, end: int, observed_at: datetime) -> Intensity:
        g_per_kwh = (self._running_sum[end] - self._running_sum[begin]) / (end - begin)
        source = f"annual mean of {self._source}"
        return Intensity(g_per_kwh, self._zone, self._kind, self._scope, observed_at, source)


def read_daily_profile(path: Path) -> DailyProfile:
    """Read a daily profile: a CSV file of the columns hour (0 to 23, UTC) and g_per_kwh.

    Lines that begin with # come first: `# zone: NAME` is required, `# scope: direct` or `lifecycle` is
    direct where absent, any other is a comment.

    Raises OSError where the file cannot be read and ValueError that names the file, the line and the field.
    """
    lines = _read_lines(path)
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
        hourly[hour] = _parse_g_per_kwh(row[1], f"{where}: g_per_kwh")
    for hour in range(24):
        if hour not in hourly:
            raise ValueError(f"{path.name}: hour {hour} is missing")
    if not declared.get("zone"):
        raise ValueError(f"{path.name}: zone is missing, the first lines must hold '# zone: NAME'")
    scope = _parse_scope(declared.get("scope", "direct"), f"{path.name}: scope")
    return DailyProfile(declared["zone"], [hourly[hour] for hour in range(24)], scope=scope, source=path.name)


def provider_from_spec(spec: str, base: Path | None = None) -> IntensityProvider:
    """Make the provider that a configuration names in one line.

    Forms: `constant:ZONE:G_PER_KWH[:SCOPE]`, `profile:PATH`, `csv:PATH:ZONE:COLUMN[:SCOPE]`. SCOPE is direct
    (where absent) or lifecycle; the signal is AVERAGE. A relative PATH is taken from `base`, or from the
    working directory without one.

    Raises ValueError that names the fault, and OSError where a file cannot be read.
    """
    folder = base or Path()
    match spec.split(":"):
        case ["constant", zone, value, *scope] if zone and len(scope) <= 1:
            g_per_kwh = _parse_g_per_kwh(value, f"{spec!r}: G_PER_KWH")
            return ConstantIntensity(zone, g_per_kwh, scope=_scope_of_spec(scope, spec))
        case ["profile", path] if path:
            return read_daily_profile(folder / path)
        case ["csv", path, zone, column, *scope] if path and zone and column and len(scope) <= 1:
            return CsvIntensity(folder / path, zone, column, scope=_scope_of_spec(scope, spec))
        case _:
            raise ValueError(f"intensity provider must be {SPEC_FORMS}, got {spec!r}")


def _read_observations(path: Path, column: str) -> list[tuple[datetime, float]]:
    rows = csv.reader(_read_lines(path))
    header = next(rows, [])
    time_columns = [name for name in header if name.lower().startswith("datetime")]
    if len(time_columns) != 1:
        raise ValueError(f"{path.name}, line 1: exactly one column must begin with 'datetime', got {header}")
    if header.count(column) != 1:
        raise ValueError(f"{path.name}, line 1: column {column!r} must be there once, got {header}")
    time_index, value_index = header.index(time_columns[0]), header.index(column)
    observations: list[tuple[datetime, float]] = []
    previous = datetime.min.replace(tzinfo=UTC)
    for row in rows:
        if not row:
            continue
        where = f"{path.name}, line {rows.line_num}"
        if len(row) != len(header):
            raise ValueError(f"{where}: must hold {len(header)} fields, got {len(row)}")
        start = _parse_time(row[time_index], f"{where}: {time_columns[0]}")
        if start <= previous:
            raise ValueError(f"{where}: {time_columns[0]} must be after the line before, got {start.isoformat()}")
        previous = start
        if row[value_index].strip():
            observations.append((start, _parse_g_per_kwh(row[value_index], f"{where}: {column}")))
    if not observations:
        raise ValueError(f"{path.name}: column {column!r} must hold at least one value, got none")
    return observations


def _read_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        # Exports often begin with a byte-order mark, which would become part of the first column's name.
        return content.decode("utf-8-sig").splitlines()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: must be UTF-8 text, plain or .gz, got {error}") from None


def _parse_time(text: str, field: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{field} must be an ISO 8601 date and time, got {text!r}") from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed


def _parse_g_per_kwh(text: str, field: str) -> float:
    try:
        return check_g_per_kwh(float(text))
    except ValueError:
        raise ValueError(f"{field} must be a finite number of at least 0, got {text!r}") from None


def _parse_scope(text: str, field: str) -> Scope:
    try:
        return Scope[text.upper()]
    except KeyError:
        raise ValueError(f"{field} must be direct or lifecycle, got {text!r}") from None


def _scope_of_spec(scope: list[str], spec: str) -> Scope:
    return _parse_scope(scope[0] if scope else "direct", f"{spec!r}: SCOPE")


def _hour_start(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
