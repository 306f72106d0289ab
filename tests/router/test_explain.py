"""Explain says what would be decided, by the code that decides, and in words why."""

from __future__ import annotations

from typing import Any

import pytest
from pith.router.v1 import generation_pb2, policies_pb2

from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, ask

FAR_BELOW_ONE_ANSWER = 1e-9


async def explained(router: Running, text: str = "Who?", **fields: Any) -> policies_pb2.ExplainResponse:
    reply: policies_pb2.ExplainResponse = await router.policies.Explain(
        policies_pb2.ExplainRequest(request=ask(text, **fields))
    )
    return reply


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Who?", {}),
        ("Who?", {"opt_out": True}),
        ("Who?", {"floor": 0.995}),
        ("As JSON, please", {}),
        ("Who?", {"traits": [generation_pb2.TRAIT_TOOLS]}),
        ("Who?", {"tenant": "other"}),
        ("Who?", {"task": "other"}),
    ],
)
async def test_it_says_what_is_then_done(router: Running, text: str, fields: dict[str, Any]) -> None:
    await router.policy(carbon_budget=policies_pb2.CarbonBudget(grams_per_day=FAR_BELOW_ONE_ANSWER))
    await router.open("L1")
    for _ in range(2):  # before and after the budget is spent
        foreseen = await explained(router, text, request_id="r", **fields)
        reply = await router.generation.Generate(ask(text, **fields))
        assert foreseen.decision == reply.started.decision
        assert foreseen.steps[-1] == foreseen.decision.explanation
        await router.generation.Generate(ask())


async def test_budget_traits_and_latency_are_among_the_steps(router: Running, engine: FakeEngine) -> None:
    await router.policy(
        carbon_budget=policies_pb2.CarbonBudget(grams_per_day=2.0),
        latency=policies_pb2.LatencyObjective(seconds=1.5, share=0.9),
        leave_alone=policies_pb2.LeaveAlone(traits=[generation_pb2.TRAIT_TOOLS]),
    )
    await router.open("L1")
    reply = await explained(router, "As JSON, please", opt_out=True)
    assert list(reply.steps) == [
        "policy acme-qa, revision 1, mode on",
        "carbon budget: 0 g of 2 g spent today (UTC)",
        "the request shows opt_out, structured_output, for which the policy leaves none alone: no effect",
        "L1: open, bound 0.990 clears the floor 0.950",
        "L2: closed, no quality bound for it yet",
        "plan: L1 100%",
        "latency: 0.9 of answers within 1.5 s; nothing is known of how long answers take, so it has no effect yet",
        "L1: least carbon among the directives whose bound clears the floor",
    ]
    assert not engine.requests, "nothing is generated"


async def test_a_refusal_is_stated_and_not_raised(router: Running) -> None:
    refusing = policies_pb2.CarbonBudget(grams_per_day=FAR_BELOW_ONE_ANSWER, when_spent=policies_pb2.WHEN_SPENT_REFUSE)
    await router.policy(carbon_budget=refusing)
    await router.open("L1")
    assert (await explained(router)).decision.directive == "L1"
    await router.generation.Generate(ask())
    reply = await explained(router)
    assert (reply.decision.directive, reply.decision.reason) == ("L0", generation_pb2.DECISION_REASON_BUDGET_SPENT)
    assert reply.steps[-1] == "refused: the carbon budget is spent until the next day (UTC)"
    assert [candidate.open for candidate in reply.candidates] == [True, True, False]


async def test_a_conversation_need_not_have_begun(router: Running) -> None:
    await router.policy()
    request = policies_pb2.ExplainRequest(request=generation_pb2.GenerateRequest(tenant="acme", task="qa"))
    assert (await router.policies.Explain(request)).decision.policy == "acme-qa"
