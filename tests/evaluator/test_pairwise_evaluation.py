"""Whole evaluations by a judge that compares: what opens, what closes, and what a bad judge cannot do."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from pith.router.v1 import feedback_pb2

from common.quality.bound import Cell
from evaluator.judges.engine_judge import EngineJudge
from evaluator.judges.openai_judge import OpenAiJudge
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import MODEL, RIGHT, WRONG, FakeRouter, FakeTarget
from tests.evaluator.judges.fake_judge_engine import FakeJudgeEngine, by_words
from tests.evaluator.judges.judging import judge_of
from tests.evaluator.openai_server import Asked, OpenAiServer, Reply, prefers, says

NAME = judge_of("openai:gpt-x", OpenAiJudge.way)


async def served(bench: Bench, share: float, samples: int = 400) -> FakeRouter:
    """L2 is as good as L0 in that share of prompts, and worse in the others; nobody knows the right answer."""
    router = await bench.router([FakeTarget("chat", "L2", grader="pairwise")], right={("chat", "L2"): share})
    router.serve("chat", samples, reference="")
    return router


def judge(server: OpenAiServer, **settings: Any) -> dict[str, Any]:
    return {"judge_url": server.url, "judge_model": "gpt-x", "judge_requests_per_day": None, **settings}


async def test_a_directive_that_keeps_quality_opens_and_ties_cost_no_call(bench: Bench) -> None:
    router = await served(bench, 1.0)
    async with OpenAiServer(prefers(RIGHT)) as server:
        await bench.evaluate(await bench.evaluator(router, **judge(server)))
    assert router.open_directives() == {"chat": ["L2"]}
    assert {(s.score.quality, s.score.baseline_quality, s.score.judge) for s in router.scores} == {(0.5, 0.5, NAME)}
    assert not server.asked


async def test_a_directive_that_loses_quality_does_not_open(bench: Bench) -> None:
    router = await served(bench, 0.3)
    async with OpenAiServer(prefers(RIGHT)) as server:
        await bench.evaluate(await bench.evaluator(router, **judge(server)))
    assert router.open_directives() == {}
    bound = router.bounds["chat", "L2"]
    # Twice the mean preference.
    assert bound.share == pytest.approx(2 * sum(s.score.quality for s in router.scores) / len(router.scores))
    assert bound.share < 0.7
    compared = [s.score for s in router.scores if s.score.quality == 0.0]
    assert compared and len(server.asked) == 2 * len(compared)
    assert (compared[0].comparison.characters, compared[0].comparison.baseline_characters) == (len(WRONG), len(RIGHT))


@pytest.mark.parametrize("reply", [says("Both are good."), says("The first"), Reply(500), Reply(401), Reply(body=b"{")])
async def test_a_judge_that_cannot_judge_opens_nothing_and_ends_the_evaluation(bench: Bench, reply: Reply) -> None:
    router = await served(bench, 0.0)
    async with OpenAiServer(lambda _: reply) as server:
        loop = await bench.evaluator(router, **judge(server, judge_attempts=1))
        events = await bench.evaluate(loop)
    assert (router.scores, router.bounds, loop.last_fault) == ([], {}, "")
    assert any("unscored: the judge" in event for event in events)
    assert events[-1] == "done: 0 samples scored, 8 not"


async def test_a_judge_by_the_place_alone_says_nothing_about_quality(bench: Bench) -> None:
    router = await served(bench, 0.0, samples=40)
    async with OpenAiServer(lambda _: says("A")) as server:
        await bench.evaluate(await bench.evaluator(router, **judge(server)))
    # It cannot tell the answers apart: with both orders that is a tie, with one it would be a win for all.
    assert {s.score.quality for s in router.scores} == {0.5}
    assert {(s.score.comparison.shown_first, s.score.comparison.shown_second) for s in router.scores} == {(1.0, 0.0)}


async def test_a_spent_budget_ends_the_evaluation_before_answers_are_paid_for(bench: Bench) -> None:
    router = await served(bench, 0.0)
    async with OpenAiServer(prefers(RIGHT)) as server:
        loop = await bench.evaluator(router, **judge(server, judge_requests_per_day=8, concurrency=1, batch_samples=4))
        await bench.evaluate(loop)
        assert (len(router.scores), len(server.asked)) == (4, 8)
        assert router.generations["chat", "L2"] == 4
        events = await bench.evaluate(loop)
        assert events == ["left out: no judge for grader 'pairwise'", "done: 0 samples scored, 0 not"]
        assert (router.generations["chat", "L2"], router.leased()) == (4, 0)


async def test_without_a_judge_nothing_is_drawn(bench: Bench) -> None:
    router = await served(bench, 1.0)
    events = await bench.evaluate(await bench.evaluator(router))
    assert events == ["left out: no judge for grader 'pairwise'", "done: 0 samples scored, 0 not"]
    assert router.leased() == 0


async def test_what_is_known_survives_a_restart_by_the_judges_name(bench: Bench) -> None:
    router = await served(bench, 1.0)
    cell = Cell(MODEL, "chat", "L2")
    async with FakeJudgeEngine(by_words(RIGHT)) as engine:
        settings = {"judge_engine": engine.address, "judge_requests_per_day": None}
        first = await bench.evaluator(router, **settings)
        await bench.evaluate(first)
        bound = first.knowledge.estimates.bound(cell)
        assert bound is not None and bound.judge == judge_of("judge@ffffffffffff", EngineJudge.way)
        again = await bench.evaluator(router, **settings)
        await again.knowledge.ensure()
        assert again.knowledge.estimates.bound(cell) == bound
        # Another model is another judge: what the old one said does not count for it.
        engine.digest = "e" * 64
        await bench.evaluate(again)
        anew = again.knowledge.estimates.bound(cell)
        assert anew is not None and anew.judge == judge_of("judge@eeeeeeeeeeee", EngineJudge.way)
        assert again.knowledge.estimates.judges(cell) == (bound.judge, anew.judge)


async def test_a_trial_is_judged_too(bench: Bench) -> None:
    router = await served(bench, 1.0, samples=20)
    async with OpenAiServer(prefers(RIGHT)) as server:
        await bench.evaluator(router, **judge(server))
        steps = [step async for step in bench.trials.run(b"", "chat", "", 10, 0.95)]
    outcome = steps[-1].outcome
    assert outcome is not None
    assert (outcome.result.samples, outcome.result.quality, outcome.result.baseline_quality) == (10, 0.5, 0.5)


async def test_samples_that_cannot_be_judged_do_not_keep_the_others_waiting(bench: Bench) -> None:
    router = await served(bench, 0.0)
    asked: list[str] = []

    def confused_by_the_first(question: Asked) -> Reply:
        conversation = question.shown("CONVERSATION")
        if conversation not in asked:
            asked.append(conversation)
        return says("Hm." if asked.index(conversation) < 8 else "C")

    async with OpenAiServer(confused_by_the_first) as server:
        loop = await bench.evaluator(router, **judge(server))
        assert (await bench.evaluate(loop))[-1] == "done: 0 samples scored, 8 not"
        questions, answers = len(server.asked), router.generations["chat", "L2"]
        # They are drawn again once their lease has ended.
        await bench.clock.advance(7 * 3600)
        events = await bench.evaluate(loop)
        assert any("8 samples unscored: the judge could not judge them before" in event for event in events)
        assert router.scores
        # Nothing more was spent on them.
        assert len(server.asked) - questions == 2 * len(router.scores)
        assert router.generations["chat", "L2"] - answers == len(router.scores)


async def test_brief_answers_open_by_a_judge_of_long_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At equal length it slightly prefers those of the directive; as it says them, preferences would close it."""
    fact = FakeRouter._answer

    def wordy(router: FakeRouter, sample: Any, directive: str) -> Any:
        answer, drawn = fact(router, sample, directive), random.Random(sample.sample_id)
        words, share = drawn.randint(40, 160), drawn.uniform(0.2, 0.9)
        answer.text = f"{directive} " + "so " * int(words if directive == "L0" else words * share)
        return answer

    def likes_long(first: str, second: str) -> dict[str, float]:
        liked = 0.15 if first.startswith("L2") else -0.15
        wins = 1 / (1 + math.exp(-liked - 0.8 * math.tanh((len(first) - len(second)) / 200) - 0.1))
        return {"A": wins, "B": 1 - wins}

    monkeypatch.setattr(FakeRouter, "_answer", wordy)
    router = await served(bench, 1.0, samples=320)
    async with FakeJudgeEngine(likes_long) as engine:
        settings = {"judge_engine": engine.address, "judge_requests_per_day": None, "run_samples": 320}
        loop = await bench.evaluator(router, batch_samples=40, **settings)
        events = await bench.evaluate(loop)
        assert router.open_directives() == {"chat": ["L2"]}
        bound = router.bounds["chat", "L2"]
        assert bound.method == feedback_pb2.BOUND_METHOD_LENGTH_CORRECTED
        assert bound.raw.upper < 0.95 < bound.lower < bound.share < bound.upper
        assert any(event.startswith("chat/L2 opened: bound ") for event in events)
        # It opened no sooner than the bounds mean anything.
        assert [report.bounds[0].lower for report in router.reports[:4]] == [0.0] * 4
        # That its scores lie below the floor is nothing to look closer for.
        scored = len(router.scores)
        await bench.clock.advance(60)
        router.serve("chat", 100, reference="")
        await bench.evaluate(loop)
        assert len(router.scores) == scored + 8
        # One that starts anew, from the router's scores, knows the same.
        again = await bench.evaluator(router, **settings)
        await again.knowledge.ensure()
        cell = Cell(MODEL, "chat", "L2")
        assert again.knowledge.estimates.bound(cell) == loop.knowledge.estimates.bound(cell)
