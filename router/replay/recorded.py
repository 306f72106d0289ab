"""What the ledger tells a replay: requests as they were served, and what requests of a cell cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """One served request."""

    tenant: str
    request_id: str
    task: str
    model: str
    """Name and digest, as cells have it."""
    directive: str
    directive_revision: int
    reason: str
    """`Reason.value`."""
    grams: float | None
    """Operational and embodied; None where its energy is unknown."""
    started_at: datetime


@dataclass(frozen=True, slots=True)
class CellCost:
    """Energy of the requests of one cell and revision: their number, sum and sum of squares."""

    requests: int
    joules_sum: float
    joules_square_sum: float

    @property
    def mean_joules(self) -> float:
        return self.joules_sum / self.requests

    @property
    def variation_square(self) -> float:
        """(Standard deviation / mean)², of two requests or more whose mean is above 0."""
        mean = self.mean_joules
        # Sums of squares of nearly equal numbers may cancel to just below zero.
        variance = max(0.0, self.joules_square_sum - self.requests * mean**2) / (self.requests - 1)
        return variance / mean**2
