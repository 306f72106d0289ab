"""What the evaluator knows: the router's plan, and estimates rebuilt from the scores that the router keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, PairedScore, is_of_future
from common.quality.estimates import Estimates
from evaluator.client import RouterClient
from evaluator.judges.base import Judge
from evaluator.samples import EvaluationPlan


@dataclass(frozen=True, slots=True)
class Supposition:
    """What will be known once a report is recorded."""

    scores: tuple[PairedScore, ...]
    """Of the report: those that nobody has recorded yet."""
    estimates: Estimates
    starts: tuple[EpochStart, ...]
    """Changes of quality that they show."""
    position: str
    """Of all other scores that the estimates rest on."""


class Knowledge:
    """The plan as last read, and the estimates.

    Estimates rest on what the router has recorded, whoever reported it, in the order in which it was recorded: so they
    are the same however much of it is read at once. What a report would make of them is only supposed, until it is
    recorded and read back.

    Args:
        judge: names whose scores count for a cell at present.
    """

    def __init__(self, router: RouterClient, judge: Judge, alpha: float, drift_alpha: float) -> None:
        self._router = router
        self._judge_name = judge.name
        self._alpha = alpha
        self._drift_alpha = drift_alpha
        self._trusted = False
        self._taking_in = asyncio.Lock()
        self.plan: EvaluationPlan | None = None
        self.scores = 0
        """How many have been taken in."""
        self.position = ""
        """Up to where, as the router has it."""
        self.changed_at: dict[tuple[Cell, str], datetime] = {}
        """When a judge last found that a cell's quality had changed, where it did: by cell and the judge's name."""
        self._withdrawn: dict[tuple[Cell, str], datetime] = {}
        """When bounds were last withdrawn for what scores do not show, by cell and the judge's name."""
        self._begun_anew: set[tuple[Cell, str]] = set()
        self._log = structlog.get_logger("knowledge")
        self.estimates = self._nothing()
        self.rebuilt = asyncio.Event()
        """Set once estimates have been rebuilt for the first time."""

    async def refresh(self, with_mix: bool = False) -> EvaluationPlan:
        """Reads the plan anew. Raises PithError where the router cannot be reached."""
        held_against, self.plan = self.plan, await self._router.plan(with_mix)
        if held_against is not None and self._changes_floors(held_against, self.plan):
            # Drops are found at floors: by others, or with none, they are other ones or none, and so after a restart.
            self._trusted = False
        withdrawn = {(start.cell, start.judge): start.at for start in self.plan.withdrawals}
        if withdrawn != self._withdrawn:
            # Which scores count no more is the router's to say, when they are read anew.
            self._withdrawn, self._trusted = withdrawn, False
        for of, at in self.changed_at.items():
            if is_of_future(at, self.plan.now):
                # The clock has gone back: what is served from now on is as fresh as it gets.
                self.changed_at[of] = self.plan.now
        if self._trusted:
            self._tell_of_new_judges(self.plan)
        return self.plan

    async def ensure(self) -> None:
        """Takes in what has been recorded and is not known: at first and once distrusted all scores, else the new ones.

        Raises PithError where the router cannot be reached.
        """
        async with self._taking_in:
            if not self._trusted:
                # First, since scores are held against its floors.
                await self.refresh()
            # Who distrusts what is known while it is being read is heeded the next time.
            trusted, self._trusted = self._trusted, True
            try:
                scores, position = await self._router.scores_after(self.position if trusted else "")
                estimates = self.estimates if trusted else self._nothing()
                starts = _changes(await asyncio.to_thread(_take_in, estimates, scores))
            except BaseException:
                self._trusted &= trusted
                raise
            # A tenant's drop too: what was served before would open the directive for it again on old evidence.
            changed_at = {
                (start.cell.of_all, start.judge): start.at
                for start in starts
                if not start.cell.tenant or start.reason is EpochReason.DRIFT
            }
            if trusted:
                self.scores += len(scores)
                self.changed_at.update(changed_at)
            else:
                self.estimates, self.scores = estimates, len(scores)
                self.changed_at = self._since_withdrawn(changed_at)
            self.position = position
            if self.plan is not None:
                self._tell_of_new_judges(self.plan)
            self.rebuilt.set()

    async def suppose(self, scores: Sequence[PairedScore]) -> Supposition:
        """What will be known once these scores are recorded; those apart that others have had recorded meanwhile."""
        async with self._taking_in:
            estimates = self.estimates
            new = tuple(
                score for score in scores if not estimates.has_score(score.cell, score.sample_id, score.revision)
            )
            supposed, starts = await asyncio.to_thread(estimates.supposing, new)
            return Supposition(new, supposed, _changes(starts), self.position)

    @property
    def latest_g_per_kwh(self) -> float | None:
        """The grid's intensity as the plan last had it; None where unknown."""
        return self.plan.intensities[-1][1] if self.plan is not None and self.plan.intensities else None

    def distrust(self) -> None:
        """Has the estimates rebuilt from all scores before they are used again."""
        self._trusted = False

    def _since_withdrawn(self, changed_at: dict[tuple[Cell, str], datetime]) -> dict[tuple[Cell, str], datetime]:
        """With withdrawals among the changes. Where the clock has gone back since one, it was when that was noticed."""
        for of, at in self._withdrawn.items():
            if self.plan is not None and is_of_future(at, self.plan.now):
                at = self.changed_at.get(of, self.plan.now)
            changed_at[of] = max(at, changed_at.get(of, at))
        return changed_at

    def _changes_floors(self, one: EvaluationPlan, other: EvaluationPlan) -> bool:
        """Whether scores that are known are held against other floors by the other plan."""
        floors, others = ({target.cell: target.floors for target in plan.targets} for plan in (one, other))
        return any(floors.get(cell, ()) != others.get(cell, ()) for cell in self.estimates.cells())

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


def _take_in(estimates: Estimates, scores: Iterable[PairedScore]) -> tuple[EpochStart, ...]:
    # As they were recorded: by their times, two routers' clocks may have them in another order.
    starts = tuple(start for score in scores for start in estimates.observe(score))
    estimates.correct()
    return starts


def _changes(starts: Iterable[EpochStart]) -> tuple[EpochStart, ...]:
    """Those that are no mere edits of a directive."""
    return tuple(start for start in starts if start.reason is not EpochReason.REVISION)
