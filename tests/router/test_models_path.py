"""A directive that names a model: an engine of that answers in the place of the one asked for, and where it cannot, the
one asked for does. Whoever answers, it is booked under the model asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.common.v1 import text_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, feedback_pb2, generation_pb2, policies_pb2, reports_pb2

from router.store.tables import samples
from tests.router.fake_engine import IDENTITY, FakeEngine, Script, answer, delta, refuse, stall, tell
from tests.router.outcome_reports import refused, rows
from tests.router.running import ask
from tests.router.stand_ins import (
    EXHAUSTED,
    FAR_BELOW_ONE_ANSWER,
    OTHER_DIGEST,
    SMALL_SAYS,
    TINY,
    TINY_DIGEST,
    TINY_SAYS,
    TOO_LONG,
    Pair,
    away,
    contents,
    draining,
    judged,
    of_other_weights,
    pair,
    tiny,
)


@pytest.mark.parametrize("asked", ["small", IDENTITY])
async def test_the_stand_in_answers_and_all_is_booked_under_the_model_asked_for(tmp_path: Path, asked: str) -> None:
    async with pair(tmp_path) as it:
        reply = await it.generate(model=asked, request_id="r1")
        assert (reply.text, reply.started.engine) == (TINY_SAYS, "t1")
        decision = reply.started.decision
        assert (decision.directive, decision.model) == ("D", TINY)
        assert decision.reason == generation_pb2.DECISION_REASON_PLANNED
        assert not it.small.requests
        (request,) = it.tiny.requests
        # By its own name: an engine refuses a request for another.
        assert (request.model, contents(it.tiny)) == ("tiny", [["What is pith?\nBe brief"]])
        (row,) = await rows(it.router)
        assert (row.model, row.directive, row.engine) == (IDENTITY, "D", "t1")
        assert (row.policy, row.planned, row.eligible) == ("acme-qa", "D", True)
        assert (row.energy_joules, row.output_tokens) == (2.0, 1)
        report = await it.router.report(reports_pb2.DIMENSION_DIRECTIVE)
        assert [(line.directive, line.requests) for line in report.rows] == [("D", 1)]
        by_model = await it.router.report(reports_pb2.DIMENSION_MODEL)
        assert [(line.model, line.requests) for line in by_model.rows] == [(IDENTITY, 1)]


async def test_a_stream_says_before_its_first_delta_who_answers(tmp_path: Path) -> None:
    async with pair(tmp_path, *tiny(answer("H", "i", "."))) as it:
        events = [event async for event in it.router.generation.StreamGenerate(ask(model="small"))]
        assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "delta", "finished"]
        assert (events[0].started.engine, events[0].started.decision.model) == ("t1", TINY)


async def test_who_opts_out_has_the_model_that_it_asked_for(tmp_path: Path) -> None:
    async with pair(tmp_path) as it:
        reply = await it.generate(opt_out=True)
        assert (reply.text, reply.started.decision.model) == (SMALL_SAYS, "")
        assert not it.tiny.requests


async def test_in_shadow_another_model_is_chosen_and_none_but_the_one_asked_for_answers(tmp_path: Path) -> None:
    async with pair(tmp_path, mode=policies_pb2.MODE_SHADOW) as it:
        reply = await it.generate()
        assert (reply.text, reply.started.decision.model) == (SMALL_SAYS, "")
        assert not it.tiny.requests
        (row,) = await rows(it.router)
        assert (row.model, row.directive, row.planned) == (IDENTITY, "L0", "D")


async def test_a_sample_is_one_of_the_model_asked_for_with_the_stand_ins_answer(tmp_path: Path) -> None:
    async with pair(tmp_path, sample_share=1.0, grader="exact") as it:
        await it.generate(reference="x")
        (kept,) = await rows(it.router, samples)
        assert kept.model == IDENTITY
        draw = feedback_pb2.DrawSamplesRequest(model=IDENTITY, task="qa", directives=["D"], count=9, evaluator="judge")
        (sample,) = (await it.router.feedback.DrawSamples(draw)).samples
        assert (sample.model, list(sample.messages)) == (IDENTITY, list(ask().messages))
        assert [(one.directive, one.text) for one in sample.answers] == [("D", TINY_SAYS)]
        draw.model = TINY
        assert not (await it.router.feedback.DrawSamples(draw)).samples


async def answered_at_l0(it: Pair, asked: int, **fields: Any) -> None:
    """The model asked for answers in one piece what the stand-in, which was asked so often, did not; booked once."""
    it.small.requests.clear()
    reply = await it.generate(request_id="r1", **fields)
    assert (reply.text, reply.started.engine) == (SMALL_SAYS, "s")
    decision = reply.started.decision
    assert (decision.directive, decision.model) == ("L0", "")
    assert len(it.tiny.requests) == asked
    (request,) = it.small.requests
    # Nothing of the directive is left in it.
    assert (request.model, contents(it.small)) == ("small", [["What is pith?"]])
    (row,) = await rows(it.router)
    assert (row.request_id, row.model, row.directive, row.engine) == ("r1", IDENTITY, "L0", "s")
    assert (row.output_tokens, row.energy_joules) == (2, 2.0)
    assert (await it.router.report()).total.energy_joules == 2.0


@pytest.mark.parametrize("goes", [away, draining])
async def test_where_the_stand_in_accepts_nothing_the_model_asked_for_answers(
    tmp_path: Path, goes: Callable[[Pair], Coroutine[Any, Any, None]]
) -> None:
    async with pair(tmp_path) as it:
        await goes(it)
        await answered_at_l0(it, asked=0)


async def test_it_is_served_again_once_an_engine_of_it_is_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as it:
        await draining(it)
        assert (await it.generate()).text == SMALL_SAYS
        await it.tiny.report(draining=False)
        await it.router.until_ready(2)
        await it.until("D")
        assert (await it.generate()).text == TINY_SAYS


async def test_where_no_engine_of_it_was_ever_there_the_model_asked_for_answers(tmp_path: Path) -> None:
    async with pair(tmp_path, *tiny(digest=OTHER_DIGEST)) as it:
        await answered_at_l0(it, asked=0)
        assert any(f"D: closed, no engine of {TINY} accepts" in step for step in (await it.explained()).steps)


REFUSED_BEFORE = [
    *[("started", one) for one in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)],
    *[
        ("", one)
        for one in (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNAUTHENTICATED,
        )
    ],
    ("started", grpc.StatusCode.INTERNAL),
    ("started", grpc.StatusCode.UNAVAILABLE),
]


@pytest.mark.parametrize(
    ("after", "code"), REFUSED_BEFORE, ids=[f"{code.name} {after}".strip() for after, code in REFUSED_BEFORE]
)
async def test_where_the_stand_in_gives_nothing_the_model_asked_for_answers(
    tmp_path: Path, after: str, code: grpc.StatusCode
) -> None:
    script = refuse(code, "QUEUE_FULL", after=(after,) if after else ())
    async with pair(tmp_path, *tiny(script)) as it:
        await answered_at_l0(it, asked=1, sampling=text_pb2.Sampling(seed=7))
        assert it.small.requests[0].sampling.seed == it.tiny.requests[0].sampling.seed == 7


async def _ended(engine: FakeEngine, request: Any, context: Any) -> AsyncIterator[Any]:
    yield engine.started(request)


async def _without_start(engine: FakeEngine, request: Any, context: Any) -> AsyncIterator[Any]:
    yield delta("Hi.")


@pytest.mark.parametrize("script", [_ended, _without_start, of_other_weights])
async def test_where_the_stand_in_answers_amiss_the_model_asked_for_answers(tmp_path: Path, script: Script) -> None:
    async with pair(tmp_path, *tiny(script)) as it:
        await answered_at_l0(it, asked=1)


async def test_where_the_stand_in_says_nothing_the_model_asked_for_answers(tmp_path: Path) -> None:
    async with pair(tmp_path, *tiny(stall("started"))) as it:
        answering = asyncio.ensure_future(it.generate())
        await it.tiny.asked.wait()
        await it.router.clock.advance(3600.0)
        assert (await answering).text == SMALL_SAYS
        await it.tiny.cancelled.wait()


async def test_with_a_second_engine_of_it_there_the_stand_in_still_answers(tmp_path: Path) -> None:
    async with pair(tmp_path, *tiny(EXHAUSTED, None)) as it:
        for number in range(4):
            reply = await it.generate(request_id=f"r{number}")
            assert (reply.started.engine, reply.started.decision.model) == ("t2", TINY)
        assert it.tiny.requests and not it.small.requests


async def test_what_breaks_one_engine_of_the_stand_in_is_not_tried_at_the_next(tmp_path: Path) -> None:
    """Nor what one finds too long: they are alike."""
    for script in (refuse(grpc.StatusCode.INTERNAL), TOO_LONG):
        (folder := tmp_path / script.__qualname__ / str(id(script))).mkdir(parents=True)
        async with pair(folder, *tiny(script, script)) as it:
            reply = await it.generate()
            assert (reply.text, reply.started.decision.directive) == (SMALL_SAYS, "L0")
            assert sum(len(fake.requests) for fake in it.stand_ins) == 1


async def test_what_the_model_asked_for_finds_wrong_is_told_as_it_says(tmp_path: Path) -> None:
    """It is asked after the stand-in, as without one."""
    small = FakeEngine(refuse(grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"))
    async with pair(tmp_path, *tiny(TOO_LONG), small=small) as it:
        error = await refused(it.generate())
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
        assert await rows(it.router) == []
    small = FakeEngine(EXHAUSTED)
    (tmp_path / "full").mkdir()
    async with pair(tmp_path / "full", *tiny(EXHAUSTED), small=small) as it:
        error = await refused(it.generate())
        assert (error.code, error.retry_after_seconds) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 7.0)
        small.script = answer(SMALL_SAYS)
        # Its id is free for the whole answer.
        assert (await it.generate(request_id="r1")).text == SMALL_SAYS


def unlike() -> tuple[FakeEngine, ...]:
    """The model asked for, and a stand-in that spends a hundredth of what it does."""
    return FakeEngine(answer(SMALL_SAYS, joules=2_000.0)), *tiny(answer(TINY_SAYS, joules=20.0))


async def beside_another(it: Pair, **changes: Any) -> None:
    """What both cost is learnt, and directive E is allowed too, which is open, and of which no more is known."""
    stub: Any = directives_pb2_grpc.DirectivesStub(it.router.channel)
    other = directives_pb2.Directive(name="E", text="Two words")
    await stub.CreateDirective(directives_pb2.CreateDirectiveRequest(directive=other))
    await it.router.open("E")
    for number in range(20):
        await it.generate(opt_out=number % 2 == 0)
    policy = await it.router.policies.GetPolicy(policies_pb2.GetPolicyRequest(name="acme-qa"))
    policy.MergeFrom(policies_pb2.Policy(directives=["E"], **changes))
    await it.router.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(policy=policy))


async def test_while_it_is_away_the_plan_goes_on_with_what_else_is_open(tmp_path: Path) -> None:
    small, stand_in = unlike()
    async with pair(tmp_path, stand_in, small=small) as it:
        await beside_another(it)
        assert (await it.generate()).started.decision.directive == "D"
        await away(it)
        await it.until("E")
        reply = await it.generate()
        assert (reply.text, reply.started.decision.directive) == (SMALL_SAYS, "E")
        assert contents(it.small)[-1] == ["What is pith?\nTwo words"]


async def test_a_full_stand_in_leaves_the_request_to_the_next_open_directive(tmp_path: Path) -> None:
    """Where the day's carbon budget is spent the least carbon is taken of what is open at that moment."""
    budget = policies_pb2.CarbonBudget(grams_per_day=FAR_BELOW_ONE_ANSWER, when_spent=policies_pb2.WHEN_SPENT_TIGHTEN)
    small, stand_in = unlike()
    async with pair(tmp_path, stand_in, small=small) as it:
        await beside_another(it, carbon_budget=budget)
        decision = (await it.generate()).started.decision
        assert (decision.directive, decision.reason) == ("D", generation_pb2.DECISION_REASON_BUDGET_SPENT)
        it.tiny.requests.clear()
        it.tiny.script = EXHAUSTED
        reply = await it.generate(request_id="last")
        assert len(it.tiny.requests) == 1
        assert (reply.text, reply.started.decision.directive, reply.started.decision.model) == (SMALL_SAYS, "E", "")
        assert contents(it.small)[-1] == ["What is pith?\nTwo words"]
        (row,) = (row for row in await rows(it.router) if row.request_id == "last")
        assert (row.directive, row.engine, row.model) == ("E", "s", IDENTITY)


