"""Carbon intensity of a grid zone: the value, what it means, and who provides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class SignalKind(StrEnum):
    """Which generation a kilowatt-hour is charged to."""

    AVERAGE = "AVERAGE"
    """The mix that runs."""
    MARGINAL = "MARGINAL"
    """The plant that would run more for it."""


class Scope(StrEnum):
    """Which emissions of that generation count."""

    DIRECT = "DIRECT"
    """Those of operation, mainly combustion."""
    LIFECYCLE = "LIFECYCLE"
    """Those of operation, building, fuel supply and disposal."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What grams count. Those under different signals are never added."""

    kind: SignalKind
    scope: Scope

    def __str__(self) -> str:
        return f"{self.kind.value.lower()}, {self.scope.value.lower()}"


@dataclass(frozen=True, slots=True)
class Intensity:
    """Carbon intensity in gCO2eq/kWh of one zone, in force since observed_at (aware datetime).

    Raises ValueError, naming the field, for a value that is negative or not finite, or a naive datetime.
    """

    g_per_kwh: float
    zone: str
    kind: SignalKind
    scope: Scope
    observed_at: datetime
    source: str

    def __post_init__(self) -> None:
        check_g_per_kwh(self.g_per_kwh)
        if self.observed_at.tzinfo is None:
            raise ValueError(f"observed_at must carry a time zone, got {self.observed_at.isoformat()}")

    @property
    def signal(self) -> Signal:
        return Signal(self.kind, self.scope)

    def age_seconds(self, now: datetime) -> float:
        """Seconds from observed_at to now."""
        return (now - self.observed_at).total_seconds()


class IntensityProvider(Protocol):
    """Where intensities come from. Neither method blocks or raises for an outage of the origin.

    `now` is an aware datetime; nothing after it influences an answer.
    """

    def current(self, now: datetime) -> Intensity:
        """The intensity in force at now, or the last that is known; age_seconds shows how old it is."""
        ...

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        """(start of the hour, gCO2eq/kWh) of the `hours` hours up to and with now's, oldest first.

        Hours without an observation are absent.
        """
        ...

    @property
    def fault(self) -> str:
        """Why the values are not fresh, for people; empty where they are."""
        ...


def check_g_per_kwh(value: float) -> float:
    """Return value; raise ValueError where it is negative or not finite."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"g_per_kwh must be finite and at least 0, got {value!r}")
    return value
