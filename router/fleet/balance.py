"""Which engine gets the next request: the least loaded, by what engines report themselves, or where grids differ, one
that emits little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from common.carbon.accounting import JOULES_PER_KWH
from router.optimizer.pricing import EnergyModel, Lengths, Price

NEAR: Final = 1.05
"""Engines that emit up to so many times the least count as equal: neither intensities nor calibrations are surer."""
COMPARED: Final = Lengths.of(prompt_tokens=512, cached_tokens=0, output_tokens=256)
"""A request of middling length: when an engine is chosen, no more is known than that it is the same for all."""


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
    waiting: int = 0
    """Of those reported, those that wait for more than the next step."""
    grams: float = 0.0
    """Expected of work that is the same for all candidates."""

    @property
    def load(self) -> float:
        """Requests there as a share of its capacity.

        The report is the truth, since other routers send requests too; it is brought up to date by what this router did
        since. A report can cross a request on the wire, so this router's own requests are the least that can be there.
        """
        return max(self.reported + self.since_report, self.in_flight) / max(1, self.capacity)

    @property
    def has_room(self) -> bool:
        """Whether another request would run at once."""
        return self.load < 1 and not self.waiting


def least_loaded(candidates: Iterable[Candidate]) -> str | None:
    """Name of the candidate with the least load, the first by name among equals; None without candidates."""
    best = min(candidates, key=lambda candidate: (candidate.load, candidate.name), default=None)
    return best.name if best else None


def least_carbon(candidates: Sequence[Candidate]) -> str | None:
    """Name of the least loaded of those with room that emit least, or nearly so; of all where none has room: no request
    waits for a clean engine while another could run it, as far as this router knows. What others send meanwhile, the
    next report tells."""
    roomy = [candidate for candidate in candidates if candidate.has_room]
    least = min((candidate.grams for candidate in roomy), default=0.0)
    return least_loaded([candidate for candidate in roomy if candidate.grams <= NEAR * least] or candidates)


def expected_grams(engines: Sequence[tuple[EnergyModel | None, float]], running: float | None) -> Sequence[float]:
    """gCO2eq of the electricity for the same request at each; for the same energy, where not all are calibrated.

    All are priced at one batch, which each has measured. At its own, an engine without work shares its steps among
    nobody: it would look dearer than one that is busy only because it was chosen before, and traffic would never change
    over; and so would one that was calibrated up to a smaller batch than others.

    Args:
        engines: Calibration and gCO2eq/kWh of each.
        running: Requests that they run at once on average; None where none was seen to run.
    """
    models = [model for model, _ in engines if model is not None]
    if len(models) < len(engines):
        return [g_per_kwh for _, g_per_kwh in engines]
    if running is not None:
        running = min(running, *(model.max_batch for model in models))
    return [
        Price(model, running).joules(COMPARED) / JOULES_PER_KWH * g_per_kwh
        for model, (_, g_per_kwh) in zip(models, engines, strict=True)
    ]
