"""From bounds, costs and policies to a plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.levels import L0, SEEDED, Directive
from router.directives.policy import LatencyObjective, Mode, Policy
from router.optimizer.costs import CostBook, Mean, Observed
from router.optimizer.latency import LatencyBook
from router.optimizer.plan import Plan
from router.optimizer.pricing import EnergyModel, Lengths, Price
from router.optimizer.problem import make_plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy("p", "", "qa", Mode.ON, floor=0.95, directives=("L1", "L2"))


def bound(directive: str, lower: float, model: str = "m@1", task: str = "qa") -> QualityBound:
    return QualityBound(Cell(model, task, directive), lower, 1.0, 1.0, lower, 100, "judge", "1", NOW)


def plan(
    *bounds: QualityBound,
    policies: tuple[Policy, ...] = (POLICY,),
    latencies: LatencyBook | None = None,
    **joules: float,
) -> Plan:
    costs = CostBook(
        {Cell("m@1", "qa", name): Observed(energy_joules=Mean(value, 100_000)) for name, value in joules.items()}
    )
    known = {directive.name: directive for directive in (L0, *SEEDED, Directive("terse"))}
    snapshot = Snapshot(known, policies, {b.cell: b for b in bounds}, Plan({}, NOW))
    return make_plan(snapshot, costs, lambda cost: cost.energy_joules, NOW, 100.0, latencies)


def test_the_cheapest_open_directive_is_planned() -> None:
    made = plan(bound("L1", 0.99), bound("L2", 0.96), L0=10.0, L1=3.0, L2=2.0)
    assert dict(made.shares("p", "m@1", "qa")) == {"L2": pytest.approx(1.0)}
    assert (made.made_at, made.g_per_kwh) == (NOW, 100.0)


def test_a_closed_directive_is_not_planned_however_cheap() -> None:
    made = plan(bound("L1", 0.99), bound("L2", 0.94), L0=10.0, L1=3.0, L2=2.0)
    assert dict(made.shares("p", "m@1", "qa")) == {"L1": pytest.approx(1.0)}


def test_a_directive_that_was_served_in_an_empty_engine_is_not_taken_for_dear() -> None:
    """Its answers are half as long as L0's, which were served in a batch of 16: the means of joules say that it costs
    more, the calibration that it costs less in any batch."""
    spot = SweetSpot(input_joules=0.01, output_joules=0.05, output_shared_joules=3.0, pair_joules=1e-5)
    model = EnergyModel(spot, EnergySource.MEASURED, NOW, 2.0, 32, 4096, 4096)
    observed = {
        Cell("m@1", "qa", name): Observed(
            Lengths.of(200, 0, output_tokens), 5_000, Mean(spot.energy_joules(200, output_tokens, batch), 5_000)
        )
        for name, output_tokens, batch in (("L0", 300, 16.0), ("L2", 150, 1.0))
    }
    opened = bound("L2", 0.99)
    snapshot = Snapshot({d.name: d for d in (L0, *SEEDED)}, (POLICY,), {opened.cell: opened}, Plan({}, NOW))

    def planned(costs: CostBook) -> dict[str, float]:
        made = make_plan(snapshot, costs, lambda cost: cost.energy_joules, NOW, 100.0)
        return dict(made.shares("p", "m@1", "qa"))

    assert planned(CostBook(observed)) == {"L0": pytest.approx(1.0)}
    for running in (None, 1.0, 16.0):
        assert planned(CostBook(observed, lambda _, r=running: Price(model, r))) == {"L2": pytest.approx(1.0)}


def test_an_open_directive_that_saves_nothing_is_not_planned() -> None:
    made = plan(bound("L1", 0.99), L0=10.0, L1=11.0)
    assert dict(made.shares("p", "m@1", "qa")) == {"L0": pytest.approx(1.0)}


def test_before_anything_is_served_the_published_order_decides() -> None:
    made = plan(bound("L1", 0.99), bound("L2", 0.99))
    assert dict(made.shares("p", "m@1", "qa")) == {"L2": pytest.approx(1.0)}


def test_costs_without_l0s_are_not_mixed_with_the_prior() -> None:
    """Joules of L1 beside shares of an L0 request would be apples and pears."""
    made = plan(bound("L1", 0.99), bound("L2", 0.99), L1=0.001)
    assert dict(made.shares("p", "m@1", "qa")) == {"L2": pytest.approx(1.0)}


def test_what_nobody_judged_is_served_at_l0() -> None:
    made = plan(bound("L1", 0.99))
    assert made.shares("p", "m@2", "qa") == (("L0", 1.0),)
    assert made.shares("p", "m@1", "other") == (("L0", 1.0),)
    assert made.shares("q", "m@1", "qa") == (("L0", 1.0),)


def test_policies_that_are_off_or_for_another_task_get_no_plan() -> None:
    off, other = replace(POLICY, name="off", mode=Mode.OFF), replace(POLICY, name="other", task="sums")
    shadow = replace(POLICY, name="shadow", mode=Mode.SHADOW)
    made = plan(bound("L1", 0.99), policies=(off, other, shadow))
    assert set(made.entries) == {("shadow", "m@1", "qa")}


def test_policies_of_one_task_keep_to_their_own_directives() -> None:
    second = replace(POLICY, name="second", task="", directives=("terse", "L1"))
    made = plan(
        *(bound(name, 0.99) for name in ("L1", "L2", "terse")),
        policies=(POLICY, second),
        L0=10.0,
        L1=3.0,
        L2=4.0,
        terse=2.0,
    )
    assert made.entry("p", "m@1", "qa").by_carbon == ("L1", "L2", "L0")
    assert made.entry("second", "m@1", "qa").by_carbon == ("terse", "L1", "L0")
    assert made.shares("p", "m@1", "qa") == (("L1", 1.0),)
    assert made.shares("second", "m@1", "qa") == (("terse", 1.0),)


def test_the_order_by_carbon_holds_what_is_closed_as_well() -> None:
    """It may open before the next plan is made."""
    made = plan(bound("L1", 0.99), L0=10.0, L1=12.0, L2=2.0)
    assert made.entry("p", "m@1", "qa").by_carbon == ("L2", "L0", "L1")
    assert plan(bound("L1", 0.99)).entry("p", "m@1", "qa").by_carbon == ("L2", "L1", "L0")
    assert made.entry("p", "m@1", "other").by_carbon == ()


HASTE = replace(POLICY, latency=LatencyObjective(2.0, 0.9))


def times(**seconds: float) -> LatencyBook:
    book = LatencyBook()
    for name, value in seconds.items():
        for _ in range(20_000):
            book.observe(Cell("m@1", "qa", name), value)
    return book


def test_a_directive_whose_answers_come_too_late_is_not_planned() -> None:
    bounds, joules = (bound("L1", 0.99), bound("L2", 0.99)), {"L0": 10.0, "L1": 3.0, "L2": 2.0}
    late = times(L0=1.0, L1=1.0, L2=9.0)
    made = plan(*bounds, policies=(HASTE,), latencies=late, **joules)
    shares = dict(made.shares("p", "m@1", "qa"))
    assert shares == {"L1": pytest.approx(0.9, abs=0.01), "L2": pytest.approx(0.1, abs=0.01)}
    assert made.entry("p", "m@1", "qa").late_share == pytest.approx(0.1)
    without = plan(*bounds, latencies=late, **joules)
    assert dict(without.shares("p", "m@1", "qa")) == {"L2": pytest.approx(1.0)}
    assert without.entry("p", "m@1", "qa").late_share is None


def test_where_nothing_keeps_the_objective_the_earliest_are_planned() -> None:
    late = times(L0=9.0, L1=1.0)
    made = plan(bound("L1", 0.94), bound("L2", 0.99), policies=(HASTE,), latencies=late, L0=10.0, L2=11.0)
    entry = made.entry("p", "m@1", "qa")
    assert entry.late_share == pytest.approx(1.0), "L1 is closed, and L2 as late as L0"
    assert dict(entry.shares) == {"L0": pytest.approx(1.0)}
    made = plan(bound("L1", 0.9), policies=(replace(HASTE, floor=0.5),), latencies=late, L0=10.0, L1=11.0)
    entry = made.entry("p", "m@1", "qa")
    assert dict(entry.shares)["L1"] == pytest.approx(0.9, abs=0.01), "dearer, but in time"


def test_with_nothing_known_of_answer_times_an_objective_has_no_effect() -> None:
    for latencies in (None, LatencyBook(), times(terse=9.0)):
        made = plan(bound("L1", 0.99), policies=(HASTE,), latencies=latencies, L0=10.0, L1=3.0)
        entry = made.entry("p", "m@1", "qa")
        assert (dict(entry.shares), entry.late_share) == ({"L1": pytest.approx(1.0)}, None)


def test_without_l0s_times_what_was_never_served_is_as_late_as_the_latest() -> None:
    made = plan(bound("L1", 0.99), bound("L2", 0.99), policies=(HASTE,), latencies=times(L1=1.0), L0=9.0, L1=3.0)
    assert dict(made.shares("p", "m@1", "qa")) == {"L2": pytest.approx(1.0)}
    made = plan(bound("L1", 0.99), bound("L2", 0.99), policies=(HASTE,), latencies=times(L2=9.0), L0=9.0, L1=3.0)
    assert made.entry("p", "m@1", "qa").late_share == pytest.approx(1.0)


def own(directive: str, tenant: str, lower: float, upper: float = 1.0, task: str = "qa") -> QualityBound:
    return replace(bound(directive, lower, task=task), cell=Cell("m@1", task, directive, tenant), upper=upper)


def test_tenants_whose_own_bounds_open_other_directives_have_entries_of_their_own() -> None:
    made = plan(
        bound("L1", 0.97),
        bound("L2", 0.97),
        own("L2", "acme", 0.5, upper=0.9),
        own("L2", "beta", 0.96),
        own("L1", "gamma", 0.5, upper=0.9),
        own("L2", "gamma", 0.5, upper=0.9),
        L0=10.0,
        L1=4.0,
        L2=2.0,
    )
    assert made.entry("p", "m@1", "qa").shares == (("L2", 1.0),)
    assert {tenant: entry.shares for (*_, tenant), entry in made.of_tenant.items()} == {
        "acme": (("L1", 1.0),),
        "gamma": (("L0", 1.0),),
    }
    assert made.entry("p", "m@1", "qa", "acme").shares == (("L1", 1.0),)
    for tenant in ("beta", "nobody"):
        assert made.entry("p", "m@1", "qa", tenant) is made.entry("p", "m@1", "qa")


def test_what_is_open_for_a_tenant_alone_is_planned_for_it() -> None:
    made = plan(bound("L2", 0.9), own("L2", "acme", 0.97), L0=10.0, L2=2.0)
    assert made.entry("p", "m@1", "qa").shares == (("L0", 1.0),)
    assert made.entry("p", "m@1", "qa", "acme").shares == (("L2", 1.0),)
    assert plan(own("L2", "acme", 0.97)).of_tenant == {}, "it opens only beside that of all"


def test_a_tenants_policy_is_planned_by_its_own_bounds() -> None:
    policies = (
        POLICY,
        replace(POLICY, name="acme", tenant="acme"),
        replace(POLICY, name="off", tenant="beta", mode=Mode.OFF),
    )
    made = plan(
        bound("L1", 0.97), own("L1", "acme", 0.5, upper=0.9), own("L1", "beta", 0.5, upper=0.9), policies=policies
    )
    assert made.entry("acme", "m@1", "qa").shares == (("L0", 1.0),)
    assert made.entry("p", "m@1", "qa").shares == (("L1", 1.0),)
    assert made.of_tenant == {}, "another policy decides for acme and for beta"
