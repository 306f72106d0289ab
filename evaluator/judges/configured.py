"""The judges that the configuration asks for."""

from __future__ import annotations

import random
from collections.abc import Callable

from common.clock import Clock, SystemClock
from common.grpc_client import connect
from common.metrics import Metrics
from evaluator.config import EvaluatorConfig
from evaluator.judges.budget import JudgeBudget
from evaluator.judges.engine_judge import EngineJudge
from evaluator.judges.judge_model import JudgeModel
from evaluator.judges.openai_judge import OpenAiJudge
from evaluator.judges.pairwise import PairwiseJudge
from evaluator.judges.panel import Panel
from evaluator.judges.queue import JudgeQueue
from evaluator.judges.reference import ReferenceJudge


def configured_judges(
    config: EvaluatorConfig,
    clock: Clock,
    g_per_kwh: Callable[[], float | None],
    metrics: Metrics,
    back_off: Clock | None = None,
) -> Panel:
    """Graders, and a language model where one is named.

    Args:
        clock: whose days the judge's budget counts.
        g_per_kwh: the grid's latest intensity, None where unknown.
        back_off: what tries and pauses wait on; by default wall time, for services and networks recover in wall time.
    """
    budget = JudgeBudget(config.judge_limits, clock, g_per_kwh, config.judge_grams_per_1000_tokens, metrics)
    model = _model(config, budget)
    if model is None:
        return Panel(ReferenceJudge(), None)
    pairwise = PairwiseJudge(
        model,
        budget,
        JudgeQueue(config.judge_concurrency, config.judge_queue_samples, metrics),
        back_off or SystemClock(),
        attempts=config.judge_attempts,
        max_characters=config.judge_answer_characters,
        rng=random.SystemRandom(),
        metrics=metrics,
    )
    return Panel(ReferenceJudge(), pairwise)


def _model(config: EvaluatorConfig, budget: JudgeBudget) -> JudgeModel | None:
    token = config.judge_token
    if config.judge_url is not None:
        return OpenAiJudge(config.judge_url, config.judge_model, token, config.judge_timeout_seconds, budget)
    if config.judge_engine is None:
        return None
    channel = connect(
        config.judge_engine,
        token=token.get_secret_value() if token is not None else None,
        tls=config.judge_tls,
        # The judge itself tries again.
        max_attempts=1,
        max_message_bytes=config.max_message_bytes,
    )
    return EngineJudge(channel, config.judge_model, config.judge_timeout_seconds, budget)
