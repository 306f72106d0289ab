"""A judge on an engine: choices are read from probabilities, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pith.engine.v1 import inference_pb2

from common.errors import invalid_argument, resource_exhausted, unauthenticated, unavailable
from evaluator.judges.base import Judgement, Unscored
from evaluator.judges.engine_judge import EngineJudge
from tests.evaluator.judges.fake_judge_engine import FakeJudgeEngine, Odds, by_words
from tests.evaluator.judges.judging import Judging, judge_of, judging

NAME = judge_of("judge@ffffffffffff", EngineJudge.way)


@asynccontextmanager
async def on_engine(
    odds: Callable[[str, str], Odds], **settings: Any
) -> AsyncIterator[tuple[FakeJudgeEngine, Judging]]:
    async with FakeJudgeEngine(odds) as engine, judging(judge_engine=engine.address, **settings) as bench:
        yield engine, bench


async def test_the_preference_is_the_choices_probability_over_both_orders() -> None:
    async with on_engine(by_words("better")) as (engine, bench):
        result = await bench.judge("the better one", "another")
        assert isinstance(result, Judgement) and result.comparison is not None
        assert (result.quality, result.baseline_quality, result.judge) == (0.9, 0.5, NAME)
        assert result.comparison.shown_first == pytest.approx(0.9)
        assert result.comparison.shown_second == pytest.approx(0.9)
        assert bench.judges.name("pairwise") == NAME
        (first, second) = engine.questions
        assert first.limits.max_output_tokens == second.limits.max_output_tokens == 1


@pytest.mark.parametrize(
    ("odds", "quality"),
    [
        ({"A": 0.7, "B": 0.3}, 0.5),  # by the place alone
        ({"A": 0.1, "B": 0.1, "C": 0.8}, 0.5),
        ({" A": 0.5, "A": 0.2, "B": 0.3}, 0.5),
    ],
)
async def test_who_goes_by_the_place_says_a_tie(odds: Odds, quality: float) -> None:
    async with on_engine(lambda *_: odds) as (_, bench):
        result = await bench.judge("one", "another")
        assert isinstance(result, Judgement)
        assert result.quality == quality


async def test_every_spelling_of_a_letter_counts() -> None:
    def odds(first: str, _: str) -> Odds:
        return {"A": 0.3, " A": 0.5, "B": 0.1, "I": 0.1} if "better" in first else {" B": 0.9, "A": 0.1}

    async with on_engine(odds) as (_, bench):
        result = await bench.judge("the better one", "another")
        assert isinstance(result, Judgement) and result.comparison is not None
        assert result.comparison.shown_first == pytest.approx(0.8 / 0.9)
        assert result.comparison.shown_second == pytest.approx(0.9)


async def test_a_tie_counts_half() -> None:
    async with on_engine(lambda first, _: {"A": 0.4, "C": 0.6} if "x" in first else {"B": 1.0}) as (_, bench):
        result = await bench.judge("x", "y")
        assert isinstance(result, Judgement) and result.comparison is not None
        assert result.comparison.shown_first == pytest.approx(0.7)
        assert result.comparison.shown_second == 1.0


@pytest.mark.parametrize(
    ("odds", "result"),
    [
        ({"I": 0.6, "A": 0.4}, "unparsable"),
        ({"Sure": 0.9}, "unparsable"),
        ({"A": math.nan}, "malformed"),
        ({"A": 0.9, "B": math.nan}, "malformed"),
        ({"A": 0.9, "B": 0.9}, "malformed"),
        ({"A": 3.0}, "malformed"),
        ({"A": 0.0}, "unparsable"),
    ],
)
async def test_probabilities_that_choose_nothing_are_no_score(odds: Odds, result: str) -> None:
    async with on_engine(lambda *_: odds) as (engine, bench):
        assert isinstance(await bench.judge("one", "another"), Unscored)
        assert (bench.calls(result), len(engine.questions)) == (2, 2)


async def test_without_logprobs_there_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FakeJudgeEngine.Generate

    async def bare(self: FakeJudgeEngine, request: Any, context: Any) -> inference_pb2.GenerateResponse:
        reply = await real(self, request, context)
        del reply.logprobs[:]
        return reply

    monkeypatch.setattr(FakeJudgeEngine, "Generate", bare)
    async with on_engine(by_words("better")) as (_, bench):
        assert await bench.judge("better", "b") == Unscored("the judge: its engine tells no logprobs")


async def test_letters_are_learnt_once_a_model() -> None:
    async with on_engine(by_words("better")) as (engine, bench):
        for _ in range(3):
            await bench.judge("better", "b")
        assert engine.spelt == 9
        engine.digest = "e" * 64
        result = await bench.judge("better", "b")
        assert engine.spelt == 18
        # The first question still went to the old one's letters: it was asked again.
        assert isinstance(result, Judgement)
        assert result.judge == bench.judges.name("pairwise") == judge_of("judge@eeeeeeeeeeee", EngineJudge.way)


async def test_a_model_that_changes_between_the_orders_scores_nothing() -> None:
    async with on_engine(by_words("better")) as (engine, bench):

        def odds(first: str, second: str) -> Odds:
            if len(engine.questions) == 1:
                engine.digest = "e" * 64
            return by_words("better")(first, second)

        engine.odds = odds
        result = await bench.judge("better", "b")
        assert result == Unscored("the judge: another model answered between the two orders")


async def test_a_tokenizer_without_a_token_for_each_letter_is_no_judge() -> None:
    async with on_engine(by_words("better")) as (engine, bench):
        engine.merged = True
        assert await bench.judge("better", "b") == Unscored("the judge: it has no single token for each choice")
        assert not bench.judges.judges("pairwise")


async def test_another_model_than_asked_for_is_no_judge() -> None:
    async with on_engine(by_words("better"), judge_model="other") as (_, bench):
        assert not bench.judges.judges("pairwise")
        assert bench.judges.name("pairwise") == ""


@pytest.mark.parametrize(
    ("fault", "result", "goes_on"),
    [
        (invalid_argument([]), "rejected", True),
        (unauthenticated("no"), "refused", False),
    ],
)
async def test_a_refusal_is_not_argued_with(fault: Exception, result: str, goes_on: bool) -> None:
    async with on_engine(by_words("better")) as (engine, bench):
        engine.faults = [fault]  # type: ignore[list-item]
        assert isinstance(await bench.judge("better", "b"), Unscored)
        assert (bench.calls(result), len(engine.questions)) == (1, 1)
        assert bench.judges.judges("pairwise") is goes_on


async def test_a_busy_engine_is_asked_again_when_it_says() -> None:
    async with on_engine(by_words("better")) as (engine, bench):
        engine.faults = [resource_exhausted("RATE_LIMIT", "busy", retry_after_seconds=5), unavailable("X", "away")]
        comparing = asyncio.create_task(bench.judge("better", "b"))
        await bench.back_off.asleep()
        await bench.back_off.advance(4)
        assert len(engine.questions) == 1
        await bench.back_off.advance(1)
        await bench.back_off.asleep()
        await bench.back_off.advance(2)
        assert isinstance(await comparing, Judgement)
        assert (bench.calls("limited"), bench.calls("unreachable")) == (1, 1)


async def test_joules_at_the_grids_intensity_are_charged_and_limited() -> None:
    async with on_engine(by_words("better"), judge_grams_per_day=0.0115) as (engine, bench):
        assert isinstance(await bench.judge("better", "b"), Judgement)
        # Nine spellings and two questions of 10 J at 360 g/kWh.
        assert bench.value("judge_energy_joules_total") == pytest.approx(110)
        assert bench.value("judge_carbon_grams_total", how="told") == pytest.approx(0.011)
        result = await bench.judge("better", "b")
        assert isinstance(result, Unscored) and "gCO2eq of this day are used up" in result.reason
        assert len(engine.questions) == 3


@pytest.mark.parametrize(("joules", "g_per_kwh"), [(None, 360.0), (10.0, None)])
async def test_unknown_carbon_ends_judging_where_grams_are_limited(
    joules: float | None, g_per_kwh: float | None
) -> None:
    async with FakeJudgeEngine(by_words("better")) as engine:
        engine.joules = joules
        async with judging(g_per_kwh, judge_engine=engine.address, judge_grams_per_day=1.0) as bench:
            assert isinstance(await bench.judge("better", "b"), Unscored)
            assert not engine.questions
        async with judging(g_per_kwh, judge_engine=engine.address) as bench:
            assert isinstance(await bench.judge("better", "b"), Judgement)


async def test_the_token_is_shown() -> None:
    async with on_engine(by_words("better"), judge_token="t0ken") as (engine, bench):
        await bench.judge("better", "b")
        assert set(engine.tokens) == {"Bearer t0ken"}
