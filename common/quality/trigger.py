"""When to evaluate: soon after the grid's intensity has turned up from a low, more eagerly the longer ago.

After SPROUT (EMNLP 2024, opportunistic evaluator), without its look-ahead: the mean that an intensity is
compared with is that of the past, not of the window to come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from common.carbon.intensity import check_g_per_kwh

_SECONDS_PER_HOUR = 3600.0
# Intensities are hourly: an older one does not tell how clean the grid is now.
_INTENSITY_MAX_AGE_SECONDS = 2 * _SECONDS_PER_HOUR


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to evaluate now, and why or why not, in words for a person."""

    run: bool
    reason: str


@dataclass(frozen=True, slots=True)
class EvaluationTrigger:
    """The rule and its times. Raises ValueError, naming the field, where they contradict one another.

    grace_seconds: never again so soon after an evaluation.
    max_idle_seconds: always when the last one is so long ago.
    undecided_max_idle_seconds: the same while a directive waits, neither open nor closed, and saves nothing.
    urgency_per_hour: growth rate of the intensity's weight since the last evaluation, e^(0.029 x 24) = 2.
    """

    grace_seconds: float = 6 * _SECONDS_PER_HOUR
    max_idle_seconds: float = 72 * _SECONDS_PER_HOUR
    undecided_max_idle_seconds: float = 12 * _SECONDS_PER_HOUR
    urgency_per_hour: float = 0.029

    def __post_init__(self) -> None:
        if not 0 <= self.grace_seconds < self.undecided_max_idle_seconds <= self.max_idle_seconds:
            raise ValueError(
                "grace_seconds, undecided_max_idle_seconds and max_idle_seconds must ascend from 0, "
                f"got {self.grace_seconds!r}, {self.undecided_max_idle_seconds!r}, "
                f"{self.max_idle_seconds!r}"
            )
        if not (math.isfinite(self.urgency_per_hour) and self.urgency_per_hour >= 0):
            raise ValueError(f"urgency_per_hour must be finite and at least 0, got {self.urgency_per_hour!r}")

    @property
    def fresh_seconds(self) -> float:
        """How long what was looked at need not be looked at again, where nothing else calls for an evaluation: so long
        that some low still comes before the longest idle time is over."""
        return self.max_idle_seconds / 2

    def should_run(
        self,
        now: datetime,
        last_run: datetime | None,
        intensities: Sequence[tuple[datetime, float]],
        undecided: bool,
        mean_g_per_kwh: float | None = None,
    ) -> Decision:
        """Whether to evaluate at now.

        intensities: (time, gCO2eq/kWh), oldest first, none after now; the last is the present one.
        undecided: whether the floor of some directive is neither cleared nor out of reach.
        mean_g_per_kwh: what counts as an ordinary intensity; the mean of intensities where it is None.
        Raises ValueError for intensities that are out of order, after now, negative or not finite.
        """
        _check_intensities(intensities, now)
        if last_run is None:
            if undecided:
                return Decision(True, "first evaluation")
            return Decision(False, "nothing to decide")
        idle_seconds = (now - last_run).total_seconds()
        if idle_seconds <= self.grace_seconds:
            return Decision(False, f"last evaluation only {_hours(idle_seconds)} ago")
        if idle_seconds >= self.max_idle_seconds:
            return Decision(True, f"last evaluation {_hours(idle_seconds)} ago")
        if undecided and idle_seconds >= self.undecided_max_idle_seconds:
            return Decision(True, f"undecided, and last evaluation {_hours(idle_seconds)} ago")
        return self._by_intensity(now, last_run, intensities, mean_g_per_kwh)

    def _by_intensity(
        self,
        now: datetime,
        last_run: datetime,
        intensities: Sequence[tuple[datetime, float]],
        mean_g_per_kwh: float | None,
    ) -> Decision:
        if len(intensities) < 3 or _seconds(intensities[-1][0], now) > _INTENSITY_MAX_AGE_SECONDS:
            return Decision(False, "intensity of the grid unknown")
        present_at, present = intensities[-1]
        if mean_g_per_kwh is None:
            mean_g_per_kwh = math.fsum(value for _, value in intensities) / len(intensities)
        if present > mean_g_per_kwh:
            return Decision(False, f"intensity {present:.0f} above the mean {mean_g_per_kwh:.0f} g/kWh")
        # c(u) = intensity(u) e^(urgency (u - last run)); a turn that the last evaluation saw is not news.
        before, at_low, after = (
            value * math.exp(self.urgency_per_hour * _seconds(last_run, at) / _SECONDS_PER_HOUR)
            for at, value in intensities[-3:]
        )
        if present_at > last_run and at_low - before <= 0 and after - at_low >= 0:
            return Decision(True, f"intensity {present:.0f} g/kWh has passed a low")
        return Decision(False, f"intensity {present:.0f} g/kWh has not just passed a low")


def _check_intensities(intensities: Sequence[tuple[datetime, float]], now: datetime) -> None:
    previous = None
    for at, value in intensities:
        check_g_per_kwh(value)
        if at > now:
            raise ValueError(f"intensities must not lie after now, {now.isoformat()}, got {at.isoformat()}")
        if previous is not None and at <= previous:
            raise ValueError(f"intensities must be oldest first, got {at.isoformat()} after {previous.isoformat()}")
        previous = at


def _seconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()


def _hours(seconds: float) -> str:
    return f"{seconds / _SECONDS_PER_HOUR:.1f} h"
