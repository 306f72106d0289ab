"""Explain says what would be decided, by the code that decides, and in words why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pith.common.v1 import energy_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, generation_pb2, policies_pb2

from common.clock import ManualClock
from common.quality.bound import Cell, QualityBound
from router.optimizer.costs import PRIOR_REQUESTS
from router.optimizer.plan import Entry, Plan
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.quality import QualityRepository, Reporter
from tests.router.admin_client import MODEL, AdminClient, faults, refused
from tests.router.fake_engine import FakeEngine, answer, energy_model
from tests.router.outcome_reports import decide, outcome
from tests.router.running import Running, ask, running

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


async def test_a_directive_is_open_only_while_its_model_accepts_requests(tmp_path: Path, engine: FakeEngine) -> None:
    stand_in = FakeEngine(answer("Hi."), model="tiny", digest="f00d" * 16)
    await stand_in.start()
    async with running(tmp_path, {"e1": engine, "e2": stand_in}) as router:
        stub: Any = directives_pb2_grpc.DirectivesStub(router.channel)
        directive = directives_pb2.Directive(name="D", model="tiny@f00df00df00d")
        await stub.CreateDirective(directives_pb2.CreateDirectiveRequest(directive=directive))
        await router.policy(directives=["L1", "D"])
        await router.open("D")
        foreseen = await explained(router, model="small")
        assert (foreseen.decision.directive, foreseen.decision.model) == ("D", "tiny@f00df00df00d")
        assert [(one.directive, one.open) for one in foreseen.candidates] == [("L0", True), ("L1", False), ("D", True)]
        reply = await router.generation.Generate(ask("Who?", model="small"))
        assert reply.started.decision == foreseen.decision
        await stand_in.report(draining=True)
        await router.until_ready(1)
        foreseen = await explained(router, model="small")
        away = "D: closed, no engine of tiny@f00df00df00d accepts requests at present"
        assert away in list(foreseen.steps)
        _, other, closed = foreseen.candidates
        assert (closed.open, closed.why, closed.bound) == (False, away, 0.99)
        assert other.why == "L1: closed, no quality bound for it yet"
        reply = await router.generation.Generate(ask("Who?", model="small"))
        assert (reply.started.decision.directive, reply.started.decision.model) == ("L0", "")
        assert reply.started.decision == foreseen.decision
    await stand_in.stop()


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


BOUND = QualityBound(Cell(MODEL, "sums", "L1"), 0.97, 1.0, 0.99, 0.9, 200, "grader:numeric", "1", None)  # type: ignore[arg-type]


async def _open_l1(database: Database, keeper: SnapshotKeeper, clock: ManualClock) -> None:
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds(
            [replace(BOUND, updated_at=clock.now())], Reporter("e"), clock.now()
        )
    await keeper.refresh()
    keeper.put_plan(Plan({("default", MODEL, "sums"): Entry((("L0", 0.25), ("L1", 0.75)))}, clock.now()))


async def test_explain_shows_every_candidate(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await _open_l1(database, keeper, clock)
    client.costs.observe(Cell(MODEL, "sums", "L0"), 10.0, 1.0)
    for _ in range(2_000):
        client.costs.observe(Cell(MODEL, "sums", "L1"), 4.0, 0.4)
    request = generation_pb2.GenerateRequest(task="sums", model="tiny", conversation_id="c1")
    reply = await client.policies.Explain(policies_pb2.ExplainRequest(request=request))
    assert reply.decision.policy == "default"
    assert reply.decision.reason in (
        generation_pb2.DECISION_REASON_SHADOW,
        generation_pb2.DECISION_REASON_HOLDBACK,
    )
    assert (reply.decision.directive, reply.decision.floor) == ("L0", 0.95)
    assert any("policy default, revision 1, mode shadow" in step for step in reply.steps)
    baseline, brief, very_brief = reply.candidates
    assert (baseline.directive, baseline.open, baseline.planned_share) == ("L0", True, 0.25)
    assert baseline.predicted_grams == pytest.approx(5.0)
    assert (brief.directive, brief.open, brief.bound, brief.planned_share) == ("L1", True, 0.97, 0.75)
    assert brief.why == "L1: open, bound 0.970 clears the floor 0.950"
    assert brief.predicted_grams == pytest.approx(2.0, rel=0.01)
    assert (very_brief.directive, very_brief.open, very_brief.HasField("bound")) == ("L2", False, False)
    assert very_brief.why == "L2: closed, no quality bound for it yet"
    assert very_brief.predicted_grams == pytest.approx(5.0 * 0.15)


async def test_explain_holds_candidates_against_the_callers_floor(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await _open_l1(database, keeper, clock)
    client.grams_per_joule = None
    client.costs.observe(Cell(MODEL, "sums", "L0"), 10.0, 1.0)
    request = generation_pb2.GenerateRequest(task="sums", floor=0.98)
    reply = await client.policies.Explain(policies_pb2.ExplainRequest(request=request))
    _, brief, _ = reply.candidates
    assert (brief.open, brief.bound) == (False, 0.97)
    assert brief.why == "L1: closed, bound 0.970 is below the floor 0.980"
    assert not brief.HasField("predicted_grams")
    assert reply.decision.reason == generation_pb2.DECISION_REASON_NONE_OPEN


async def test_explain_of_a_stale_bound(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await _open_l1(database, keeper, clock)
    await clock.advance(timedelta(days=8).total_seconds())
    request = generation_pb2.GenerateRequest(task="sums")
    reply = await client.policies.Explain(policies_pb2.ExplainRequest(request=request))
    assert [candidate.open for candidate in reply.candidates] == [True, False, False]
    assert "s old" in reply.candidates[1].why


async def test_explain_without_a_policy_or_a_model(client: AdminClient) -> None:
    admin = client.policies
    default = await admin.GetPolicy(policies_pb2.GetPolicyRequest(name="default"))
    await admin.DeletePolicy(policies_pb2.DeletePolicyRequest(name="default", etag=default.etag))
    reply = await admin.Explain(policies_pb2.ExplainRequest(request=generation_pb2.GenerateRequest(task="sums")))
    assert reply.decision.reason == generation_pb2.DECISION_REASON_NO_POLICY
    assert "tenant 'acme'" in reply.decision.explanation
    assert list(reply.candidates) == []
    unknown = policies_pb2.ExplainRequest(request=generation_pb2.GenerateRequest(model="huge"))
    await refused(admin.Explain(unknown), "NOT_FOUND", "RESOURCE_NOT_FOUND")
    odd = generation_pb2.GenerateRequest(floor=math.nan)
    assert set(await faults(admin.Explain(policies_pb2.ExplainRequest(request=odd)))) == {"floor"}


def energies(reply: policies_pb2.ExplainResponse) -> dict[str, float]:
    assert all(candidate.predicted_energy.source == energy_pb2.ENERGY_SOURCE_MODELLED for candidate in reply.candidates)
    return {candidate.directive: candidate.predicted_energy.joules for candidate in reply.candidates}


async def until(router: Running, holds: Callable[[policies_pb2.ExplainResponse], bool]) -> policies_pb2.ExplainResponse:
    """The explanation once it is so. Each turn is a call, during which the router hears from its engines and plans."""
    for _ in range(5_000):
        reply = await explained(router)
        if holds(reply):
            return reply
    raise AssertionError(f"it stayed {reply}")


async def test_it_says_which_energy_is_expected_and_what_that_rests_on(router: Running) -> None:
    await router.policy()
    nothing = await explained(router)
    assert not any(c.HasField("predicted_energy") or c.priced_by for c in nothing.candidates)
    await router.generation.Generate(ask())
    reply = await explained(router)
    assert energies(reply) == pytest.approx({"L0": 2.0, "L1": 0.448, "L2": 0.3})
    assert [candidate.priced_by for candidate in reply.candidates] == [
        "mean energy of 1 request",
        "22.4 % of the mean energy of L0's 1 request",
        "15 % of the mean energy of L0's 1 request",
    ]


@pytest.fixture
async def calibrated(engine: FakeEngine) -> FakeEngine:
    """Restarted with an energy model: 1 J an input token, 10 J / B an output token."""
    await engine.stop()
    engine.info.energy_model.CopyFrom(energy_model())
    await engine.start()
    return engine


async def test_a_calibrated_engine_prices_the_lengths_of_what_was_served(
    tmp_path: Path, calibrated: FakeEngine
) -> None:
    """Each answer reports 2 J, 5 input and as many output tokens as it has deltas."""
    async with running(tmp_path, {"e1": calibrated}) as router:
        await router.policy()
        for deltas in (2, 8):
            calibrated.script = answer(*"x" * deltas)
            await router.generation.Generate(ask())
        reply = await explained(router)
        assert energies(reply) == pytest.approx({"L0": 5 + 10 * 5, "L1": 5 + 10 * 0.224 * 5, "L2": 5 + 10 * 0.15 * 5})
        by = (
            "priced at a batch of 1, as no request was seen to run, by the calibration of 2025-11-20 "
            "(measured energies, held-out error 2.1 %)"
        )
        assert [candidate.priced_by for candidate in reply.candidates] == [
            f"lengths of 2 requests, {by}",
            f"lengths of L0's 2 requests with 22.4 % of their output tokens, {by}",
            f"lengths of L0's 2 requests with 15 % of their output tokens, {by}",
        ]
        baseline = reply.candidates[0]
        assert baseline.predicted_grams == pytest.approx(55 / 3.6e6 * 1.5 * 360 + 0.0005)

        await calibrated.report(running=4)
        reply = await until(router, lambda reply: energies(reply)["L0"] == pytest.approx(5 + 10 * 5 / 4))
        assert "priced at a batch of 4 by" in reply.candidates[0].priced_by


async def test_lengths_are_priced_where_no_energy_is_known(tmp_path: Path, calibrated: FakeEngine) -> None:
    calibrated.script = answer("a", "b", joules=None)
    async with running(tmp_path, {"e1": calibrated}) as router:
        await router.policy()
        await router.generation.Generate(ask())
        assert energies(await explained(router))["L0"] == pytest.approx(5 + 10 * 2)
        told = await decide(router, request_id="theirs")
        await router.generation.ReportOutcome(outcome(told))
        await router.generation.Generate(
            ask(evaluation=generation_pb2.EvaluationPurpose(sample_id="s", directive="L1"))
        )
        reply = await explained(router)
        assert "lengths of 1 request, priced" in reply.candidates[0].priced_by, "a caller's own engine teaches nothing"
        assert "lengths of L0's 1 request with" in reply.candidates[1].priced_by, "nor does evaluation"


async def test_what_was_served_before_a_restart_is_priced_after_it(tmp_path: Path, calibrated: FakeEngine) -> None:
    async with running(tmp_path, {"e1": calibrated}) as router:
        await router.policy()
        for deltas in (2, 8):
            calibrated.script = answer(*"x" * deltas, joules=None)
            await router.generation.Generate(ask())
        before = await explained(router)
        clock = router.clock
    async with running(tmp_path, {"e1": calibrated}, clock=clock) as router:
        after = await explained(router)
    assert energies(after)["L0"] == pytest.approx(5 + 10 * 5)
    assert list(after.candidates) == list(before.candidates)


async def test_a_calibration_is_in_the_plan_as_soon_as_its_engine_is_reached(
    tmp_path: Path, calibrated: FakeEngine
) -> None:
    """By the joules that were told, L1 is the dearer; by its lengths it is not. No time passes, so no timer plans."""
    calibrated.info.ClearField("energy_model")
    async with running(tmp_path, {"e1": calibrated}) as router:
        await router.policy(directives=["L1"])
        for open_, joules, deltas in ((False, 1.0, 9), (True, 200.0, 3)):
            calibrated.script = answer(*"x" * deltas, joules=joules)
            if open_:
                await router.open("L1")
            for _ in range(2 * PRIOR_REQUESTS):
                await router.generation.Generate(ask())
        await router.open("L1")
        await until(router, lambda reply: [one.planned_share for one in reply.candidates] == [1, 0])
        await calibrated.stop()
        calibrated.info.energy_model.CopyFrom(energy_model())
        await calibrated.start()
        await until(router, lambda reply: reply.candidates[1].planned_share == 1)


async def test_a_model_that_is_nonsense_prices_nothing(tmp_path: Path, calibrated: FakeEngine) -> None:
    calibrated.info.energy_model.output_shared_joules = float("nan")
    async with running(tmp_path, {"e1": calibrated}) as router:
        await router.policy()
        await router.open("L1")
        await router.generation.Generate(ask())
        reply = await explained(router)
    assert (reply.candidates[1].priced_by, reply.candidates[1].planned_share) == ("mean energy of 1 request", 1)
