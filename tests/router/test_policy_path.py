"""Every field of a policy on the path of a request: leave-alone rules, carbon budget, latency objective; and on every
router within 5 s."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, feedback_pb2, generation_pb2, policies_pb2

from common.clock import ManualClock
from router.snapshot import POLL_SECONDS, SnapshotKeeper
from tests.router.admin_client import faults, refused
from tests.router.fake_engine import IDENTITY, Context, FakeEngine, Message, answer, finished
from tests.router.running import Running, ask, running

ANSWER_GRAMS = 2 / 3.6e6 * 1.5 * 360 + 0.0005
"""Of an answer of the fake engine: 2 J, half a second of a device."""


def budget(answers: float, when_spent: int = policies_pb2.WHEN_SPENT_TIGHTEN) -> policies_pb2.CarbonBudget:
    return policies_pb2.CarbonBudget(grams_per_day=answers * ANSWER_GRAMS, when_spent=when_spent)


REFUSE = policies_pb2.WHEN_SPENT_REFUSE


async def decided(router: Running, text: str = "Who?", **fields: Any) -> tuple[str, str]:
    """(directive, reason) of an answer."""
    decision = (await router.generation.Generate(ask(text, **fields))).started.decision
    reason = generation_pb2.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_")
    return decision.directive, reason


@pytest.mark.parametrize(
    ("text", "fields", "trait"),
    [
        ("List them as JSON.", {}, "structured_output"),
        ("In 200 words, who was he?", {}, "explicit_length"),
        ("Write a function for it", {}, "code"),
        ("Who?", {"traits": [generation_pb2.TRAIT_TOOLS]}, "tools"),
    ],
)
async def test_a_request_that_shows_a_trait_is_served_as_it_came(
    router: Running, engine: FakeEngine, text: str, fields: dict[str, Any], trait: str
) -> None:
    await router.policy()
    await router.open("L1")
    reply = await router.generation.Generate(ask(text, **fields))
    decision = reply.started.decision
    assert (decision.directive, decision.reason) == ("L0", generation_pb2.DECISION_REASON_LEFT_ALONE)
    assert trait in decision.explanation
    assert engine.requests[0].messages.messages[0].content == text
    preview = await router.generation.Decide(generation_pb2.DecideRequest(request=ask(text, **fields)))
    assert preview.decision == decision
    assert await decided(router) == ("L1", "PLANNED")


async def test_what_is_left_alone_is_no_sample_of_what_directives_are_for(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    await router.open("L1")
    await decided(router, "List them as JSON.", reference="x")
    preview = await router.generation.Decide(generation_pb2.DecideRequest(request=ask("List them as JSON.")))
    assert not preview.sample_wanted
    await decided(router, "Who?", reference="x")
    await router.router.ledger.flush()
    drawing = feedback_pb2.DrawSamplesRequest(model=IDENTITY, task="qa", directives=["L1"], count=10, evaluator="judge")
    samples = (await router.feedback.DrawSamples(drawing)).samples
    assert [sample.messages[0].content for sample in samples] == ["Who?"]


async def test_a_policy_that_leaves_none_alone_lets_nobody_opt_out(router: Running) -> None:
    await router.policy(leave_alone=policies_pb2.LeaveAlone())
    await router.open("L1")
    assert await decided(router, "List them as JSON.", opt_out=True) == ("L1", "PLANNED")
    assert await decided(router, traits=[generation_pb2.TRAIT_OPT_OUT]) == ("L1", "PLANNED")


async def test_opting_out_by_trait_is_opting_out(router: Running) -> None:
    await router.policy()
    await router.open("L1")
    assert await decided(router, traits=[generation_pb2.TRAIT_OPT_OUT]) == ("L0", "OPT_OUT")
    assert await decided(router, opt_out=True) == ("L0", "OPT_OUT")


async def test_a_spent_budget_tightens_until_the_next_day(router: Running) -> None:
    await router.policy(traffic_share=0.0, holdback_share=0.5, carbon_budget=budget(1.5))
    await router.open("L1")
    assert [await decided(router) for _ in range(3)] == [("L0", "OUTSIDE_SHARE")] * 2 + [("L1", "BUDGET_SPENT")]
    assert await decided(router, "As JSON, please") == ("L0", "LEFT_ALONE")
    assert await decided(router, floor=0.995) == ("L0", "NONE_OPEN")
    await router.clock.advance(24 * 3600)
    await router.open("L1")
    assert await decided(router) == ("L0", "OUTSIDE_SHARE")


async def test_only_the_policys_own_requests_count(router: Running, engine: FakeEngine) -> None:
    await router.policy(traffic_share=0.0, carbon_budget=budget(1.5))
    await router.open("L1")
    for _ in range(3):
        await decided(router, tenant="other")
        await decided(router, evaluation=generation_pb2.EvaluationPurpose(sample_id="s", directive="L1"))
    engine.script = answer("x", joules=None)
    await decided(router)
    await decided(router)
    assert await decided(router) == ("L0", "OUTSIDE_SHARE"), "what is unknown is not counted"


async def test_a_spent_budget_refuses_until_the_next_day(router: Running, engine: FakeEngine) -> None:
    await router.clock.advance(5 * 3600)
    await router.policy(carbon_budget=budget(1, REFUSE))
    first = await router.generation.Generate(ask(request_id="r1"))
    asked = len(engine.requests)
    calls = [
        router.generation.Generate(ask(request_id="r2")),
        router.generation.StreamGenerate(ask(request_id="r2")).read(),
        router.generation.Decide(generation_pb2.DecideRequest(request=ask(request_id="r2"))),
        router.generation.Generate(ask(opt_out=True)),
        router.generation.Generate(ask("As JSON, please")),
    ]
    for call in calls:
        error = await refused(call, "RESOURCE_EXHAUSTED", "CARBON_BUDGET_SPENT")
        assert error.quota is not None and error.quota.subject == "policy:acme-qa"
        assert f"{ANSWER_GRAMS:.4g} g of {ANSWER_GRAMS:.4g} g" in error.quota.description
        assert error.retry_after_seconds == pytest.approx(19 * 3600)
    assert len(engine.requests) == asked
    registry = router.router.metrics.registry
    assert registry.get_sample_value("pith_router_refused_requests_total", {"limit": "carbon_budget"}) == len(calls)
    for name in ("carbon_budget_spent_grams", "carbon_budget_grams"):
        grams = registry.get_sample_value(f"pith_router_{name}", {"policy": "acme-qa"})
        assert grams == pytest.approx(ANSWER_GRAMS), name
    # What costs nothing or is nobody's request is served.
    again = await router.generation.Generate(ask(request_id="r1"))
    assert again.started.replayed and again.text == first.text
    purpose = generation_pb2.EvaluationPurpose(sample_id="s", directive="L1")
    assert await decided(router, evaluation=purpose) == ("L1", "EVALUATION")
    assert (await decided(router, tenant="other"))[1] == "NONE_OPEN"
    await router.clock.advance(19 * 3600)
    assert await decided(router, request_id="r2") == ("L0", "NONE_OPEN")


async def test_a_refusal_comes_before_any_engine_is_looked_for(router: Running, engine: FakeEngine) -> None:
    await router.policy(carbon_budget=policies_pb2.CarbonBudget(grams_per_day=1e-300, when_spent=REFUSE))
    await router.generation.Generate(ask())
    await engine.stop()
    await router.until_ready(0)
    await refused(router.generation.Generate(ask()), "RESOURCE_EXHAUSTED", "CARBON_BUDGET_SPENT")


async def test_a_policy_in_shadow_neither_tightens_nor_refuses(router: Running) -> None:
    await router.policy(mode=policies_pb2.MODE_SHADOW, traffic_share=0.0, carbon_budget=budget(0.5))
    await router.policy(name="other", tenant="other", mode=policies_pb2.MODE_SHADOW, carbon_budget=budget(0.5, REFUSE))
    await router.open("L1")
    assert [await decided(router) for _ in range(2)] == [("L0", "OUTSIDE_SHARE"), ("L0", "SHADOW")]
    assert [await decided(router, tenant="other") for _ in range(2)] == [("L0", "SHADOW")] * 2


async def test_what_is_spent_outlives_a_router(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}) as router:
        await router.policy(carbon_budget=budget(1, REFUSE))
        await decided(router)
    async with running(tmp_path, {"e1": engine}, clock=ManualClock()) as router:
        await refused(router.generation.Generate(ask()), "RESOURCE_EXHAUSTED", "CARBON_BUDGET_SPENT")


async def explained(router: Running, text: str = "Who?", **fields: Any) -> policies_pb2.ExplainResponse:
    reply: policies_pb2.ExplainResponse = await router.policies.Explain(
        policies_pb2.ExplainRequest(request=ask(text, **fields))
    )
    return reply


def slow_when_brief(clock: ManualClock) -> Any:
    """An engine whose answers take 1 s, and 9 s under a directive."""
    prompt = answer("Hello")

    async def script(
        engine: FakeEngine, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        brief = "Always answer" in request.messages.messages[-1].content
        async for message in prompt(engine, request, context):
            if message.HasField("finished"):
                await clock.advance(9 if brief else 1)
            yield message

    return script


async def test_what_answers_too_late_is_planned_less_and_a_new_router_knows(tmp_path: Path, engine: FakeEngine) -> None:
    clock = ManualClock()
    engine.script = slow_when_brief(clock)
    async with running(tmp_path, {"e1": engine}, clock=clock) as router:
        await router.policy(directives=["L1"], latency=policies_pb2.LatencyObjective(seconds=3.0, share=0.9))
        await router.open("L1")
        planned = {candidate.directive: candidate.planned_share for candidate in (await explained(router)).candidates}
        assert planned["L1"] == 1.0
        assert any("it has no effect yet" in step for step in (await explained(router)).steps)
        for number in range(20):
            await decided(router, opt_out=True, request_id=f"{number}")
            await decided(router)
        await router.open("L1")
        reply = await explained(router, request_id="r")
        planned = {candidate.directive: candidate.planned_share for candidate in reply.candidates}
        # 20 of 20 were late, and 20 more like L0's that were not: half of L1's. A tenth may be late.
        assert planned == {"L0": pytest.approx(0.8), "L1": pytest.approx(0.2)}
        assert any(step == "latency: 0.9 of answers within 3 s; the plan expects 0.9" for step in reply.steps)
    async with running(tmp_path, {"e1": engine}, clock=clock) as router:
        reply = await explained(router)
        assert {c.directive: c.planned_share for c in reply.candidates} == {
            "L0": pytest.approx(0.8),
            "L1": pytest.approx(0.2),
        }


async def test_who_gave_up_waiting_tells_nothing_of_answer_times(router: Running, engine: FakeEngine) -> None:
    async def script(
        engine: FakeEngine, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[Message]:
        yield engine.started(request)
        await router.clock.advance(1)
        yield finished(0, reason=text_pb2.FINISH_REASON_ABORTED)

    engine.script = script
    await router.policy(latency=policies_pb2.LatencyObjective(seconds=3.0))
    await router.open("L1")
    await decided(router, opt_out=True)
    await router.open("L1")
    assert any("it has no effect yet" in step for step in (await explained(router)).steps)


async def test_where_no_mix_is_in_time_explain_says_so(router: Running, engine: FakeEngine) -> None:
    engine.script = slow_when_brief(router.clock)
    await router.policy(directives=["L1"], latency=policies_pb2.LatencyObjective(seconds=0.5))
    await router.open("L1")
    await decided(router, opt_out=True)
    await router.open("L1")
    steps = (await explained(router)).steps
    assert any("the plan expects 0, as near as a mix of what is open comes" in step for step in steps)


class Polls:
    """Counts the looks that each router's keeper takes at the database by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: Counter[int] = Counter()
        refresh = SnapshotKeeper.refresh

        async def counted(keeper: SnapshotKeeper) -> None:
            await refresh(keeper)
            self.of[id(keeper)] += 1

        monkeypatch.setattr(SnapshotKeeper, "refresh", counted)