async def test_once_begun_only_the_same_weights_go_on(tmp_path: Path) -> None:
    async with pair(tmp_path, *tiny(tell("Hello", lives=2), tell("Hello"))) as it:
        # The second is busier, so that the first begins.
        await it.stand_ins[1].report(running=3)
        while not any(one.name == "t2" and one.load.running == 3 for one in await it.router.engines()):
            pass
        reply = await it.generate(request_id="r1")
        assert (reply.text, reply.started.engine, reply.started.decision.model) == ("Hello", "t1", TINY)
        begun, resumed = it.stand_ins[0].requests[0], it.stand_ins[1].requests[0]
        assert (resumed.model, resumed.resume.model_digest) == ("tiny", TINY_DIGEST)
        assert bytes(resumed.resume.token_ids) == b"He" and not begun.HasField("resume")
        assert not it.small.requests
        (row,) = await rows(it.router)
        assert (row.model, row.directive, row.engine) == (IDENTITY, "D", "t1")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_neither_the_model_asked_for_nor_other_weights_go_on(tmp_path: Path, code: grpc.StatusCode) -> None:
    dying, others = refuse(code, after=("started", delta("Hel"))), tiny(tell("Hello"), digest=OTHER_DIGEST)
    async with pair(tmp_path, *tiny(dying), *others) as it:
        events: list[Any] = []
        stream = it.router.generation.StreamGenerate(ask(model="small", request_id="r1"))

        async def read() -> None:
            while event := await stream.read():
                events.append(event)

        error = await refused(read())
        lost = code is grpc.StatusCode.UNAVAILABLE
        assert error.code is code and (error.reason == "ENGINE_LOST") == lost
        assert [event.delta.text for event in events[1:]] == ["Hel"]
        assert not it.small.requests and not it.stand_ins[1].requests
        (row,) = await rows(it.router)
        assert row.request_id.startswith("r1@")
        assert (row.model, row.directive, row.engine, row.finish_reason) == (IDENTITY, "D", "t1", "ABORTED")
        # What was broken off leaves the id free for a whole answer.
        it.tiny.script = answer(TINY_SAYS)
        assert (await it.generate(request_id="r1")).started.replayed is False


async def test_other_weights_under_its_name_are_another_model(tmp_path: Path) -> None:
    async with pair(tmp_path) as it:
        assert (await it.generate()).text == TINY_SAYS
        await it.tiny.stop()
        await it.router.until_ready(1)
        it.tiny.info.model_digest = OTHER_DIGEST
        it.tiny.requests.clear()
        await it.tiny.start()
        await it.until_model("t1", OTHER_DIGEST)
        reply = await it.generate()
        assert (reply.text, reply.started.decision.directive) == (SMALL_SAYS, "L0")
        assert not it.tiny.requests
        error = await refused(it.generate(**judged()))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert not it.tiny.requests
