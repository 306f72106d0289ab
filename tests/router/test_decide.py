"""Which directive a request gets, and why: unknown, stale or closed always means L0."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.bound import BoundMethod, Cell, FloorKind, QualityBound
from router.directives.assign import uniform
from router.directives.bounds import Snapshot
from router.directives.decide import Facts, Reason, Spent, decide, refuses
from router.directives.levels import L0, SEEDED
from router.directives.policy import CarbonBudget, LatencyObjective, Mode, Policy, Trait, WhenSpent
from router.optimizer.plan import Entry, Plan

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
    by_carbon: tuple[str, ...] = ("L2", "L1", "L0"),
    late_share: float | None = None,
) -> Snapshot:
    known = {directive.name: directive for directive in (L0, *SEEDED)}
    plan = Plan({("p", MODEL, "qa"): Entry(shares, by_carbon, late_share)}, NOW)
    return Snapshot(known, policies, {b.cell: b for b in bounds}, plan)


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
        (replace(FACTS, traits=frozenset({Trait.OPT_OUT})), POLICY, Reason.OPT_OUT),
        (replace(FACTS, traits=frozenset({Trait.CODE})), POLICY, Reason.LEFT_ALONE),
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


@pytest.mark.parametrize("trait", [trait for trait in Trait if trait is not Trait.OPT_OUT])
def test_a_trait_is_left_alone_where_the_policy_says_so(trait: Trait) -> None:
    facts = replace(FACTS, traits=frozenset({trait}))
    decision = decide(facts, snapshot(bound("L1"), policies=(replace(POLICY, leave_alone=frozenset({trait})),)), NOW)
    assert (decision.directive, decision.reason) == (L0, Reason.LEFT_ALONE)
    assert trait.value in decision.explanation
    others = replace(POLICY, leave_alone=frozenset(Trait) - {trait})
    decision = decide(facts, snapshot(bound("L1"), policies=(others,)), NOW)
    assert (decision.directive.name, decision.reason) == ("L1", Reason.PLANNED)
    assert any(trait.value in step and "no effect" in step for step in decision.steps)


def test_a_policy_may_let_nobody_opt_out() -> None:
    policy = replace(POLICY, leave_alone=frozenset({Trait.CODE}))
    decision = decide(replace(FACTS, traits=frozenset({Trait.OPT_OUT})), snapshot(bound("L1"), policies=(policy,)), NOW)
    assert (decision.directive.name, decision.reason) == ("L1", Reason.PLANNED)
    assert any("opt_out" in step and "no effect" in step for step in decision.steps)


def test_who_opts_out_is_told_so_whatever_else_the_request_shows() -> None:
    decision = decide(replace(FACTS, traits=frozenset(Trait)), snapshot(bound("L1")), NOW)
    assert decision.reason is Reason.OPT_OUT


TIGHT = replace(POLICY, carbon_budget=CarbonBudget(5.0))
STRICT = replace(POLICY, carbon_budget=CarbonBudget(5.0, WhenSpent.REFUSE))


def spends(grams: float) -> Spent:
    return {"p": grams}.__getitem__


def test_the_steps_tell_of_the_decision_however_late_they_are_read() -> None:
    spent = {"p": 4.999}
    held = snapshot(bound("L1"), bound("L2", 0.5), policies=(TIGHT,))
    decision = decide(FACTS, held, NOW, spent.__getitem__)
    spent["p"] = 9.0
    at_once = decide(FACTS, held, NOW, spends(4.999)).steps
    assert decision.steps == decision.steps == at_once
    assert [step[:9] for step in at_once if step[0] == "L"] == ["L1: open,", "L2: close", "L1: least"]


def test_until_the_budget_is_spent_it_changes_nothing() -> None:
    held = snapshot(bound("L1"), bound("L2"), policies=(TIGHT,))
    decision = decide(FACTS, held, NOW, spends(4.999))
    assert (decision.directive.name, decision.reason, decision.eligible) == ("L1", Reason.PLANNED, True)
    assert any("4.999 g of 5 g" in step for step in decision.steps)


@pytest.mark.parametrize(
    "policy",
    [
        TIGHT,
        replace(TIGHT, traffic_share=0.0),
        replace(TIGHT, holdback_share=1.0),
    ],
    ids=["plan", "share", "hold-back"],
)
def test_a_spent_budget_takes_the_least_carbon_of_what_is_open(policy: Policy) -> None:
    shares = (("L0", 1.0),)
    decision = decide(FACTS, snapshot(bound("L1"), bound("L2"), policies=(policy,), shares=shares), NOW, spends(5.0))
    assert (decision.directive.name, decision.reason) == ("L2", Reason.BUDGET_SPENT)
    assert (decision.planned, decision.bound, decision.floor) == ("L2", 0.97, 0.95)
    assert not decision.eligible, "none is held back to compare it with"
    decision = decide(FACTS, snapshot(bound("L1"), policies=(policy,), shares=shares), NOW, spends(5.0))
    assert (decision.directive.name, decision.reason) == ("L1", Reason.BUDGET_SPENT)


def test_a_spent_budget_opens_nothing() -> None:
    for held in (snapshot(bound("L1", 0.94), policies=(TIGHT,)), snapshot(policies=(TIGHT,))):
        decision = decide(FACTS, held, NOW, spends(9.0))
        assert (decision.directive, decision.reason) == (L0, Reason.NONE_OPEN)
    own = replace(FACTS, floor=0.98)
    assert decide(own, snapshot(bound("L1"), policies=(TIGHT,)), NOW, spends(9.0)).reason is Reason.NONE_OPEN
    alone = replace(FACTS, traits=frozenset({Trait.TOOLS}))
    assert decide(alone, snapshot(bound("L1"), policies=(TIGHT,)), NOW, spends(9.0)).reason is Reason.LEFT_ALONE


def test_where_every_open_directive_is_dearer_a_spent_budget_stays_at_l0() -> None:
    held = snapshot(bound("L1"), policies=(TIGHT,), by_carbon=("L2", "L0", "L1"))
    decision = decide(FACTS, held, NOW, spends(9.0))
    assert (decision.directive, decision.reason, decision.bound) == (L0, Reason.BUDGET_SPENT, None)


def test_what_the_plan_has_no_order_for_yet_stays_at_l0() -> None:
    decision = decide(FACTS, snapshot(bound("L1"), policies=(TIGHT,), by_carbon=()), NOW, spends(9.0))
    assert (decision.directive, decision.reason) == (L0, Reason.NONE_OPEN)


def test_in_shadow_a_spent_budget_is_only_recorded() -> None:
    shadow = replace(TIGHT, mode=Mode.SHADOW, traffic_share=0.0)
    decision = decide(FACTS, snapshot(bound("L1"), bound("L2"), policies=(shadow,)), NOW, spends(9.0))
    assert (decision.directive, decision.reason, decision.planned) == (L0, Reason.SHADOW, "L2")
    shadow = replace(STRICT, mode=Mode.SHADOW)
    decision = decide(FACTS, snapshot(bound("L1"), policies=(shadow,)), NOW, spends(9.0))
    assert (decision.reason, decision.planned, decision.refused) == (Reason.SHADOW, "L1", False)
    assert any("would be refused" in step for step in decision.steps)
    assert not refuses(shadow, spends(9.0))


def test_a_budget_that_refuses() -> None:
    held = snapshot(bound("L1"), policies=(STRICT,))
    decision = decide(FACTS, held, NOW, spends(5.0))
    assert (decision.directive, decision.reason, decision.refused) == (L0, Reason.BUDGET_SPENT, True)
    assert refuses(STRICT, spends(5.0))
    assert not refuses(STRICT, spends(4.9)) and not decide(FACTS, held, NOW, spends(4.9)).refused
    off = replace(STRICT, mode=Mode.OFF)
    assert not refuses(off, spends(5.0))
    assert decide(FACTS, snapshot(policies=(off,)), NOW, spends(5.0)).reason is Reason.MODE_OFF


@pytest.mark.parametrize(
    ("late_share", "said"),
    [
        (None, "it has no effect yet"),
        (0.02, "the plan expects 0.98"),
        (0.3, "the plan expects 0.7, as near as a mix of what is open comes"),
    ],
)
def test_the_latency_objective_is_among_the_steps(late_share: float | None, said: str) -> None:
    policy = replace(POLICY, latency=LatencyObjective(2.5, 0.95))
    decision = decide(FACTS, snapshot(bound("L1"), policies=(policy,), late_share=late_share), NOW)
    (step,) = [step for step in decision.steps if step.startswith("latency:")]
    assert step.startswith("latency: 0.95 of answers within 2.5 s") and step.endswith(said)


OWN = Cell(MODEL, "qa", "L1", "acme")
EVERYBODY = replace(POLICY, tenant="")


@pytest.mark.parametrize(
    ("own", "common", "floor", "served", "said"),
    [
        (bound("L1", 0.96, cell=OWN), [], 0.95, "L0", "closed, no quality bound"),
        (bound("L1", 0.96, cell=OWN), [bound("L1", 0.5)], 0.95, "L1", "tenant acme's own bound 0.960 clears the floor"),
        (
            bound("L1", 0.5, cell=OWN, upper=0.94),
            [bound("L1")],
            0.95,
            "L0",
            "closed, tenant acme's own bound says at most 0.940, below the floor 0.950",
        ),
        (bound("L1", 0.5, cell=OWN, upper=0.95), [bound("L1")], 0.95, "L1", "open, bound 0.970 clears"),
        (bound("L1", 0.9, cell=OWN), [bound("L1")], 0.95, "L1", "open, bound 0.970 clears"),
        (bound("L1", 0.9, cell=OWN), [bound("L1", 0.94)], 0.95, "L0", "closed, bound 0.940 is below"),
        (bound("L1", 0.9, cell=OWN), [bound("L1", 0.9496)], 0.95, "L0", "bound 0.9496 is below the floor 0.950"),
        (bound("L1", 0.9504, cell=OWN), [bound("L1", 0.5)], 0.95, "L1", "own bound 0.9504 clears the floor 0.950"),
        (bound("L1", 0.95, cell=OWN), [bound("L1", 0.5)], 0.95, "L1", "own bound 0.950 clears the floor 0.950"),
        (bound("L1", 0.5, cell=OWN, upper=0.94996), [], 0.95, "L0", "says at most 0.94996, below the floor 0.950"),
        (bound("L1", 0.9, cell=OWN), [], 0.95, "L0", "closed, no quality bound"),
        (bound("L1", 0.96, cell=OWN, revision="2"), [], 0.95, "L0", "closed, no quality bound"),
        (bound("L1", 0.5, cell=OWN, upper=0.9, revision="2"), [bound("L1")], 0.95, "L1", "open, bound 0.970"),
        (bound("L1", 0.96, cell=OWN, updated_at=NOW - timedelta(days=8)), [], 0.95, "L0", "no quality bound"),
        (
            bound("L1", 0.5, cell=OWN, upper=0.9, updated_at=NOW - timedelta(days=8)),
            [bound("L1")],
            0.95,
            "L1",
            "open, bound 0.970",
        ),
        (bound("L1", 0.5, cell=OWN, upper=0.9, samples=0), [bound("L1")], 0.95, "L1", "open, bound 0.970"),
        (bound("L1", 0.5, cell=replace(OWN, tenant="beta"), upper=0.9), [bound("L1")], 0.95, "L1", "open, bound 0.970"),
        # A caller's own floor is held against whatever bound decides at it.
        (bound("L1", 0.5, cell=OWN, upper=0.96), [bound("L1", 0.99)], 0.97, "L0", "says at most 0.960"),
        (bound("L1", 0.975, cell=OWN), [bound("L1", 0.96)], 0.97, "L1", "own bound 0.975 clears the floor 0.970"),
    ],
)
@pytest.mark.parametrize("policy", [POLICY, EVERYBODY], ids=["the tenant's", "everybody's"])
def test_a_tenants_own_bound_decides_where_it_tells(
    policy: Policy, own: QualityBound, common: list[QualityBound], floor: float, served: str, said: str
) -> None:
    decision = decide(replace(FACTS, floor=floor), snapshot(own, *common, policies=(policy,)), NOW)
    assert decision.directive.name == served
    assert said in next(step for step in decision.steps if step.startswith("L1: "))
    if served == "L1":
        assert decision.bound == (own.lower if "own" in said else common[0].lower)


@pytest.mark.parametrize(
    ("fields", "opens"),
    [
        ({}, True),
        ({"since": NOW}, True),
        # The judge that counts is another one; the tenant's bound has been withdrawn by nobody.
        ({"judge": "another"}, False),
        ({"method": BoundMethod.LENGTH_CORRECTED}, False),
        # All tenants' epoch ended since, by a drop or another mix of requests, and nobody tells of this tenant.
        ({"since": NOW + timedelta(seconds=1)}, False),
    ],
    ids=["same", "since", "judge", "method", "epoch"],
)
def test_a_tenants_own_bound_opens_only_on_the_ground_of_that_of_all(fields: dict[str, object], opens: bool) -> None:
    common = bound("L1", 0.5, **fields)
    assert (decide(FACTS, snapshot(bound("L1", cell=OWN), common), NOW).directive is not L0) is opens
    # What closes is believed, whatever it rests on.
    closed, opened = bound("L1", 0.5, cell=OWN, upper=0.9), bound("L1", **fields)
    assert decide(FACTS, snapshot(closed, opened), NOW).directive is L0


def test_a_tenants_own_bound_says_nothing_of_other_tenants() -> None:
    opened, closed = bound("L1", 0.99, cell=OWN), bound("L2", 0.5, cell=replace(OWN, directive="L2"), upper=0.9)
    beta = replace(FACTS, tenant="beta")
    assert decide(beta, snapshot(opened, policies=(EVERYBODY,)), NOW).directive is L0
    shares = (("L2", 1.0),)
    assert decide(FACTS, snapshot(closed, bound("L2"), policies=(EVERYBODY,), shares=shares), NOW).directive is L0
    assert decide(beta, snapshot(closed, bound("L2"), policies=(EVERYBODY,), shares=shares), NOW).directive.name == "L2"


def test_an_absolute_floor_is_held_against_a_tenants_mean_quality() -> None:
    policy = replace(POLICY, floor=0.9, floor_kind=FloorKind.ABSOLUTE)
    own = bound("L1", 0.99, cell=OWN, absolute_lower=0.4, absolute_upper=0.89)
    decision = decide(FACTS, snapshot(own, bound("L1"), policies=(policy,)), NOW)
    assert decision.directive is L0
    assert any("own bound says at most 0.890, below the floor 0.900" in step for step in decision.steps)
    open_to_doubt = replace(own, upper=0.8, absolute_upper=0.91)
    assert decide(FACTS, snapshot(open_to_doubt, bound("L1"), policies=(policy,)), NOW).directive.name == "L1"
    opened = replace(own, absolute_lower=0.92)
    assert decide(FACTS, snapshot(opened, bound("L1", 0.5), policies=(policy,)), NOW).directive.name == "L1"


def test_a_tenants_own_entry_of_the_plan_goes_before_that_of_all() -> None:
    held = snapshot(bound("L1"), bound("L2"), policies=(EVERYBODY,))
    own = {("p", MODEL, "qa", "acme"): Entry((("L2", 1.0),), ("L2", "L1", "L0"))}
    held = replace(held, plan=replace(held.plan, of_tenant=own))
    assert decide(FACTS, held, NOW).directive.name == "L2"
    assert decide(replace(FACTS, tenant="beta"), held, NOW).directive.name == "L1"


levels = st.sampled_from(["L1", "L2"])


@given(
    lowers=st.dictionaries(levels, st.floats(0, 1), max_size=2),
    floor=st.floats(0.01, 1),
    ages=st.dictionaries(levels, st.integers(0, 2_000_000), max_size=2),
    share=st.floats(0, 1),
    spent=st.sampled_from([0.0, 9.0]),
    key=st.text("ab", min_size=1, max_size=4),
    own=st.one_of(st.none(), st.floats(0.01, 1)),
)
def test_nothing_below_any_floor_is_ever_served(
    lowers: dict[str, float],
    floor: float,
    ages: dict[str, int],
    share: float,
    spent: float,
    key: str,
    own: float | None,
) -> None:
    bounds = [
        bound(name, lower, updated_at=NOW - timedelta(seconds=ages.get(name, 0))) for name, lower in lowers.items()
    ]
    policy = replace(TIGHT, floor=floor)
    held = snapshot(*bounds, policies=(policy,), shares=(("L1", share), ("L2", 1 - share)))
    decision = decide(replace(FACTS, key=key, floor=own), held, NOW, spends(spent))
    name = decision.directive.name
    if name != "L0":
        assert lowers[name] >= max(floor, own or 0)
        assert ages.get(name, 0) <= policy.bound_max_age_seconds
        assert decision.bound == lowers[name]
