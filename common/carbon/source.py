"""Where live observations come from: what a grid's API must be able to do, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

from common.carbon.intensity import Signal
from common.carbon.observations import Observation
from common.carbon.parsing import parse_time

Failure = Literal["timeout", "refused", "limited", "failed", "malformed", "stale"]
"""timeout: no whole answer in time; refused: 4xx, such as for a bad token; limited: 429; failed: 5xx, or out of reach;
malformed: an answer that does not hold what it should; stale: one that holds nothing new."""


class SourceError(Exception):
    """A source that did not do what it should. Its text is ours: nothing that the other side sent is in it.

    Attributes:
        failure: Its kind.
        retry_after_seconds: How long the other side wants to be left alone; 0 where it does not say.
    """

    def __init__(self, failure: Failure, text: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.failure: Failure = failure
        self.retry_after_seconds = retry_after_seconds


class Source(Protocol):
    """One zone of one API. PolledIntensity makes a provider of it.

    Attributes:
        name: Of the API, as intensities name their source.
        zone: The label under which its values are reported.
        signal: What its values count; always the same.
    """

    @property
    def name(self) -> str: ...

    @property
    def zone(self) -> str: ...

    @property
    def signal(self) -> Signal: ...

    async def fetch(self, now: datetime, since: datetime) -> Sequence[Observation]:
        """Observations by the hour, of hours that have begun by `now`; those before `since` are known already, and how
        far back it reaches is up to the API. Takes no longer than its time-out.

        Raises SourceError where there is none.
        """
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


def readable_time(value: object) -> datetime | None:
    """A moment from JSON, aware, UTC where it has no offset; None where it is none."""
    if not isinstance(value, str):
        return None
    try:
        return parse_time(value, "time")
    except ValueError:
        return None


def readable_g_per_kwh(value: object) -> float | None:
    """An intensity from JSON; None where it is none: null, no number, not finite, or negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        g_per_kwh = float(value)
    except OverflowError:
        return None
    return g_per_kwh if math.isfinite(g_per_kwh) and g_per_kwh >= 0 else None
