"""The evaluator's life: rebuild estimates, look out for a good hour, evaluate, survive the router's absence."""

from __future__ import annotations

import asyncio
from datetime import datetime

import structlog

from common.clock import Clock
from common.errors import PithError, internal, unavailable
from common.metrics import Metrics
from evaluator.client import RouterClient, back_off_seconds
from evaluator.config import EvaluatorConfig
from evaluator.evaluation import Evaluation, judgeable
from evaluator.invalidation import withdraw_outdated
from evaluator.judges.base import Judge
from evaluator.knowledge import Knowledge
from evaluator.pace import Pace
from evaluator.samples import EvaluationPlan
from evaluator.sampling import Tally, batches, work_waits
from evaluator.spending import Spending


class EvaluationLoop:
    """Evaluates when the trigger says so, or when asked; one evaluation at a time.

    Args:
        clock: what polls and the trigger go by.
        back_off: what waits after a fault of the router go by, and answers_per_minute; wall time outside of tests.
    """

    def __init__(
        self,
        config: EvaluatorConfig,
        router: RouterClient,
        judge: Judge,
        clock: Clock,
        back_off: Clock,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._router = router
        self._judge = judge
        self._clock = clock
        self._back_off = back_off
        self._pace = Pace(config.answers_per_minute, back_off)
        self._log = structlog.get_logger("loop")
        self._stopping = asyncio.Event()
        self._evaluation: Evaluation | None = None
        self._task: asyncio.Task[None] | None = None
        self._cut_short = False
        self._metrics = _LoopMetrics(metrics)
        self.knowledge = Knowledge(router, judge, config.alpha, config.drift_alpha)
        self.spending = Spending(metrics)
        self.evaluations = 0
        self.last_run_at: datetime | None = None
        self.reason = "the router has not been reached yet"
        self.last_fault = ""

    @property
    def running(self) -> bool:
        return self._evaluation is not None

    async def run(self) -> None:
        """Polls until cancelled. A fault is logged and kept in `last_fault`, never raised."""
        failures = 0
        while True:
            fault = await self._poll()
            if fault is None:
                failures = 0
                await self._clock.sleep(self._config.poll_seconds)
            else:
                failures += 1
                await self._back_off.sleep(back_off_seconds(failures, fault.retry_after_seconds))

    def start(self, task: str = "", reason: str = "asked for") -> Evaluation:
        """Starts an evaluation of a task (empty: all), or returns the one that runs."""
        if self._evaluation is None:
            self.reason = reason
            self._log.info("evaluation", reason=reason)
            self._evaluation = Evaluation(
                self._router,
                self._judge,
                self.knowledge,
                self._config.economy,
                self._config.concurrency,
                self._pace,
                self.spending,
                task,
            )
            self._task = asyncio.create_task(self._evaluate(self._evaluation))
        return self._evaluation

    async def stop(self, grace_seconds: float) -> None:
        """Lets the batch in hand end within `grace_seconds`, wall time, or else abandons it unreported."""
        self._stopping.set()
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=grace_seconds)
            for task in late:
                task.cancel()
                await asyncio.wait({task})

    async def _poll(self) -> PithError | None:
        """One look at whether to evaluate, and the evaluation; the fault that it met."""
        try:
            await self.knowledge.ensure()
            plan = await withdraw_outdated(self._router, self.knowledge, self._judge)
            if not self._cut_short:
                self.last_fault = ""
            if not self._should_run(plan) or self._stopping.is_set():
                return None
        except Exception as error:
            return self._noted(error)
        return await self.start(reason=self.reason).progress.fault()

    def _should_run(self, plan: EvaluationPlan) -> bool:
        targets = judgeable(plan, self._judge)
        estimates, economy = self.knowledge.estimates, self._config.economy
        if self._cut_short and batches(targets, estimates, economy, Tally()):
            self.reason = "goes on with an evaluation that was cut short"
            return True
        fresh_seconds = self._config.trigger.fresh_seconds
        undecided, maintenance = work_waits(targets, estimates, economy, plan.now, fresh_seconds)
        known = [at for at in (self.last_run_at, plan.last_reported_at) if at is not None]
        decision = self._config.trigger.should_run(plan.now, max(known, default=None), plan.intensities, undecided)
        if decision.run and not (undecided or maintenance):
            self.reason = "too few fresh samples to decide anything"
            return False
        self.reason = decision.reason
        return decision.run

    async def _evaluate(self, evaluation: Evaluation) -> None:
        fault: PithError | None = unavailable("DRAINING", "the evaluator is stopping")
        try:
            await self.knowledge.ensure()
            if await evaluation.run(self._stopping):
                fault = None
                self.last_fault = ""
                self.evaluations += 1
                # One that found nothing to judge, for want of samples or of such a task, must not put off the next.
                if evaluation.scored + evaluation.unscored > 0 and self.knowledge.plan is not None:
                    self.last_run_at = self.knowledge.plan.now
        except Exception as error:
            fault = self._noted(error)
        finally:
            self._cut_short = fault is not None
            if fault is not None:
                self.knowledge.distrust()
            self._metrics.count(evaluation, self.knowledge, completed=fault is None)
            self._evaluation = None
            evaluation.progress.end(fault)

    def _noted(self, error: Exception) -> PithError:
        """The error as callers are told it; the log has all of it."""
        if isinstance(error, PithError):
            self._log.warning("fault", fault=str(error))
            fault = error
        else:
            self._log.error("fault", exc_info=error)
            fault = internal(f"{type(error).__name__}; the log has the rest")
        self.last_fault = str(fault)
        return fault


class _LoopMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self._evaluations = metrics.counter(
            "ended", "Evaluations that came to their end, or were cut short.", unit="evaluations", labels=("how",)
        )
        self._samples = metrics.counter("examined", "Samples by what came of them.", unit="samples", labels=("result",))
        self._bound = metrics.gauge(
            "quality_bound",
            "Lower bound of the share of L0's quality that a directive keeps.",
            unit="ratio",
            labels=("model", "task", "directive"),
        )

    def count(self, evaluation: Evaluation, knowledge: Knowledge, *, completed: bool) -> None:
        self._evaluations.labels("completed" if completed else "cut_short").inc()
        self._samples.labels("scored").inc(evaluation.scored)
        self._samples.labels("unscored").inc(evaluation.unscored)
        for cell in knowledge.estimates.cells():
            bound = knowledge.estimates.bound(cell)
            self._bound.labels(cell.model, cell.task, cell.directive).set(bound.lower if bound else 0.0)
