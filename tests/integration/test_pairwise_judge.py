"""Answers without a right one, judged by comparison: a real router with its database, an evaluator's process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pith.router.v1 import feedback_pb2

from evaluator.judges.openai_judge import OpenAiJudge
from tests.evaluator.judges.judging import judge_of
from tests.evaluator.openai_server import API_KEY, OpenAiServer, Reply, prefers, says
from tests.router.fake_engine import Context, FakeEngine, delta, finished
from tests.router.running import Running, ask, running

ROOT = Path(__file__).resolve().parents[2]
LONG, SHORT = "A fjord is a drowned valley.", "A valley."


async def brief_when_told(engine: FakeEngine, request: Any, context: Context) -> AsyncIterator[Any]:
    told = "briefly" in " ".join(message.content for message in request.messages.messages)
    yield engine.started(request)
    yield delta(SHORT if told else LONG)
    yield finished(4 if told else 40, joules=1.0 if told else 8.0)


async def scores_of(router: Running) -> list[Any]:
    return list((await router.feedback.ListScores(feedback_pb2.ListScoresRequest())).scores)


async def judged_by(server: OpenAiServer, tmp_path: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """The scores that a router has after one evaluation by the process, and what the process logged."""
    engine = FakeEngine(brief_when_told)
    await engine.start()
    try:
        async with running(tmp_path, {"e1": engine}) as router:
            await router.policy(sample_share=1.0, grader="pairwise", directives=["L1"])
            for number in range(8):
                await router.generation.Generate(ask(f"{number}: what is a fjord?", request_id=f"r{number}"))
            await router.router.ledger.flush()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "evaluator",
                cwd=ROOT,
                env={
                    **os.environ,
                    "PITH_EVALUATOR_LISTEN": "127.0.0.1:0",
                    "PITH_EVALUATOR_ROUTER": router.address,
                    "PITH_EVALUATOR_JUDGE_URL": server.url,
                    "PITH_EVALUATOR_JUDGE_MODEL": "gpt-x",
                    "PITH_EVALUATOR_JUDGE_TOKEN": API_KEY,
                    "PITH_EVALUATOR_JUDGE_ATTEMPTS": "1",
                },
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                assert process.stderr is not None
                logged: list[dict[str, Any]] = []
                while not (logged and logged[-1]["event"].startswith("done:")):
                    logged.append(json.loads(await process.stderr.readline()))
                process.send_signal(signal.SIGTERM)
                logged += map(json.loads, (await process.stderr.read()).splitlines())
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
            return await scores_of(router), logged
    finally:
        await engine.stop()


async def test_what_a_judge_prefers_is_kept_with_what_it_was_shown(tmp_path: Path) -> None:
    sound = prefers("drowned")
    async with OpenAiServer(sound) as server:
        # One that says nothing is asked again.
        server.reply = lambda asked: says("Both are fine.") if len(server.asked) == 5 else sound(asked)
        scores, logged = await judged_by(server, tmp_path)
    assert len(scores) == 8
    for one in scores:
        assert (one.score.quality, one.score.baseline_quality) == (0.0, 0.5)
        assert one.score.judge == judge_of("openai:gpt-x", OpenAiJudge.way)
        compared = one.score.comparison
        assert (compared.characters, compared.baseline_characters) == (len(SHORT), len(LONG))
        assert (compared.shown_first, compared.shown_second) == (0.0, 0.0)
    assert len(server.asked) == 17
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {API_KEY}"}
    assert not any(text in json.dumps(logged) for text in (API_KEY, "fjord", "valley"))


async def test_a_judge_that_is_away_leaves_samples_unscored_and_says_so_once(tmp_path: Path) -> None:
    async with OpenAiServer(lambda _: Reply(503)) as server:
        scores, logged = await judged_by(server, tmp_path)
    assert scores == []
    assert [line["reason"] for line in logged if line["event"] == "the judge is left alone"] == ["it answers HTTP 503"]
