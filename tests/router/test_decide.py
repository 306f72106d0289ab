"""Which directive a request gets, and why: unknown, stale or closed always means L0."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.estimates import Cell, FloorKind, QualityBound
from router.directives.assign import uniform
from router.directives.decide import Facts, Reason, Snapshot, decide
from router.directives.levels import L0, SEEDED
from router.directives.policy import Mode, Policy
from router.optimizer.plan import Plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "m@1"
POLICY = Policy("p", "acme", "qa", Mode.ON, floor=0.95, directives=("L1", "L2"), holdback_share=0.0)
FACTS = Facts("acme", "qa", MODEL, "conversation", "request")


def bound(directive: str, lower: float = 0.97, **fields: object) -> QualityBound:
    made = QualityBound(Cell(MODEL, "qa", directive), lower, 1.0, 0.99, lower, 100, "judge", "1", NOW)
    return replace(made, **fields)


def snapshot(
    *bounds: QualityBound,
    policies: tuple[Policy, ...] = (POLICY,),
    shares: tuple[tuple[str, float], ...] = (("L1", 1.0),),
    **directives: object,
) -> Snapshot:
    known = {directive.name: directive for directive in (L0, *SEEDED)} | directives
    return Snapshot(known, policies, {b.cell: b for b in bounds}, Plan({("p", MODEL, "qa"): shares}, NOW))


def test_the_plan_is_served_where_the_bound_clears_the_floor() -> None:
    decision = decide(FACTS, snapshot(bound("L1")), NOW)
    assert (decision.directive.name, decision.reason) == ("L1", Reason.PLANNED)
    assert (decision.policy, decision.bound, decision.floor) == (POLICY, 0.97, 0.95)
    assert decision.eligible


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ([], "no quality bound"),
        ([bound("L1", 0.9499)], "below the floor"),
        ([bound("L1", updated_at=NOW - timedelta(seconds=POLICY.bound_max_age_seconds + 1))], "s old"),
        ([bound("L1", revision="2")], "revision 2"),
        ([bound("L1", samples=0)], "no sample"),
        ([bound("L2")], "no quality bound"),
        ([bound("L1", cell=Cell("m@2", "qa", "L1"))], "no quality bound"),
        ([bound("L1", cell=Cell(MODEL, "other", "L1"))], "no quality bound"),
    ],
)
def test_unknown_stale_or_closed_means_l0(held: list[QualityBound], why: str) -> None:
    decision = decide(FACTS, snapshot(*held), NOW)
    assert (decision.directive, decision.reason) == (L0, Reason.NONE_OPEN)
    assert not decision.eligible
    assert any(step.startswith("L1: closed") and why in step for step in decision.steps)


def test_a_bound_that_equals_the_floor_or_the_greatest_age_still_opens() -> None:
    edge = bound("L1", 0.95, updated_at=NOW - timedelta(seconds=POLICY.bound_max_age_seconds))
    assert decide(FACTS, snapshot(edge), NOW).directive.name == "L1"


def test_a_deleted_directive_is_not_served() -> None:
    held = snapshot(bound("L1"))
    decision = decide(FACTS, replace(held, directives={"L0": L0}), NOW)
    assert decision.directive is L0


def test_what_has_closed_since_the_plan_was_made_falls_to_l0() -> None:
    """Its share, not the others': what is left of the plan stays as it was."""
    held = snapshot(bound("L1"), shares=(("L1", 0.5), ("L2", 0.5)))
    served = {
        key: decide(replace(FACTS, key=key), held, NOW).directive.name for key in (f"c{index}" for index in range(200))
    }
    assert served == {key: "L1" if uniform("level", "p", key) < 0.5 else "L0" for key in served}


def test_an_absolute_floor_is_held_against_the_absolute_bound() -> None:
    policy = replace(POLICY, floor=0.8, floor_kind=FloorKind.ABSOLUTE)
    held = bound("L1", 0.99, absolute_lower=0.79)
    assert decide(FACTS, snapshot(held, policies=(policy,)), NOW).directive is L0
    held = bound("L1", 0.1, absolute_lower=0.81)
    assert decide(FACTS, snapshot(held, policies=(policy,)), NOW).directive.name == "L1"


