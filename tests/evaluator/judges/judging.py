"""What tests of the judge share: a sample, and a judge with time in the tests' hands."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from common.clock import ManualClock
from common.metrics import Metrics
from evaluator.config import EvaluatorConfig
from evaluator.judges.base import Judgement, Unscored
from evaluator.judges.configured import configured_judges
from evaluator.judges.judge_prompt import wording
from evaluator.judges.panel import Panel
from evaluator.samples import Sample, Turn

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sample(question: str = "What is a fjord?", sample_id: str = "s") -> Sample:
    turns = (Turn("system", "Be kind."), Turn("user", question))
    return Sample(sample_id, "demo@abc", "chat", "", "pairwise", NOW, answers=(), request=b"", turns=turns)


def judge_of(model: str, way: str) -> str:
    """The judge's name, as configured by default."""
    return f"pairwise:{model}/prompt-{wording(way, EvaluatorConfig().judge_answer_characters)}"


@dataclass
class Judging:
    """A judge, as the configuration makes it."""

    judges: Panel
    clock: ManualClock
    """Of the budget's days."""
    back_off: ManualClock
    metrics: Metrics

    async def judge(self, answer: str, baseline: str) -> Judgement | Unscored:
        return await self.judges.judge(sample(), answer, baseline)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"pith_evaluator_{name}", labels)

    def calls(self, result: str) -> float:
        return self.value("judge_calls_total", result=result) or 0.0


@asynccontextmanager
async def judging(g_per_kwh: float | None = 360.0, **settings: Any) -> AsyncIterator[Judging]:
    config = EvaluatorConfig(**settings)
    clock, back_off, metrics = ManualClock(), ManualClock(), Metrics("evaluator")
    judges = configured_judges(config, clock, lambda: g_per_kwh, metrics, back_off)
    await judges.prepare({"pairwise"})
    try:
        yield Judging(judges, clock, back_off, metrics)
    finally:
        await judges.close()


def seeded() -> random.Random:
    return random.Random(7)
