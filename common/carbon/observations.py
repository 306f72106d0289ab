"""Hourly observations of a grid, as providers keep them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from common.carbon.hours import HOUR, YEAR, hour_start
from common.carbon.intensity import check_g_per_kwh


@dataclass(frozen=True, slots=True)
class Observation:
    """gCO2eq/kWh in force from `start` (aware datetime) on.

    estimated: Whether whoever published it has modelled it, for want of measurements.

    Raises ValueError for a value that is negative or not finite, or a naive datetime.
    """

    start: datetime
    g_per_kwh: float
    estimated: bool = False

    def __post_init__(self) -> None:
        check_g_per_kwh(self.g_per_kwh)
        if self.start.tzinfo is None:
            raise ValueError(f"start must carry a time zone, got {self.start.isoformat()}")


class Observations:
    """Observations in order of time, at most one a moment. Never changes, so that any thread may read it.

    Args:
        observations: In any order; of two with the same start the later one counts.
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        by_start = {one.start: one for one in observations}
        self._starts = sorted(by_start)
        self._observations = [by_start[start] for start in self._starts]
        self._running_sum = [0.0, *accumulate(one.g_per_kwh for one in self._observations)]

    def __len__(self) -> int:
        return len(self._observations)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._observations)

    def last(self, now: datetime) -> Observation | None:
        """The newest that has begun by now."""
        known = bisect_right(self._starts, now)
        return self._observations[known - 1] if known else None

    def year_mean(self, last: Observation) -> float:
        """gCO2eq/kWh, the mean of the year that ends with `last`, which is one of these."""
        return self._mean(bisect_right(self._starts, last.start - YEAR), bisect_right(self._starts, last.start))

    def mean(self) -> float:
        """gCO2eq/kWh, of all; there must be one."""
        return self._mean(0, len(self))

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        """As IntensityProvider.history."""
        window = slice(bisect_right(self._starts, now - hours * HOUR), bisect_right(self._starts, now))
        return [(one.start, one.g_per_kwh) for one in self._observations[window]]

    def updated(self, newer: Iterable[Observation], since: datetime) -> Observations:
        """These and newer ones, which take the place of those that began at the same time; without those from before
        `since`."""
        return Observations(one for one in (*self._observations, *newer) if one.start >= since)

    def _mean(self, begin: int, end: int) -> float:
        # Not below 0 by rounding: differences of running sums are not exact.
        return max(0.0, (self._running_sum[end] - self._running_sum[begin]) / (end - begin))


def hourly_means(
    points: Iterable[tuple[datetime, float, bool]], since: datetime, now: datetime
) -> Sequence[Observation]:
    """Observations by hour from finer ones (aware start, gCO2eq/kWh, estimated) that began at `since` or later and have
    begun by now: the mean of an hour's, estimated where one of them is."""
    by_hour: defaultdict[datetime, list[tuple[float, bool]]] = defaultdict(list)
    for start, g_per_kwh, estimated in points:
        if since <= start <= now:
            by_hour[hour_start(start)].append((g_per_kwh, estimated))
    return [
        Observation(hour, math.fsum(value for value, _ in found) / len(found), any(flag for _, flag in found))
        for hour, found in sorted(by_hour.items())
    ]