async def test_a_change_at_one_router_is_in_force_at_another(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = Polls(monkeypatch)
    database = f"sqlite:///{tmp_path}/router.db"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        running(tmp_path / "a", {"e1": engine}, database_url=database) as one,
        running(tmp_path / "b", {"e1": engine}, database_url=database) as other,
    ):
        keeper = id(other.router._keeper)

        async def in_force(holds: Any) -> None:
            """The other router answers accordingly after at most two polls: one may have been under way."""
            before = polls.of[keeper]
            while not holds(await explained(other)):
                assert polls.of[keeper] - before <= 2
            assert 2 * POLL_SECONDS < 5

        await one.policy(holdback_share=0.0)
        await in_force(lambda reply: reply.decision.policy == "acme-qa")
        await one.open("L1")
        await in_force(lambda reply: (reply.decision.directive, reply.decision.bound) == ("L1", 0.99))
        changed = directives_pb2.Directive(name="L1", text="Be brief")
        changing = directives_pb2_grpc.DirectivesStub(one.channel)
        changed.etag = (await changing.GetDirective(directives_pb2.GetDirectiveRequest(name="L1"))).etag
        await changing.UpdateDirective(directives_pb2.UpdateDirectiveRequest(directive=changed, reason="test"))
        await in_force(lambda reply: reply.decision.reason == generation_pb2.DECISION_REASON_NONE_OPEN)
        await one.open("L2")
        await in_force(lambda reply: reply.decision.directive == "L2")
        drop = feedback_pb2.Withdrawal(
            cell=feedback_pb2.Cell(model=IDENTITY, task="qa", directive="L2"),
            reason=feedback_pb2.WITHDRAWAL_REASON_DRIFT,
        )
        await one.feedback.ReportQuality(feedback_pb2.ReportQualityRequest(evaluator="test", withdrawals=[drop]))
        await in_force(lambda reply: reply.decision.reason == generation_pb2.DECISION_REASON_NONE_OPEN)
        policy = await one.policies.GetPolicy(policies_pb2.GetPolicyRequest(name="acme-qa"))
        await one.policies.DeletePolicy(policies_pb2.DeletePolicyRequest(name="acme-qa", etag=policy.etag))
        await in_force(lambda reply: reply.decision.policy == "default")


