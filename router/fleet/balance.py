"""Which engine gets the next request: the least loaded, by what engines report themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may be chosen. Counts are requests."""

    name: str
    reported: int
    """Running and waiting there, from all routers, in its last report."""
    since_report: int
    """Sent by this router since that report, less those of its own that ended; may be below 0."""
    in_flight: int
    """This router's own, at this moment."""
    capacity: int
    """Most that run at once."""

    @property
    def load(self) -> float:
        """Requests there as a share of its capacity.

        The report is the truth, since other routers send requests too; it is brought up to date by what this router did
        since. A report can cross a request on the wire, so this router's own requests are the least that can be there.
        """
        return max(self.reported + self.since_report, self.in_flight) / max(1, self.capacity)


def least_loaded(candidates: Iterable[Candidate]) -> str | None:
    """Name of the candidate with the least load, the first by name among equals; None without candidates."""
    best = min(candidates, key=lambda candidate: (candidate.load, candidate.name), default=None)
    return best.name if best else None
