"""What judging may cost a day, on clocks that behave and one that does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from common.clock import SystemClock
from common.metrics import Metrics
from evaluator.judges.budget import DailyLimits, JudgeBudget
from evaluator.judges.judge_model import Failure, JudgeError


class Watch(SystemClock):
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.shown = datetime(2026, 1, 1, 23, tzinfo=UTC)

    def now(self) -> datetime:
        return self.shown


def budget(limits: DailyLimits, watch: Watch, g_per_kwh: float | None = 100.0) -> JudgeBudget:
    return JudgeBudget(limits, watch, lambda: g_per_kwh, None, Metrics("evaluator"))


def test_a_day_ends_at_midnight_utc_and_a_clock_that_goes_back_begins_none() -> None:
    watch = Watch()
    spent = budget(DailyLimits(requests=1), watch)
    spent.take()
    with pytest.raises(JudgeError) as refused:
        spent.take()
    assert refused.value.failure is Failure.BUDGET
    watch.shown += timedelta(hours=1)
    with capture_logs() as logs:
        spent.take()
        for _ in range(9):
            spent.refusal()
    assert [line["event"] for line in logs] == ["the judge rests until midnight UTC"]
    watch.shown -= timedelta(days=3)
    assert spent.refusal() == "the judge's 1 requests of this day are used up"
    watch.shown += timedelta(days=3, hours=23)
    assert spent.refusal() is not None
    watch.shown += timedelta(hours=1)
    assert spent.refusal() is None


def test_grams_are_joules_at_the_grids_intensity() -> None:
    spent = budget(DailyLimits(grams=1.0), Watch())
    spent.spent(joules=35_999.0, tokens=9)
    assert spent.refusal() is None
    spent.spent(joules=1.0, tokens=9)
    assert spent.refusal() == "the judge's 1 gCO2eq of this day are used up"


def test_without_limits_nothing_is_refused() -> None:
    spent = budget(DailyLimits(), Watch(), g_per_kwh=None)
    for _ in range(10):
        spent.take()
        spent.spent(joules=None, tokens=None)
    assert spent.refusal() is None


def test_what_is_unknown_today_may_be_known_tomorrow() -> None:
    watch = Watch()
    spent = budget(DailyLimits(grams=1.0), watch)
    spent.spent(joules=None, tokens=9)
    assert spent.refusal() == "what a call emits is not known, so that judge_grams_per_day cannot be kept"
    watch.shown += timedelta(days=1)
    assert spent.refusal() is None
