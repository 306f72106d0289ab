"""One evaluation: batches of samples are drawn, examined and reported until nothing is left to decide."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from common.errors import PithError
from common.quality.bound import Floor, PairedScore
from common.quality.estimates import Verdict
from evaluator.client import SCORES_MOVED, Outcome, RouterClient
from evaluator.examination import Examined, Examiner
from evaluator.invalidation import withdraw_outdated
from evaluator.judges.base import Judge, Judgement, Unscored
from evaluator.knowledge import Knowledge, Supposition
from evaluator.pace import Pace
from evaluator.progress import Progress, ProgressLog, batch_line, verdict_line, withdrawal_line
from evaluator.samples import L0, EvaluationPlan, Sample, Target
from evaluator.sampling import Batch, Economy, Tally, batches, next_batch
from evaluator.spending import Spending

REPORT_TRIES = 20
"""Of one batch, while others report: each refusal means that one of them was faster."""


def judgeable(plan: EvaluationPlan, judge: Judge, task: str = "") -> tuple[Target, ...]:
    """Targets that there is a floor and a judge for; of one task, or of all where it is empty."""
    return tuple(
        target
        for target in plan.targets
        if target.floors
        and target.cell.directive != L0
        and judge.judges(target.grader)
        and task in ("", target.cell.task)
    )


class Evaluation:
    """One run over all targets, or those of one task.

    A batch is reported in one call, scores, answers and bounds together: a crash loses at most the batch in hand, and
    its samples come back when their lease ends. All times are the router's, so that clocks need not agree.

    Args:
        spending: sums beyond this run, kept as well as its own.
    """

    def __init__(
        self,
        router: RouterClient,
        judge: Judge,
        knowledge: Knowledge,
        economy: Economy,
        concurrency: int,
        pace: Pace,
        spending: Spending,
        task: str = "",
    ) -> None:
        self._router = router
        self._judge = judge
        self._knowledge = knowledge
        self._economy = economy
        self._task = task
        self._tally = Tally()
        self._log = structlog.get_logger("evaluation")
        self.spending = Spending()
        self._examiner = Examiner(router, judge, concurrency, pace, (self.spending, spending))
        self.progress = ProgressLog()
        self.unscored = 0

    @property
    def scored(self) -> int:
        return self._tally.scored.total()

    async def run(self, stopping: asyncio.Event) -> bool:
        """Runs to the end, or to the end of the batch in hand once `stopping` is set; whether it came to its end.

        Raises:
            PithError: the router refused or could not be reached; nothing is half reported.
        """
        plan = await withdraw_outdated(self._router, self._knowledge, self._judge)
        since = plan.last_reported_at
        graders = {target.grader for target in plan.targets}
        for grader in sorted(grader for grader in graders if not self._judge.judges(grader)):
            self._publish(f"left out: no judge for grader {grader!r}")
        while not stopping.is_set():
            batch = next_batch(self._targets(), self._knowledge.estimates, self._economy, self._tally)
            if batch is None:
                self._publish(f"done: {self.scored} samples scored, {self.unscored} not", done=True)
                return True
            await self._take(batch, since)
        return False

    def _targets(self) -> tuple[Target, ...]:
        plan = self._knowledge.plan
        return judgeable(plan, self._judge, self._task) if plan is not None else ()

    async def _take(self, batch: Batch, since: datetime | None) -> None:
        target = batch.target
        # What was served before a drop tells nothing about what came of it, nor, where one is to be noticed, what was
        # served before the last evaluation.
        changed_at = self._knowledge.changed_at.get((target.cell, self._judge.name(target.grader)))
        ends = [changed_at, since if batch.is_maintenance else None]
        served_after = max((end for end in ends if end is not None), default=None)
        drawn = await self._router.draw(target.cell, batch.samples, served_after)
        if not drawn:
            (self._tally.stale if batch.is_maintenance else self._tally.dry).add(target.cell)
            return
        refusals = [_foreign(target, sample) or self._judge.refusal(sample) for sample in drawn]
        refused = [refusal for refusal in refusals if refusal is not None]
        # Those cost nothing, and no budget: until their lease ends they are out of the way.
        self._count_unscored(target, refused)
        self._tally.refused[target.cell] += len(refused)
        if self._tally.refused[target.cell] >= target.waiting:
            # All that wait have had their turn, and leases that end would bring them again and again.
            self._tally.dry.add(target.cell)
        if samples := [sample for sample, refusal in zip(drawn, refusals, strict=True) if refusal is None]:
            self._tally.drawn[target.cell] += len(samples)
            await self._judge_all(target, samples)

    async def _judge_all(self, target: Target, samples: Sequence[Sample]) -> None:
        examined = await self._examiner.examine_all(target, samples)
        judged = [(one, one.result) for one in examined if isinstance(one.result, Judgement)]
        recorded = await self._record(target, judged)
        if recorded is None:
            self._publish(f"{target.label} was edited meanwhile: {len(samples)} samples left unscored")
            return
        before, supposed = recorded
        await self._knowledge.ensure()
        await self._knowledge.refresh()
        for score in supposed.scores:
            self._tally.take(score)
        unscored = [one.result for one in examined if isinstance(one.result, Unscored)]
        if len(unscored) == len(samples):
            # A whole batch failed, for a reason that the next one is likely to share.
            self._tally.dry.add(target.cell)
        self._count_unscored(target, unscored)
        if late := len(samples) - len(unscored) - len(supposed.scores):
            self._publish(f"{target.label}: {late} samples had been scored by another, or served before a change")
        bound = supposed.estimates.bound(target.cell)
        self._publish(batch_line(target, len(supposed.scores), bound))
        # Where it fell for all tenants together, that says enough.
        for start in [start for start in supposed.starts if not start.cell.tenant] or supposed.starts:
            self._publish(withdrawal_line(target, start))
        for floor, verdict in target.verdicts(supposed.estimates).items():
            if verdict != before[floor] and all(start.cell != target.cell for start in supposed.starts):
                self._publish(verdict_line(target, floor, verdict, bound))

    async def _record(
        self, target: Target, judged: Sequence[tuple[Examined, Judgement]]
    ) -> tuple[Mapping[Floor, Verdict], Supposition] | None:
        """Has the router record scores, and what follows from them and all that others have had recorded by then.

        Returns:
            What was known before, and what is known with them; None where the target was edited, and nothing recorded.
        """
        answers = {one.sample.sample_id: one.generated for one, _ in judged}
        for left in reversed(range(REPORT_TRIES)):
            plan = await self._knowledge.refresh()
            present = plan.target(target.cell)
            if present is None or (present.revision, present.grader) != (target.revision, target.grader):
                return None
            await self._knowledge.ensure()
            before = target.verdicts(self._knowledge.estimates)
            fresh = [one for one in judged if self._is_fresh(target, *one)]
            supposed = await self._knowledge.suppose([_score(target, *one, plan.now) for one in fresh])
            if not supposed.scores:
                break
            try:
                await self._router.report(
                    [Outcome(score, answers[score.sample_id]) for score in supposed.scores],
                    target.bounds(supposed.estimates, supposed.scores, supposed.starts),
                    supposed.starts,
                    supposed.position,
                )
                break
            except PithError as error:
                if error.reason != SCORES_MOVED or not left:
                    raise
                if left == REPORT_TRIES - 1:
                    self._publish(f"{target.label}: another evaluator reported meanwhile: bounds are made anew")
        return before, supposed

    def _is_fresh(self, target: Target, examined: Examined, judgement: Judgement) -> bool:
        """Whether the sample was served since the judge last found a change: it may have done so since it was drawn."""
        changed_at = self._knowledge.changed_at.get((target.cell, judgement.judge))
        return changed_at is None or examined.sample.served_at > changed_at

    def _count_unscored(self, target: Target, unscored: Sequence[Unscored]) -> None:
        self.unscored += len(unscored)
        for reason, count in Counter(one.reason for one in unscored).items():
            self._publish(
                f"{target.label}: {count} samples unscored: {reason}",
                lacking={"task": target.cell.task, "directive": target.cell.directive, "grader": target.grader},
            )

    def _publish(self, event: str, done: bool = False, lacking: Mapping[str, str] | None = None) -> None:
        """`lacking`: what the event is about, where somebody has to see to it; the log then has it as a warning."""
        taken = self._tally.drawn.total()
        in_sight = batches(self._targets(), self._knowledge.estimates, self._economy, self._tally)
        self.progress.add(
            Progress(
                samples_done=taken,
                samples_planned=taken + sum(batch.in_sight for batch in in_sight),
                event=event,
                energy_joules=self.spending.energy_joules,
                carbon_grams=self.spending.carbon_grams,
                done=done,
            )
        )
        if lacking is None:
            self._log.info(event)
        else:
            self._log.warning(event, **lacking)


def _foreign(target: Target, sample: Sample) -> Unscored | None:
    """Why a sample cannot tell of the target: each judge has an estimate of its own, and one of them counts."""
    if sample.grader == target.grader:
        return None
    return Unscored(f"their grader is {sample.grader}, and {target.grader} is what counts for the task")


def _score(target: Target, examined: Examined, judgement: Judgement, scored_at: datetime) -> PairedScore:
    return PairedScore(
        cell=target.cell,
        sample_id=examined.sample.sample_id,
        quality=judgement.quality,
        baseline_quality=judgement.baseline_quality,
        judge=judgement.judge,
        revision=str(target.revision),
        scored_at=scored_at,
        comparison=judgement.comparison,
        tenant=examined.sample.tenant,
    )
