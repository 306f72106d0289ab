"""Decisions within a quality budget: whatever is drawn, the mean of what is surely kept is what was granted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.router.v1 import policies_pb2

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.decide import Decision, Facts, Reason, decide
from router.directives.levels import L0, SEEDED
from router.directives.policy import BudgetScope, CarbonBudget, Mode, Policy, QualityBudget
from router.optimizer.grants import Standing
from router.optimizer.plan import Entry, Plan
from tests.router.running import Running, ask

pb: Any = policies_pb2
NOW = datetime(2026, 1, 1, 12, 10, tzinfo=UTC)
MODEL = "m@1"
BY_TASK = Policy(
    "p", "acme", "qa", Mode.ON, directives=("L1", "L2"), holdback_share=0.0, quality_budget=QualityBudget(0.8)
)
OVER_DAY = replace(BY_TASK, quality_budget=QualityBudget(0.8, BudgetScope.DAY))
FACTS = Facts("acme", "qa", MODEL, "conversation", "request")
DRAWS = 400
THIRD = (("L2", 1 / 3), ("L0", 2 / 3))


def held(
    policy: Policy,
    bounds: Mapping[str, float],
    shares: Sequence[tuple[str, float]] = THIRD,
    *,
    floor: float = 0.95,
    made_at: datetime = NOW,
    standing: Standing | None = None,
    own: Mapping[str, float] | None = None,
) -> Snapshot:
    """A plan, and the bounds of now: those of tenant acme alone in `own`."""
    known = [
        QualityBound(Cell(MODEL, "qa", name, tenant), lower, 1.2, 1.0, lower, 100, "judge", "1", NOW)
        for tenant, of in (("", bounds), ("acme", own or {}))
        for name, lower in of.items()
    ]
    entry = Entry(tuple(shares), ("L2", "L1", "L0"), floor=floor, policy_revision=policy.revision)
    budgets = {} if standing is None else {"p": standing}
    plan = Plan({("p", MODEL, "qa"): entry}, made_at, budgets=budgets)
    return Snapshot({d.name: d for d in (L0, *SEEDED)}, (policy,), {b.cell: b for b in known}, plan)


def decisions(snapshot: Snapshot, facts: Facts = FACTS, now: datetime = NOW) -> list[Decision]:
    """One of each of DRAWS equal parts of what conversations draw."""

    def drawn(draw: float) -> Decision:
        with patch("router.directives.decide.uniform", lambda purpose, *_: draw if purpose == "level" else 0.5):
            return decide(facts, snapshot, now)

    return [drawn((number + 0.5) / DRAWS) for number in range(DRAWS)]


def mix(snapshot: Snapshot, facts: Facts = FACTS, now: datetime = NOW) -> dict[str, float]:
    counts = Counter(decision.directive.name for decision in decisions(snapshot, facts, now))
    return {name: count / DRAWS for name, count in counts.items()}


def near(**shares: float) -> Any:
    return pytest.approx(shares, abs=2 / DRAWS)


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).filter(lambda shares: sum(shares) <= 1),
    st.fixed_dictionaries({"L1": st.floats(0.5, 1.1), "L2": st.floats(0.5, 1.1)}),
    st.floats(0.7, 1.1),
    st.sampled_from((BY_TASK, OVER_DAY)),
    st.booleans(),
    st.sampled_from((None, 0.5, 0.9, 0.97)),
)
def test_whatever_was_planned_what_is_served_keeps_what_is_granted(
    shares: tuple[float, float],
    bounds: dict[str, float],
    granted: float,
    policy: Policy,
    hour_has_ended: bool,
    own_floor: float | None,
) -> None:
    """Beyond L0's quality no less of the directives would keep more: L0's is kept then."""
    snapshot = held(policy, bounds, [*zip(("L1", "L2"), shares, strict=True), ("L0", 1 - sum(shares))], floor=granted)
    now = NOW + timedelta(hours=hour_has_ended)
    served = mix(snapshot, replace(FACTS, floor=own_floor), now)
    least = granted if policy is OVER_DAY and not hour_has_ended else policy.floor
    kept = sum(share * {"L0": 1.0, **bounds}[name] for name, share in served.items())
    assert kept >= min(least, 1.0) - 2 / DRAWS
    assert all(name == "L0" or bounds[name] >= max(0.8, own_floor or 0.0) for name in served)
    for name, planned in zip(("L1", "L2"), shares, strict=True):
        assert served.get(name, 0.0) <= planned + 2 / DRAWS, "never more than was planned"


def test_what_the_plan_mixes_is_served() -> None:
    found = decisions(held(BY_TASK, {"L2": 0.85}))
    assert Counter(decision.directive.name for decision in found) == {"L2": 133, "L0": 267}
    for decision in found:
        assert (decision.reason, decision.eligible, decision.floor) == (Reason.PLANNED, True, 0.8)
        assert decision.bound == (0.85 if decision.directive.name == "L2" else None)
        assert decision.planned == decision.directive.name
    assert {decision.explanation for decision in found} == {
        "L2: of the mix of least carbon whose mean keeps the floor",
        "the plan leaves this conversation at L0",
    }


def test_a_bound_that_fell_since_the_plan_shrinks_the_shares() -> None:
    assert mix(held(BY_TASK, {"L2": 0.81})) == near(L2=0.05 / 0.19, L0=1 - 0.05 / 0.19)
    both = [("L1", 0.5), ("L2", 0.2), ("L0", 0.3)]
    assert mix(held(BY_TASK, {"L1": 0.96, "L2": 0.85}, both)) == near(L1=0.5, L2=0.2, L0=0.3)
    lost = 0.5 * 0.1 + 0.2 * 0.15
    assert mix(held(BY_TASK, {"L1": 0.90, "L2": 0.85}, both)) == near(
        L1=0.5 * 0.05 / lost, L2=0.2 * 0.05 / lost, L0=1 - 0.7 * 0.05 / lost
    )


def test_a_floor_that_was_raised_holds_before_the_next_plan() -> None:
    """What was granted was so by another floor."""
    before = held(OVER_DAY, {"L2": 0.85}, [("L2", 1.0)], floor=0.85)
    assert mix(before) == {"L2": 1.0}
    raised = replace(OVER_DAY, floor=0.97, revision=2)
    assert mix(replace(before, policies=(raised,))) == near(L2=0.2, L0=0.8)


def test_a_bound_that_rose_waits_for_the_next_plan() -> None:
    assert mix(held(BY_TASK, {"L2": 0.99})) == near(L2=1 / 3, L0=2 / 3)


def test_what_closed_since_the_plan_falls_to_l0_and_not_to_others() -> None:
    both = [("L1", 0.5), ("L2", 0.2), ("L0", 0.3)]
    assert mix(held(BY_TASK, {"L1": 0.96, "L2": 0.79}, both)) == near(L1=0.5, L0=0.5)
    found = decisions(held(BY_TASK, {"L1": 0.96, "L2": 0.79}))
    assert {decision.reason for decision in found} == {Reason.NONE_OPEN}


def test_a_tenants_own_lower_bound_shrinks_what_was_planned_by_that_of_all() -> None:
    assert mix(held(BY_TASK, {"L2": 0.85}, own={"L2": 0.82})) == near(L2=0.05 / 0.18, L0=1 - 0.05 / 0.18)


def test_a_callers_own_floor_is_kept_by_each_directive() -> None:
    both = [("L1", 0.5), ("L2", 0.2), ("L0", 0.3)]
    snapshot = held(BY_TASK, {"L1": 0.97, "L2": 0.85}, both)
    assert mix(snapshot, replace(FACTS, floor=0.95)) == near(L1=0.5, L0=0.5)
    assert mix(snapshot, replace(FACTS, floor=0.98)) == {"L0": 1.0}
    assert mix(snapshot, replace(FACTS, floor=0.3)) == near(L1=0.5, L2=0.2, L0=0.3)
    assert decide(replace(FACTS, floor=0.96), snapshot, NOW).floor == 0.96


def test_a_conversation_keeps_its_level_while_the_plan_stands() -> None:
    snapshot = held(BY_TASK, {"L2": 0.85})
    for number in range(50):
        facts = replace(FACTS, key=f"conversation-{number}")
        served = {
            decide(replace(facts, request_id=str(turn)), snapshot, NOW + timedelta(minutes=turn)).directive.name
            for turn in range(20)
        }
        assert len(served) == 1


def test_shares_that_shrink_take_conversations_to_l0_alone() -> None:
    before, after = held(BY_TASK, {"L2": 0.85}), held(BY_TASK, {"L2": 0.81})
    for number in range(200):
        facts = replace(FACTS, key=f"conversation-{number}")
        if decide(facts, before, NOW).directive is L0:
            assert decide(facts, after, NOW).directive is L0


def test_what_a_day_grants_holds_for_the_hour_that_it_was_reckoned_for() -> None:
    snapshot = held(OVER_DAY, {"L2": 0.85}, [("L2", 1.0)], floor=0.85)
    for minutes in (0, 49):
        assert mix(snapshot, now=NOW + timedelta(minutes=minutes)) == {"L2": 1.0}
    for hours in (1, 24):
        assert mix(snapshot, now=NOW + timedelta(hours=hours)) == near(L2=1 / 3, L0=2 / 3)


def test_what_a_day_asks_beyond_the_floor_is_kept() -> None:
    snapshot = held(OVER_DAY, {"L2": 0.85}, [("L2", 0.1), ("L0", 0.9)], floor=0.985)
    assert mix(snapshot) == near(L2=0.1, L0=0.9)
    assert mix(held(OVER_DAY, {"L2": 0.81}, [("L2", 0.1), ("L0", 0.9)], floor=0.985)) == near(
        L2=0.015 / 0.19, L0=1 - 0.015 / 0.19
    )
    assert mix(held(OVER_DAY, {"L2": 0.85}, [("L2", 0.5), ("L0", 0.5)], floor=1.0)) == {"L0": 1.0}


def test_what_a_day_asks_beyond_l0s_quality_is_served_and_told() -> None:
    both = [("L1", 0.8), ("L2", 0.2)]
    snapshot = held(OVER_DAY, {"L1": 1.03, "L2": 0.96}, both, floor=1.016)
    assert mix(snapshot) == near(L1=0.8, L2=0.2)
    assert "quality budget of the day (UTC): the mean of this task's requests keeps 1.016 at present" in " ".join(
        decide(FACTS, snapshot, NOW).steps
    )
    # Less than was asked for, and still no less than L0's quality.
    assert mix(held(OVER_DAY, {"L1": 1.015, "L2": 0.96}, both, floor=1.016)) == near(L1=0.8, L2=0.2)
    for fallen in ({"L1": 1.005, "L2": 0.96}, {"L1": 0.97, "L2": 0.96}, {"L1": 0.7, "L2": 0.96}):
        assert mix(held(OVER_DAY, fallen, both, floor=1.016)) == {"L0": 1.0}
    hour_later = NOW + timedelta(hours=1)
    assert mix(held(OVER_DAY, {"L1": 0.97, "L2": 0.96}, both, floor=1.016), now=hour_later) == near(L1=0.8, L2=0.2)


@pytest.mark.parametrize("mode", [Mode.ON, Mode.SHADOW])
def test_a_spent_carbon_budget_goes_by_the_policys_floor_whatever_is_asked_beyond_l0s_quality(mode: Mode) -> None:
    policy = replace(OVER_DAY, mode=mode, carbon_budget=CarbonBudget(10.0))
    snapshot = held(policy, {"L1": 1.03, "L2": 0.96}, [("L1", 1.0)], floor=1.03)
    assert decide(FACTS, snapshot, NOW, lambda _: 10.0).planned == "L2"
    assert decide(FACTS, snapshot, NOW).planned == "L1"


def test_a_spent_carbon_budget_leaves_what_keeps_the_floor_by_itself() -> None:
    policy = replace(BY_TASK, carbon_budget=CarbonBudget(10.0))

    def tightened(**bounds: float) -> Decision:
        return decide(FACTS, held(policy, bounds), NOW, lambda _: 10.0)

    assert (tightened(L1=0.95, L2=0.94).directive.name, tightened(L1=0.95, L2=0.94).reason) == (
        "L1",
        Reason.BUDGET_SPENT,
    )
    mixed = tightened(L1=0.9, L2=0.85)
    assert (mixed.directive, mixed.reason) == (L0, Reason.NONE_OPEN)
    assert mixed.explanation == "no directive keeps the floor by itself"


def test_shadow_and_hold_back_draw_from_the_mix_and_serve_l0() -> None:
    shadow = decisions(held(replace(BY_TASK, mode=Mode.SHADOW), {"L2": 0.85}))
    assert {(decision.directive.name, decision.reason) for decision in shadow} == {("L0", Reason.SHADOW)}
    back = decisions(held(replace(BY_TASK, holdback_share=1.0), {"L2": 0.85}))
    assert {(decision.directive.name, decision.reason) for decision in back} == {("L0", Reason.HOLDBACK)}
    for found in (shadow, back):
        assert Counter(decision.planned for decision in found) == {"L2": 133, "L0": 267}


def step(policy: Policy, **fields: Any) -> str:
    (found,) = [s for s in decide(FACTS, held(policy, {"L2": 0.85}, **fields), NOW).steps if s.startswith("quality")]
    return found


def test_the_budget_is_a_step_of_the_explanation() -> None:
    assert step(BY_TASK) == "quality budget: the mean of the task's requests keeps 0.950"
    assert step(OVER_DAY) == (
        "quality budget of the day (UTC): the mean of this task's requests keeps 0.950 at present, as too little is "
        "known of the day's requests to grant less"
    )
    day = "quality budget of the day (UTC): the mean of this task's requests keeps "
    first = Standing(0, None, 0.1, True)
    assert (
        step(OVER_DAY, standing=first, floor=0.85)
        == f"{day}0.850 at present; so far no request yet, of a floor of 0.950"
    )
    overdrawn = Standing(1_200, 0.93, float("inf"), False)
    assert step(OVER_DAY, standing=overdrawn, floor=1.0, shares=[("L0", 1.0)]) == (
        f"{day}1.000 at present; so far 1,200 requests kept 0.930, of a floor of 0.950, and it is not expected to be "
        "kept"
    )


def test_a_policy_without_a_budget_says_nothing_of_one() -> None:
    policy = replace(BY_TASK, quality_budget=None)
    decision = decide(FACTS, held(policy, {"L2": 0.96}, [("L2", 1.0)]), NOW)
    assert decision.directive.name == "L2"
    assert not any("quality budget" in step for step in decision.steps)
    assert decision.floor == 0.95


CONVERSATIONS = 300


async def answered(router: Running, **fields: Any) -> list[Any]:
    return [
        (await router.generation.Generate(ask(conversation_id=f"conversation-{number}", **fields))).started.decision
        for number in range(CONVERSATIONS)
    ]


@pytest.mark.parametrize("scope", [pb.QualityBudget.SCOPE_TASK, pb.QualityBudget.SCOPE_DAY])
async def test_a_router_serves_the_mix_and_explains_it(scope: Any, router: Running) -> None:
    """Over a day as well: of the engine's requests no energy is known, so that each task keeps the floor."""
    await router.policy(quality_budget=pb.QualityBudget(directive_floor=0.8, scope=scope))
    await router.open("L2", lower=0.85)
    found = await answered(router)
    shares = Counter(decision.directive for decision in found)
    # A binomial of 300 at a third has a deviation of 8.
    assert shares.keys() == {"L0", "L2"}
    assert 65 < shares["L2"] < 135
    for decision in found:
        assert decision.floor == 0.8
        assert decision.HasField("bound") == (decision.directive == "L2")
    again = await answered(router, task="qa")
    assert [decision.directive for decision in again] == [decision.directive for decision in found]
    reply = await router.policies.Explain(pb.ExplainRequest(request=ask(conversation_id="conversation-1")))
    assert reply.decision.directive == found[1].directive
    assert [step for step in reply.steps if step.startswith("quality budget")]
    assert "plan: L2 33%, L0 67%" in reply.steps
    assert {c.directive: (c.open, round(c.planned_share, 3)) for c in reply.candidates} == {
        "L0": (True, 0.667),
        "L1": (False, 0.0),
        "L2": (True, 0.333),
    }
    assert {decision.directive for decision in await answered(router, floor=0.9)} == {"L0"}
