"""What judging may cost a day, and what it has cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import structlog

from common.clock import Clock
from common.metrics import Metrics
from evaluator.judges.judge_model import Failure, JudgeError

_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class DailyLimits:
    """Of the judge's calls in one UTC day; None: no limit."""

    requests: int | None = None
    grams: float | None = None


class JudgeBudget:
    """Counts every call, retries and those that fail included, from the start of the process: it is not kept.

    Grams are the engine's joules at the grid's latest intensity; of an endpoint that tells no joules, tokens at what
    was declared for it. Where neither is known they are unknown, and a limit of grams then ends judging for the day: it
    could not be kept. Calls that are under way when a limit is reached still end. One that brings no reply counts as a
    request alone.

    Args:
        clock: whose days count. A clock that goes back begins no new day.
        g_per_kwh: the grid's latest intensity, None where unknown.
        declared_grams_per_1000_tokens: for an endpoint that tells no energy.
    """

    def __init__(
        self,
        limits: DailyLimits,
        clock: Clock,
        g_per_kwh: Callable[[], float | None],
        declared_grams_per_1000_tokens: float | None,
        metrics: Metrics,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._g_per_kwh = g_per_kwh
        self._declared = declared_grams_per_1000_tokens
        self._metrics = _BudgetMetrics(metrics)
        self._log = structlog.get_logger("judge")
        self._day = date.min
        self._has_told = False
        self._begin_day()

    def refusal(self) -> str | None:
        """Why nothing may be asked at present; None where something may."""
        self._begin_day()
        reason = self._exhausted()
        if reason is not None and not self._has_told:
            self._has_told = True
            self._log.warning("the judge rests until midnight UTC", reason=reason)
        return reason

    def _exhausted(self) -> str | None:
        limits = self._limits
        if limits.requests is not None and self._requests >= limits.requests:
            return f"the judge's {limits.requests:,} requests of this day are used up"
        if limits.grams is not None and self._unknown:
            return "what a call emits is not known, so that judge_grams_per_day cannot be kept"
        if limits.grams is not None and self._grams >= limits.grams:
            return f"the judge's {limits.grams:g} gCO2eq of this day are used up"
        return None

    def take(self) -> None:
        """Counts a call that is about to be made. Raises JudgeError where none may."""
        if refusal := self.refusal():
            raise JudgeError(Failure.BUDGET, refusal)
        self._requests += 1
        self._show()

    def spent(self, joules: float | None, tokens: int | None) -> None:
        """What a call took, as far as the other side told."""
        g_per_kwh = self._g_per_kwh() if joules is not None else None
        if joules is not None:
            self._metrics.energy.inc(joules)
        if joules is not None and g_per_kwh is not None:
            grams, how = joules * g_per_kwh / _JOULES_PER_KWH, "told"
        elif joules is None and tokens is not None and self._declared is not None:
            grams, how = tokens * self._declared / 1000, "declared"
        else:
            self._unknown = True
            self._metrics.unknown.inc()
            return
        self._grams += grams
        self._metrics.carbon.labels(how).inc(grams)
        self._show()

    def _begin_day(self) -> None:
        today = self._clock.now().date()
        if today > self._day:
            self._day = today
            self._requests = 0
            self._grams = 0.0
            self._unknown = False
            self._has_told = False
            self._show()

    def _show(self) -> None:
        if self._limits.requests is not None:
            self._metrics.left.labels("requests").set(self._limits.requests - self._requests)
        if self._limits.grams is not None:
            self._metrics.left.labels("grams").set(max(0.0, self._limits.grams - self._grams))


class _BudgetMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self.left = metrics.gauge(
            "judge_budget_left", "What the judge may still use today.", unit="units", labels=("of",)
        )
        self.energy = metrics.counter("judge_energy", "Energy of the judge's calls, where known.", unit="joules")
        self.carbon = metrics.counter(
            "judge_carbon",
            "Emissions of the judge's calls: its engine's energy at the grid's intensity, or declared by the token.",
            unit="grams",
            labels=("how",),
        )
        self.unknown = metrics.counter(
            "judge_carbon_unknown", "Calls of the judge whose emissions are not known.", unit="calls"
        )