async def test_what_one_router_spends_another_refuses_for(tmp_path: Path, engine: FakeEngine) -> None:
    database = f"sqlite:///{tmp_path}/router.db"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "a", {"e1": engine}, database_url=database) as one:
        await one.policy(carbon_budget=budget(2, REFUSE))
        async with running(tmp_path / "b", {"e1": engine}, database_url=database) as other:
            await decided(one)
            await decided(other)
            for router in (one, other):
                await router.router.ledger.flush()
            request = generation_pb2.DecideRequest(request=ask())
            async with asyncio.timeout(60):
                for router in (one, other):
                    # Each turn is a call, during which the router may look at the database.
                    with pytest.raises(grpc.aio.AioRpcError, match="carbon budget"):
                        while True:
                            await router.generation.Decide(request)


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"latency": {}}, "policy.latency.seconds", "is 0; must be above 0 and at most 3,600"),
        ({"latency": {"seconds": -1}}, "policy.latency.seconds", "is -1; must be above 0 and at most 3,600"),
        ({"latency": {"seconds": 3600.5}}, "policy.latency.seconds", "is 3600.5; must be above 0 and at most 3,600"),
        ({"latency": {"seconds": math.nan}}, "policy.latency.seconds", "is nan; must be above 0"),
        ({"latency": {"seconds": math.inf}}, "policy.latency.seconds", "is inf; must be above 0"),
        ({"latency": {"seconds": 1, "share": 1}}, "policy.latency.share", "is 1; must be above 0 and below 1"),
        ({"latency": {"seconds": 1, "share": -0.1}}, "policy.latency.share", "is -0.1; must be above 0 and below 1"),
        ({"latency": {"seconds": 1, "share": math.nan}}, "policy.latency.share", "is nan; must be above 0"),
        ({"carbon_budget": {}}, "policy.carbon_budget.grams_per_day", "is 0; must be a finite number above 0"),
        ({"carbon_budget": {"grams_per_day": math.nan}}, "policy.carbon_budget.grams_per_day", "is nan; must be"),
        ({"carbon_budget": {"grams_per_day": math.inf}}, "policy.carbon_budget.grams_per_day", "is inf; must be"),
        ({"carbon_budget": {"grams_per_day": -1}}, "policy.carbon_budget.grams_per_day", "is -1; must be"),
        (
            {"carbon_budget": {"grams_per_day": 1, "when_spent": 9}},
            "policy.carbon_budget.when_spent",
            "is 9; must be one of WHEN_SPENT_TIGHTEN, WHEN_SPENT_REFUSE",
        ),
        ({"leave_alone": {"traits": [0]}}, "policy.leave_alone.traits[0]", "is 0; must be one of TRAIT_STRUCTURED"),
        ({"leave_alone": {"traits": [4, 77]}}, "policy.leave_alone.traits[1]", "is 77; must be one of"),
        ({"leave_alone": {"traits": [4, 4]}}, "policy.leave_alone.traits[1]", "is TRAIT_CODE again"),
        ({"leave_alone": {"traits": [1] * 6}}, "policy.leave_alone.traits", "has 6 traits; at most 5"),
    ],
)
async def test_what_a_policy_cannot_say(router: Running, fields: dict[str, Any], field: str, fault: str) -> None:
    messages = {
        "latency": policies_pb2.LatencyObjective,
        "carbon_budget": policies_pb2.CarbonBudget,
        "leave_alone": policies_pb2.LeaveAlone,
    }
    given = {name: messages[name](**value) for name, value in fields.items()}
    found = await faults(router.policy(**given))
    assert list(found) == [field] and found[field].startswith(fault)
    assert not [
        p for p in (await router.policies.ListPolicies(policies_pb2.ListPoliciesRequest())).policies if p.tenant
    ]


async def test_what_a_policy_can_say_comes_back(router: Running) -> None:
    await router.policy(
        latency=policies_pb2.LatencyObjective(seconds=3600),
        carbon_budget=policies_pb2.CarbonBudget(grams_per_day=0.25),
        leave_alone=policies_pb2.LeaveAlone(traits=[generation_pb2.TRAIT_TOOLS, generation_pb2.TRAIT_CODE]),
    )
    kept = await router.policies.GetPolicy(policies_pb2.GetPolicyRequest(name="acme-qa"))
    assert (kept.latency.seconds, kept.latency.share) == (3600, 0.95)
    assert (kept.carbon_budget.grams_per_day, kept.carbon_budget.when_spent) == (0.25, policies_pb2.WHEN_SPENT_TIGHTEN)
    assert list(kept.leave_alone.traits) == [generation_pb2.TRAIT_TOOLS, generation_pb2.TRAIT_CODE]


async def test_a_request_declares_known_traits_only(router: Running, engine: FakeEngine) -> None:
    found = await faults(router.generation.Generate(ask(traits=[1, 1, 0])))
    assert set(found) == {"traits[1]", "traits[2]"}
    assert not engine.requests
