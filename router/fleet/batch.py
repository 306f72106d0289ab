"""How many requests an engine runs at once, from its reports of load."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

SMOOTHING_SECONDS: Final = 600.0
"""What was that long ago counts e times less than what is now."""


class BusyBatch:
    """Requests running at once, over the time in which any runs, the older time forgotten exponentially.

    A busy second costs the same of what a step shares among B requests, and advances B of them: their mean share is one
    over the mean of B in busy time. At this mean, the terms of the energy that fall with 1/B are exact.
    """

    __slots__ = ("_state",)

    def __init__(self) -> None:
        # Replaced as a whole: plans are made in a thread of their own, which reads it between two reports.
        self._state = (0.0, 0.0, 0, 0.0)  # requests x time, busy time, running, since when

    def report(self, running: int, at_seconds: float) -> None:
        """So many run from now on.

        Args:
            at_seconds: Of a clock that does not go back.
        """
        self._state = (*self.until(at_seconds), running, at_seconds)

    def until(self, at_seconds: float) -> tuple[float, float]:
        """Sums up to that moment, in one unit: requests times time, and busy time."""
        requests, busy, running, since = self._state
        kept = math.exp(-max(0.0, at_seconds - since) / SMOOTHING_SECONDS)
        return kept * requests + (1 - kept) * running, kept * busy + (1 - kept) * (running > 0)


def mean_batch(batches: Iterable[BusyBatch], at_seconds: float) -> float | None:
    """Of engines that share the requests of a model, by their busy time; None where none was seen to run."""
    sums = [batch.until(at_seconds) for batch in batches]
    busy = math.fsum(busy for _, busy in sums)
    return math.fsum(requests for requests, _ in sums) / busy if busy > 0 else None
