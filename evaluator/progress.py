"""How an evaluation is coming along, for those who watch it and for the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from common.errors import PithError
from common.quality.bound import EpochReason, EpochStart, Floor, FloorKind, QualityBound, beside
from common.quality.estimates import Verdict
from evaluator.samples import Target


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of an evaluation. Samples, joules and grams are of this evaluation; None where unknown."""

    samples_done: int
    samples_planned: int
    event: str
    energy_joules: float | None
    carbon_grams: float | None
    done: bool = False


class ProgressLog:
    """All that happened in one evaluation; any number may watch, from the beginning to its end."""

    def __init__(self) -> None:
        self._history: list[Progress] = []
        self._changed = asyncio.Event()
        self._ended = False
        self._fault: PithError | None = None

    def add(self, progress: Progress) -> None:
        self._history.append(progress)
        self._wake()

    def end(self, fault: PithError | None = None) -> None:
        """Nothing more happens; `fault` is what cut it short."""
        self._ended = True
        self._fault = fault
        self._wake()

    async def watch(self) -> AsyncIterator[Progress]:
        """Raises the fault that cut the evaluation short, after what happened before it."""
        seen = 0
        while True:
            changed = self._changed
            while seen < len(self._history):
                yield self._history[seen]
                seen += 1
            if self._ended:
                if self._fault is not None:
                    raise self._fault
                return
            await changed.wait()

    async def fault(self) -> PithError | None:
        """What cut the evaluation short, once it has ended; None where it came to its end."""
        while not self._ended:
            await self._changed.wait()
        return self._fault

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def verdict_line(target: Target, floor: Floor, verdict: Verdict, bound: QualityBound | None) -> str:
    """Such as "extraction/L2 opened: bound 0.957 >= 0.950"."""
    if bound is None or verdict == "undecided":
        return f"{target.label} undecided at {floor.quality:.3f}"
    if verdict == "open":
        return f"{target.label} opened: bound {beside(_lower(bound, floor.kind), floor.quality)} >= {floor.quality:.3f}"
    if floor.kind is FloorKind.RELATIVE:
        return f"{target.label} closed: share at most {beside(bound.upper, floor.quality)} < {floor.quality:.3f}"
    return f"{target.label} closed: its mean quality is below {floor.quality:.3f}"


def batch_line(target: Target, scored: int, bound: QualityBound | None) -> str:
    """Such as "extraction/L2: 16 samples scored, share at least 0.823 after 64"."""
    if bound is None:
        return f"{target.label}: {scored} samples scored"
    return f"{target.label}: {scored} samples scored, share at least {bound.lower:.3f} after {bound.samples}"


def withdrawal_line(target: Target, start: EpochStart) -> str:
    """Such as "extraction/L2 withdrawn: quality has fallen below 0.950"; of a tenant's own bound, "extraction/L2 for
    tenant acme withdrawn"."""
    what = f"{target.label} for tenant {start.cell.tenant}" if start.cell.tenant else target.label
    if start.reason is EpochReason.DRIFT and start.floor is not None:
        return f"{what} withdrawn: quality has fallen below {start.floor.quality:.3f}"
    return f"{what} withdrawn: quality has changed"


def _lower(bound: QualityBound, kind: FloorKind) -> float:
    return bound.lower if kind is FloorKind.RELATIVE else bound.absolute_lower
