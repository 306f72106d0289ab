"""Answers of callers' own engines that are kept to judge directives by."""

from __future__ import annotations

from typing import Any

import pytest
from pith.common.v1 import text_pb2
from pith.router.v1 import generation_pb2, policies_pb2

from router.directives.assign import uniform
from router.store.tables import samples
from tests.router.fake_engine import IDENTITY
from tests.router.outcome_reports import (
    decide,
    drawn,
    outcome,
    rows,
)
from tests.router.running import Running, ask


async def test_the_outcome_of_a_wanted_sample_is_drawn_by_evaluators(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    await router.open("L1")
    asked = {"request_id": "r1", "reference": "because", "sampling": text_pb2.Sampling(temperature=0.5, seed=7)}
    decided = await decide(router, text="Why?", **asked)
    assert decided.sample_wanted
    await router.generation.ReportOutcome(outcome(decided, request=ask("Why?", **asked)))
    (sample,) = await drawn(router)
    assert [message.content for message in sample.messages] == ["Why?"]
    assert (sample.reference, sample.grader, sample.task, sample.model) == ("because", "exact", "qa", IDENTITY)
    assert (sample.sampling.temperature, sample.sampling.seed) == (0.5, 7)
    # The evaluator has them all generated: what a caller says that its engine answered proves nothing of ours.
    assert list(sample.answers) == []


async def test_a_seed_that_is_not_known_is_left_open(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    decided = await decide(router, reference="x")
    await router.generation.ReportOutcome(outcome(decided, request=ask(reference="x")))
    (sample,) = await drawn(router)
    assert not sample.sampling.HasField("seed")


async def test_samples_are_wanted_of_the_share_that_is_drawn_of_answers_too(router: Running) -> None:
    await router.policy(sample_share=0.4, grader="exact")
    names = [f"request-{number}" for number in range(50)]
    wanted = {name for name in names if (await decide(router, request_id=name)).sample_wanted}
    assert 8 <= len(wanted) <= 32
    for name in names:
        await router.generation.Generate(ask(name, request_id=name, reference="x"))
    assert {sample.messages[0].content for sample in await drawn(router)} == wanted
    # Who chooses the ids of its requests does not choose what is sampled.
    assert wanted != {name for name in names if uniform("sample", name) < 0.4}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"model": "theirs@beef"}, {}),  # no engine of ours could generate the other levels
        ({"opt_out": True}, {}),
        ({"traits": [generation_pb2.TRAIT_OPT_OUT]}, {}),
        ({}, {"model": "theirs@beef"}),
        ({}, {"finish_reason": text_pb2.FINISH_REASON_ABORTED}),
    ],
)
async def test_no_other_answer_is_kept(router: Running, asked: Any, told: Any) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    decided = await decide(router, reference="x", **asked)
    assert decided.sample_wanted == (not asked)
    await router.generation.ReportOutcome(outcome(decided, **{"request": ask(reference="x", **asked), **told}))
    assert await rows(router, samples) == []
    assert len(await rows(router)) == 1


async def test_a_request_that_opts_out_after_all_is_not_kept(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    decided = await decide(router, reference="x")
    request = ask(reference="x", opt_out=True)
    await router.generation.ReportOutcome(outcome(decided, request=request))
    assert await rows(router, samples) == []


async def test_a_policy_that_is_gone_keeps_nothing_and_is_still_named(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    decided = await decide(router, request_id="r1", reference="x")
    policy = await router.policies.GetPolicy(policies_pb2.GetPolicyRequest(name="acme-qa"))
    await router.policies.DeletePolicy(policies_pb2.DeletePolicyRequest(name="acme-qa", etag=policy.etag))
    await router.generation.ReportOutcome(outcome(decided, request=ask(reference="x")))
    (row,) = await rows(router)
    assert (row.policy, row.policy_revision) == ("acme-qa", 1)
    assert await rows(router, samples) == []
