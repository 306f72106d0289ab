"""People beside the judge: a rater in pithctl's process, users' thumbs, and the alarm."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import generation_pb2, reviews_pb2, reviews_pb2_grpc
from structlog.testing import capture_logs

from common.clock import ManualClock
from common.errors import PithError
from common.grpc_client import connect
from common.metrics import Metrics
from evaluator.agreement import AgreementWatch
from evaluator.config import EvaluatorConfig
from evaluator.review_client import ReviewClient
from tests.evaluator.people import people
from tests.integration.evaluators.evaluating import create_policy, evaluator, serve
from tests.integration.processes import ROOT, listening
from tests.postgres import on_both_databases
from tests.router.admin_client import refused
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, running

COUNT = 48
DEADLINE_SECONDS = 60.0


async def lines(*arguments: str, evaluator: str, stdin: str = "") -> list[Any]:
    return [json.loads(line) for line in (await pithctl(*arguments, evaluator=evaluator, stdin=stdin)).splitlines()]


async def pithctl(*arguments: str, evaluator: str, stdin: str = "") -> str:
    """What a process of it printed."""
    ambient = {key: value for key, value in os.environ.items() if not key.startswith("PITHCTL_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router.cli.main", *arguments),
        cwd=ROOT,
        env=ambient | {"PITHCTL_EVALUATOR": evaluator},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate(stdin.encode())
    assert process.returncode == 0, said
    return said.decode()


@pytest.fixture
async def scored(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str
) -> AsyncIterator[Running]:
    """A router with COUNT samples, of which an evaluator has scored as many as it liked."""
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as router:
        await create_policy(router.channel)
        await serve([router.channel], COUNT)
        one = await evaluator(stack, router.address, router.clock)
        await one.evaluate()
        yield router


@on_both_databases
async def test_a_rater_compares_five_pairs_leaves_and_goes_on(scored: Running) -> None:
    async with listening("evaluator", listen="127.0.0.1:0", router=scored.address, poll_seconds=1e6) as service:
        review = ("review", "--rater", "ann", "--json", "--count", "8")
        first = await lines(*review, evaluator=service.address, stdin="1\n" * 5)
        assert first[-1] == {"rater": "ann", "compared": 5, "skipped": 0, "left": 3}
        # The sixth was shown, and nothing was said of it.
        assert len(first) == 7
        said = json.loads(await pithctl("quality", "agreement", "--json", evaluator=service.address))
        (found,) = said["people"]
        assert (found["task"], found["pairs"], found["choices"], found["raters"]) == ("qa", 5, 5, 1)
        assert found["judge"].startswith("grader:numeric")
        assert (found["kappa"], found["corrected_rate"], found["alarm"]) == (None, None, False)

        again = await lines(*review, evaluator=service.address, stdin="t\n" * 50)
        assert again[-1]["compared"] == 8
        # The one that was on the screen is asked again; none that was answered is.
        assert first[5]["review_id"] in {one["review_id"] for one in again[:-1]}
        assert not {one["review_id"] for one in first[:5]} & {one.get("review_id") for one in again}
        for _ in range(2):
            await pithctl("review", "--rater", "ann", "--count", "50", evaluator=service.address, stdin="t\n" * 50)
        (found,) = json.loads(await pithctl("quality", "agreement", "--json", evaluator=service.address))["people"]
        assert found["pairs"] == found["scored_pairs"] > 20
        assert found["agreeing"] > 0.8
        assert found["corrected_rate"]["lower"] <= 0.5 <= found["corrected_rate"]["upper"]
        assert "ann" not in await pithctl("quality", "agreement", evaluator=service.address)


async def rate(router: Running, up: Any) -> None:
    """Has users rate every answer."""
    for number in range(COUNT):
        request = generation_pb2.RateAnswerRequest(request_id=f"r{number}", tenant="acme", rating=float(up(number)))
        await router.generation.RateAnswer(request)
    await router.router.ledger.flush()


def watching(channel: Any, clock: ManualClock, metrics: Metrics, **settings: Any) -> AgreementWatch:
    return people(channel, EvaluatorConfig(**settings), clock, metrics)[1]


def alarm(metrics: Metrics, source: str, judge: str) -> float | None:
    labels = {"task": "qa", "judge": judge, "source": source}
    return metrics.registry.get_sample_value("pith_evaluator_judge_disagreement_alarm", labels)


@on_both_databases
async def test_users_thumbs_stand_beside_the_judge_and_the_alarm_is_raised_once(scored: Running) -> None:
    metrics, clock = Metrics("evaluator"), ManualClock()
    watch = watching(scored.channel, clock, metrics, disagreement_limit=0.8)
    assert (await watch.look()).thumbs == ()
    # All were served L0, whose answers are all right; every second user is not content.
    await rate(scored, lambda number: number % 2)
    with capture_logs() as logs:
        found = await watch.look()
        together, of_l0 = found.thumbs
        judge = together.judge
        assert (together.directive, of_l0.directive, together.task) == ("", "L0", "qa")
        assert (of_l0.ratings, of_l0.mean_rating, of_l0.mean_quality) == (await judged(scored), 0.5, 1.0)
        assert of_l0.agreeing == 0.5
        assert of_l0.kappa is not None and of_l0.kappa.value == pytest.approx(0.0)
        # 20 and more of which half are agreed on by chance: kappa may be up to 0.3.
        assert alarm(metrics, "thumbs", judge) == 0
        await rate(scored, lambda number: 0)
        # Now users say one thing always, and so does the judge: the opposite.
        await watch.look()
        assert alarm(metrics, "thumbs", judge) == 1
        await watch.look()
    assert [line["source"] for line in logs if line["log_level"] == "warning"] == ["thumbs"]


async def judged(router: Running) -> int:
    reply = await reviews_stub(router).ListJudgeTotals(reviews_pb2.ListJudgeTotalsRequest())
    return sum(one.scores for one in reply.totals)


def reviews_stub(router: Running) -> Any:
    return reviews_pb2_grpc.ReviewsStub(router.channel)


async def test_a_router_that_is_away_is_told_of_and_the_watch_goes_on(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine
) -> None:
    clock, metrics = ManualClock(), Metrics("evaluator")
    async with running(tmp_path, {"e1": engine}) as router:
        address = router.address
    channel = await stack.enter_async_context(connect(address, max_attempts=1))
    watch = AgreementWatch(ReviewClient(channel, 5.0), 0.8, 3600.0, clock, metrics)
    with pytest.raises(PithError, match="UNAVAILABLE"):
        await watch.look()
    with capture_logs() as logs:
        task = asyncio.create_task(watch.run())
        await clock.asleep()
        await clock.advance(3600)
        await clock.asleep()
        task.cancel()
    assert [line["event"] for line in logs] == ["agreement is not known"] * 2


async def test_the_evaluator_says_what_the_router_says_of_a_review(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine
) -> None:
    async with (
        running(tmp_path, {"e1": engine}) as router,
        listening("evaluator", listen="127.0.0.1:0", router=router.address, poll_seconds=1e6) as service,
        connect(service.address, max_attempts=1) as channel,
    ):
        stub = evaluation_pb2_grpc.EvaluationStub(channel)
        reply = await stub.ListPendingReviews(evaluation_pb2.ListPendingReviewsRequest(rater="ann", count=5))
        assert list(reply.reviews) == []
        for request, code, reason in (
            (
                evaluation_pb2.SubmitRatingRequest(review_id="x", rater="ann", choice=1),
                "NOT_FOUND",
                "RESOURCE_NOT_FOUND",
            ),
            (evaluation_pb2.SubmitRatingRequest(review_id="x" * 129, rater=""), "INVALID_ARGUMENT", "INVALID_FIELDS"),
        ):
            await refused(stub.SubmitRating(request), code, reason)
        await refused(
            stub.ListPendingReviews(evaluation_pb2.ListPendingReviewsRequest(rater="ann", count=51)),
            *("INVALID_ARGUMENT", "INVALID_FIELDS"),
        )