@pytest.mark.parametrize(
    ("facts", "policy", "reason"),
    [
        (replace(FACTS, tenant="other"), POLICY, Reason.NO_POLICY),
        (replace(FACTS, task="other"), POLICY, Reason.NO_POLICY),
        (FACTS, replace(POLICY, mode=Mode.OFF), Reason.MODE_OFF),
        (replace(FACTS, opt_out=True), POLICY, Reason.OPT_OUT),
        (FACTS, replace(POLICY, traffic_share=0.0), Reason.OUTSIDE_SHARE),
        (replace(FACTS, floor=0.98), POLICY, Reason.NONE_OPEN),
        (FACTS, replace(POLICY, mode=Mode.SHADOW), Reason.SHADOW),
        (FACTS, replace(POLICY, holdback_share=1.0), Reason.HOLDBACK),
    ],
)
def test_reasons_to_serve_without(facts: Facts, policy: Policy, reason: Reason) -> None:
    decision = decide(facts, snapshot(bound("L1"), policies=(policy,)), NOW)
    assert (decision.directive, decision.reason) == (L0, reason)
    assert decision.planned == ("L1" if reason in (Reason.SHADOW, Reason.HOLDBACK) else "L0")
    assert decision.eligible == (reason is Reason.HOLDBACK)
    assert decision.explanation == decision.steps[-1] != ""


def test_a_callers_lower_floor_has_no_effect() -> None:
    assert decide(replace(FACTS, floor=0.1), snapshot(bound("L1", 0.94)), NOW).directive is L0


def test_the_most_specific_policy_wins() -> None:
    named = {
        name: replace(POLICY, name=name, tenant=tenant, task=task, mode=Mode.OFF)
        for name, tenant, task in (("none", "", ""), ("task", "", "qa"), ("tenant", "acme", ""), ("both", "acme", "qa"))
    }
    order = ["both", "tenant", "task", "none"]
    for index, name in enumerate(order):
        left = tuple(named[other] for other in reversed(order[index:]))
        decision = decide(FACTS, snapshot(policies=left), NOW)
        assert decision.policy is not None and decision.policy.name == name


def test_hold_back_is_drawn_by_request_and_the_level_by_conversation() -> None:
    policy = replace(POLICY, holdback_share=0.5)
    held = snapshot(bound("L1"), policies=(policy,))
    reasons = {decide(replace(FACTS, request_id=str(index)), held, NOW).reason for index in range(50)}
    assert reasons == {Reason.PLANNED, Reason.HOLDBACK}
    mixed = snapshot(bound("L1"), shares=(("L1", 0.5), ("L0", 0.5)))
    assert len({decide(replace(FACTS, request_id=str(index)), mixed, NOW).directive for index in range(50)}) == 1
    assert len({decide(replace(FACTS, key=str(index)), mixed, NOW).directive.name for index in range(50)}) == 2


levels = st.sampled_from(["L1", "L2"])


@given(
    lowers=st.dictionaries(levels, st.floats(0, 1), max_size=2),
    floor=st.floats(0.01, 1),
    ages=st.dictionaries(levels, st.integers(0, 2_000_000), max_size=2),
    share=st.floats(0, 1),
    key=st.text("ab", min_size=1, max_size=4),
    own=st.one_of(st.none(), st.floats(0.01, 1)),
)
def test_nothing_below_any_floor_is_ever_served(
    lowers: dict[str, float], floor: float, ages: dict[str, int], share: float, key: str, own: float | None
) -> None:
    bounds = [
        bound(name, lower, updated_at=NOW - timedelta(seconds=ages.get(name, 0))) for name, lower in lowers.items()
    ]
    policy = replace(POLICY, floor=floor)
    held = snapshot(*bounds, policies=(policy,), shares=(("L1", share), ("L2", 1 - share)))
    decision = decide(replace(FACTS, key=key, floor=own), held, NOW)
    name = decision.directive.name
    if name != "L0":
        assert lowers[name] >= max(floor, own or 0)
        assert ages.get(name, 0) <= policy.bound_max_age_seconds
        assert decision.bound == lowers[name]
