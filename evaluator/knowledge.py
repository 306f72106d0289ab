"""What the evaluator knows: the router's plan, and estimates rebuilt from the scores that the router keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime

import structlog

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, PairedScore
from common.quality.estimates import Estimates
from evaluator.client import RouterClient
from evaluator.judges.base import Judge
from evaluator.samples import EvaluationPlan


class Knowledge:
    """The plan as last read, and the estimates.

    Estimates equal what the router has recorded, but for the report in hand. When that fails it is not known whether
    it was recorded: `distrust` then has them rebuilt before they are used again.

    Args:
        judge: names whose scores count for a cell at present.
    """

    def __init__(self, router: RouterClient, judge: Judge, alpha: float, drift_alpha: float) -> None:
        self._router = router
        self._judge_name = judge.name
        self._alpha = alpha
        self._drift_alpha = drift_alpha
        self._trusted = False
        self._rebuilding = asyncio.Lock()
        self.plan: EvaluationPlan | None = None
        self.scores = 0
        """How many have been taken in."""
        self.changed_at: dict[tuple[Cell, str], datetime] = {}
        """When a judge last found that a cell's quality had changed, where it did: by cell and the judge's name."""
        self._begun_anew: set[tuple[Cell, str]] = set()
        self._log = structlog.get_logger("knowledge")
        self.estimates = self._nothing()
        self.rebuilt = asyncio.Event()
        """Set once estimates have been rebuilt for the first time."""

    async def refresh(self) -> EvaluationPlan:
        """Reads the plan anew. Raises PithError where the router cannot be reached."""
        self.plan = await self._router.plan()
        if self._trusted:
            self._tell_of_new_judges(self.plan)
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
            self.changed_at = {(start.cell, start.judge): start.at for start in _changes(starts)}
            self._trusted = True
            if self.plan is not None:
                self._tell_of_new_judges(self.plan)
            self.rebuilt.set()

    async def observe(self, scores: Sequence[PairedScore]) -> tuple[EpochStart, ...]:
        """Takes in the scores of one report; the changes of quality that they show."""
        starts = _changes(await asyncio.to_thread(self.estimates.observe_all, scores))
        self.scores += len(scores)
        self.changed_at.update(((start.cell, start.judge), start.at) for start in starts)
        return starts

    @property
    def latest_g_per_kwh(self) -> float | None:
        """The grid's intensity as the plan last had it; None where unknown."""
        return self.plan.intensities[-1][1] if self.plan is not None and self.plan.intensities else None

    def distrust(self) -> None:
        self._trusted = False

    def _nothing(self) -> Estimates:
        return Estimates(self._floors, self._alpha, self._drift_alpha, self._judge)

    def _floors(self, cell: Cell) -> Sequence[Floor]:
        return self.plan.floors(cell) if self.plan is not None else ()

    def _judge(self, cell: Cell) -> str:
        target = self.plan.target(cell) if self.plan is not None else None
        return self._judge_name(target.grader) if target is not None else ""

    def _tell_of_new_judges(self, plan: EvaluationPlan) -> None:
        """Logs, once each, the directives for which another judge's scores count from now on: the first close them."""
        for target in plan.targets:
            judge, known = self._judge_name(target.grader), self.estimates.judges(target.cell)
            if judge and known and judge not in known and (target.cell, judge) not in self._begun_anew:
                self._begun_anew.add((target.cell, judge))
                self._log.warning(
                    "another judge: the estimate begins anew",
                    task=target.cell.task,
                    directive=target.cell.directive,
                    model=target.cell.model,
                    judge=judge,
                    earlier_judges=list(known),
                )


def _changes(starts: Iterable[EpochStart]) -> tuple[EpochStart, ...]:
    """Those that are no mere edits of a directive."""
    return tuple(start for start in starts if start.reason is not EpochReason.REVISION)
