"""Decide for callers with engines of their own: which models they can have answer in the place of the one asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pith.router.v1 import directives_pb2, directives_pb2_grpc, generation_pb2, policies_pb2

from router.store.tables import samples
from tests.postgres import on_both_databases
from tests.router.fake_engine import IDENTITY, FakeEngine
from tests.router.outcome_reports import drawn, faults, outcome, rows
from tests.router.running import Running, ask, running

TINY, OTHER_WEIGHTS, THEIRS = "tiny@f00df00df00d", "tiny@beefbeefbeef", "theirs@beef"
LONGEST = "t" * 243 + "@f00df00df00d"


@pytest.fixture
async def router(tmp_path: Path, engine: FakeEngine, database_url: str) -> AsyncIterator[Running]:
    """One with an engine of `tiny` of its own, which no caller of Decide is to be sent to."""
    stand_in = FakeEngine(model="tiny", digest="f00d" * 16)
    await stand_in.start()
    async with running(tmp_path, {"e1": engine, "e2": stand_in}, database_url=database_url) as router:
        yield router
    assert not stand_in.requests
    await stand_in.stop()


async def in_force(router: Running, model: str = IDENTITY, **policy: Any) -> None:
    """Has directive D, by which `tiny` answers, served to tenant acme's questions."""
    stub: Any = directives_pb2_grpc.DirectivesStub(router.channel)
    directive = directives_pb2.Directive(name="D", model=TINY, text="Be brief")
    await stub.CreateDirective(directives_pb2.CreateDirectiveRequest(directive=directive))
    await router.policy(**{"directives": ["D"], **policy})
    await router.open("D", model=model)


async def decide(router: Running, *models: str, **fields: Any) -> generation_pb2.DecideResponse:
    request = generation_pb2.DecideRequest(request=ask(**fields), other_models=models)
    reply: generation_pb2.DecideResponse = await router.generation.Decide(request)
    return reply


@pytest.mark.parametrize("asked", ["small", IDENTITY, THEIRS])
async def test_a_model_that_the_caller_can_have_answer_is_chosen(
    router: Running, engine: FakeEngine, asked: str
) -> None:
    await in_force(router, model=asked if asked == THEIRS else IDENTITY)
    decided = await decide(router, "unused@1", TINY, model=asked)
    decision = decided.decision
    assert (decision.directive, decision.model) == ("D", TINY)
    assert decision.reason == generation_pb2.DECISION_REASON_PLANNED
    assert [message.content for message in decided.messages] == ["What is pith?\nBe brief"]
    assert not engine.requests


@pytest.mark.parametrize("others", [(), (OTHER_WEIGHTS,), (IDENTITY, "tinier@f00df00df00d")])
async def test_without_it_the_model_asked_for_is_to_answer(router: Running, others: Sequence[str]) -> None:
    """Though an engine of ours might have it: the caller's own engines answer here."""
    await in_force(router)
    decided = await decide(router, *others, model="small")
    assert (decided.decision.directive, decided.decision.model) == ("L0", "")
    assert decided.decision.reason == generation_pb2.DECISION_REASON_NONE_OPEN
    assert [message.content for message in decided.messages] == ["What is pith?"]


async def test_in_shadow_the_model_asked_for_is_to_answer(router: Running) -> None:
    await in_force(router, mode=policies_pb2.MODE_SHADOW)
    decision = (await decide(router, TINY, model="small")).decision
    assert (decision.directive, decision.model) == ("L0", "")
    assert decision.reason == generation_pb2.DECISION_REASON_SHADOW


async def test_as_many_as_a_caller_may_name_are_taken(router: Running) -> None:
    await in_force(router)
    others = [TINY, LONGEST, *(f"m{number}@1" for number in range(30))]
    assert (await decide(router, *others, model="small")).decision.model == TINY


@pytest.mark.parametrize(
    ("others", "field", "fault"),
    [
        ([f"m{number}@1" for number in range(33)], "other_models", "has 33 entries; at most 32"),
        ([TINY, ""], "other_models[1]", "is ''; must be name@digest, as `pithctl engines` shows it"),
        (["tiny"], "other_models[0]", "is 'tiny'; must be name@digest"),
        (["@f00d"], "other_models[0]", "must be name@digest"),
        (["tiny@"], "other_models[0]", "must be name@digest"),
        (["a b@f00d"], "other_models[0]", "is 'a b@f00d'; must be name@digest"),
        (["tiny@f00d@f00d"], "other_models[0]", "must be name@digest"),
        ([f"t{LONGEST}"], "other_models[0]", "has 257 characters; at most 256"),
        (["t\x07@f00d"], "other_models[0]", "control character U+0007 at 1"),
    ],
)
async def test_what_names_no_model_is_refused_by_its_place(
    router: Running, others: list[str], field: str, fault: str
) -> None:
    found = await faults(decide(router, *others))
    assert set(found) == {field}
    assert fault in found[field]


@on_both_databases
@pytest.mark.parametrize("told", ["", TINY, IDENTITY])
async def test_an_outcome_is_one_of_the_model_asked_for_whoever_answered(router: Running, told: str) -> None:
    await in_force(router)
    decided = await decide(router, TINY, model="small", request_id="r1")
    for _ in range(2):
        await router.generation.ReportOutcome(outcome(decided, model=told))
    (row,) = await rows(router)
    assert (row.model, row.directive, row.engine) == (IDENTITY, "D", "")


async def test_an_outcome_of_a_callers_own_models_is_too(router: Running) -> None:
    await in_force(router, model=THEIRS)
    decided = await decide(router, TINY, model=THEIRS)
    assert decided.decision.model == TINY
    await router.generation.ReportOutcome(outcome(decided, model=TINY))
    (row,) = await rows(router)
    assert (row.model, row.directive) == (THEIRS, "D")


async def test_a_router_without_any_engine_chooses_among_its_callers_models(tmp_path: Path) -> None:
    async with running(tmp_path, {}, ready=False) as router:
        await in_force(router, model=THEIRS)
        assert (await decide(router, TINY, model=THEIRS)).decision.model == TINY
        assert (await decide(router, model=THEIRS)).decision.directive == "L0"


async def test_where_the_model_asked_for_was_to_answer_the_caller_says_which_did(router: Running) -> None:
    await in_force(router)
    decided = await decide(router, model="small")
    await router.generation.ReportOutcome(outcome(decided, model=TINY))
    (row,) = await rows(router)
    assert (row.model, row.directive) == (TINY, "L0")


@pytest.mark.parametrize("told", ["", TINY])
async def test_its_request_is_kept_as_a_sample_of_the_model_asked_for(router: Running, told: str) -> None:
    await in_force(router, directives=["D", "L1"], sample_share=1.0, grader="exact")
    decided = await decide(router, TINY, model="small", reference="x")
    assert (decided.decision.directive, decided.sample_wanted) == ("D", True)
    await router.generation.ReportOutcome(outcome(decided, model=told, request=ask(model="small", reference="x")))
    (sample,) = await drawn(router)
    assert (sample.model, list(sample.messages)) == (IDENTITY, list(ask().messages))
    assert list(sample.answers) == []


async def test_of_a_model_that_is_not_served_here_no_sample_is_wanted(router: Running) -> None:
    await in_force(router, model=THEIRS, sample_share=1.0, grader="exact")
    decided = await decide(router, TINY, model=THEIRS, reference="x")
    assert (decided.decision.model, decided.sample_wanted) == (TINY, False)
    await router.generation.ReportOutcome(outcome(decided, request=ask(model=THEIRS, reference="x")))
    assert await rows(router, samples) == []
