"""What the evaluator knows: the router's plan, and estimates rebuilt from the scores that the router keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime

from common.quality.estimates import Cell, EpochReason, EpochStart, Estimates, Floor, PairedScore
from evaluator.client import RouterClient
from evaluator.samples import EvaluationPlan


class Knowledge:
    """The plan as last read, and the estimates.

    Estimates equal what the router has recorded, but for the report in hand. When that fails it is not known whether
    it was recorded: `distrust` then has them rebuilt before they are used again.
    """

    def __init__(self, router: RouterClient, alpha: float, drift_alpha: float) -> None:
        self._router = router
        self._alpha = alpha
        self._drift_alpha = drift_alpha
        self._trusted = False
        self._rebuilding = asyncio.Lock()
        self.plan: EvaluationPlan | None = None
        self.scores = 0
        """How many have been taken in."""
        self.changed_at: dict[Cell, datetime] = {}
        """When a cell's quality was last found to have changed, where it was."""
        self.estimates = self._nothing()
        self.rebuilt = asyncio.Event()
        """Set once estimates have been rebuilt for the first time."""

    async def refresh(self) -> EvaluationPlan:
        """Reads the plan anew. Raises PithError where the router cannot be reached."""
        self.plan = await self._router.plan()
        return self.plan

    async def ensure(self) -> None:
        """Rebuilds estimates unless they can be trusted. Raises PithError where the router cannot be reached."""
        async with self._rebuilding:
            if self._trusted:
                return
            # First, since scores are held against its floors.
            await self.refresh()
            scores = [score async for score in self._router.scores()]
            estimates = self._nothing()
            starts = await asyncio.to_thread(estimates.observe_all, scores)
            self.estimates = estimates
            self.scores = len(scores)
            self.changed_at = {start.cell: start.at for start in _changes(starts)}
            self._trusted = True
            self.rebuilt.set()

    async def observe(self, scores: Sequence[PairedScore]) -> tuple[EpochStart, ...]:
        """Takes in the scores of one report; the changes of quality that they show."""
        starts = _changes(await asyncio.to_thread(self.estimates.observe_all, scores))
        self.scores += len(scores)
        self.changed_at.update((start.cell, start.at) for start in starts)
        return starts

    def distrust(self) -> None:
        self._trusted = False

    def _nothing(self) -> Estimates:
        return Estimates(self._floors, self._alpha, self._drift_alpha)

    def _floors(self, cell: Cell) -> Sequence[Floor]:
        return self.plan.floors(cell) if self.plan is not None else ()


def _changes(starts: Iterable[EpochStart]) -> tuple[EpochStart, ...]:
    """Those that are no mere edits of a directive."""
    return tuple(start for start in starts if start.reason is not EpochReason.REVISION)
