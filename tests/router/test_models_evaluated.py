"""What an evaluator asks of a model that stands in for another, and what who asks twice gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.router.v1 import directives_pb2, feedback_pb2

from tests.router.fake_engine import IDENTITY, Script, answer, refuse
from tests.router.outcome_reports import refused, rows
from tests.router.stand_ins import (
    EVALUATION,
    EXHAUSTED,
    SMALL_SAYS,
    TINY,
    TINY_SAYS,
    TOO_LONG,
    away,
    draining,
    judged,
    of_other_weights,
    pair,
    tiny,
)


async def test_an_evaluator_gets_the_stand_ins_answer(tmp_path: Path) -> None:
    async with pair(tmp_path, served=False) as it:
        reply = await it.generate(**judged())
        assert (reply.text, reply.started.engine) == (TINY_SAYS, "t1")
        decision = reply.started.decision
        assert (decision.directive, decision.model, decision.reason) == ("D", TINY, EVALUATION)
        assert not it.small.requests
        (row,) = await rows(it.router)
        assert (row.model, row.directive, row.engine, row.evaluation_sample_id) == (IDENTITY, "D", "t1", "s1")
        candidate = directives_pb2.Directive(model=TINY, text="One word")
        reply = await it.generate(**judged(directive="", candidate=candidate))
        assert (reply.text, reply.started.decision.directive, reply.started.decision.model) == (
            TINY_SAYS,
            "trial",
            TINY,
        )
        # The baseline is the model's that was asked for.
        reply = await it.generate(**judged(directive="L0"))
        assert (reply.text, reply.started.decision.model) == (SMALL_SAYS, "")


@pytest.mark.parametrize("purpose", [{}, {"directive": "", "candidate": directives_pb2.Directive(model=TINY)}])
async def test_an_evaluator_never_gets_anothers_answer(tmp_path: Path, purpose: Any) -> None:
    async with pair(tmp_path) as it:
        for goes in (draining, away):
            await goes(it)
            error = await refused(it.generate(**judged(**purpose)))
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
            assert TINY in str(error)
            assert error.retry_after_seconds
        assert not it.small.requests and not it.tiny.requests
        assert await rows(it.router) == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED),
        # Which it would be told again and again.
        (TOO_LONG, grpc.StatusCode.INVALID_ARGUMENT),
        (refuse(grpc.StatusCode.INTERNAL), grpc.StatusCode.INTERNAL),
        (refuse(grpc.StatusCode.UNAVAILABLE), grpc.StatusCode.UNAVAILABLE),
        (of_other_weights, grpc.StatusCode.UNAVAILABLE),
    ],
    ids=["full", "too long", "broken", "lost", "other weights"],
)
async def test_an_evaluator_is_told_why_the_stand_in_gives_nothing(
    tmp_path: Path, script: Script, code: grpc.StatusCode
) -> None:
    async with pair(tmp_path, *tiny(script)) as it:
        error = await refused(it.generate(**judged()))
        assert error.code is code
        assert len(it.tiny.requests) == 1 and not it.small.requests
        assert await rows(it.router) == []


async def test_the_same_request_again_gets_the_stand_ins_answer_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as it:
        first = await it.generate(request_id="r1")
        await away(it)
        again = await it.generate(request_id="r1")
        assert again.started.replayed
        assert (again.text, again.started.engine, again.started.decision) == (TINY_SAYS, "t1", first.started.decision)
        assert len(it.tiny.requests) == 1 and not it.small.requests
        assert len(await rows(it.router)) == 1
        assert (await it.router.report()).total.requests == 1


async def test_the_same_request_again_gets_the_fallbacks_answer_again(tmp_path: Path) -> None:
    async with pair(tmp_path, *tiny(EXHAUSTED)) as it:
        first = await it.generate(request_id="r1")
        it.tiny.script = answer(TINY_SAYS)
        again = await it.generate(request_id="r1")
        assert again.started.replayed
        assert (again.text, again.started.decision) == (SMALL_SAYS, first.started.decision)
        assert len(it.tiny.requests) == len(it.small.requests) == 1
        assert len(await rows(it.router)) == 1


async def test_what_the_stand_in_would_have_to_answer_waits_only_while_it_is_there(tmp_path: Path) -> None:
    """Else an evaluator would draw samples that it cannot have answered."""
    async with pair(tmp_path, directives=["D", "L1"], sample_share=1.0, grader="exact") as it:
        await it.generate(reference="x", opt_out=False)
        await it.router.router.ledger.flush()

        async def waiting() -> dict[str, int]:
            plan = await it.router.feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
            waits = {target.cell.directive: target.samples_waiting for target in plan.targets}
            return {directive: waits[directive] for directive in ("D", "L1")}

        there, without = {"D": 1, "L1": 1}, {"D": 0, "L1": 1}
        assert await waiting() == there
        await draining(it)
        assert await waiting() == without
        await it.tiny.report(draining=False)
        await it.router.until_ready(2)
        assert await waiting() == there
        await away(it)
        assert await waiting() == without
