"""From bounds, costs and policies to a plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from common.quality.estimates import Cell, QualityBound
from router.directives.decide import Snapshot
from router.directives.levels import L0, SEEDED, Directive
from router.directives.policy import Mode, Policy
from router.optimizer.costs import Cost, CostBook
from router.optimizer.plan import Plan
from router.optimizer.problem import make_plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy("p", "", "qa", Mode.ON, floor=0.95, directives=("L1", "L2"))


def bound(directive: str, lower: float, model: str = "m@1", task: str = "qa") -> QualityBound:
    return QualityBound(Cell(model, task, directive), lower, 1.0, 1.0, lower, 100, "judge", "1", NOW)


def plan(*bounds: QualityBound, policies: tuple[Policy, ...] = (POLICY,), **joules: float) -> Plan:
    costs = CostBook({Cell("m@1", "qa", name): Cost(value, 0.0, 10.0, 100_000) for name, value in joules.items()})
    known = {directive.name: directive for directive in (L0, *SEEDED, Directive("terse"))}
    snapshot = Snapshot(known, policies, {b.cell: b for b in bounds}, Plan({}, NOW))
    return make_plan(snapshot, costs, lambda cost: cost.energy_joules, NOW, 100.0)


def test_the_cheapest_open_directive_is_planned() -> None:
    made = plan(bound("L1", 0.99), bound("L2", 0.96), L0=10.0, L1=3.0, L2=2.0)
    assert dict(made.shares("p", "m@1", "qa")) == {"L2": pytest.approx(1.0)}
    assert (made.made_at, made.g_per_kwh) == (NOW, 100.0)


def test_a_closed_directive_is_not_planned_however_cheap() -> None:
    made = plan(bound("L1", 0.99), bound("L2", 0.94), L0=10.0, L1=3.0, L2=2.0)
    assert dict(made.shares("p", "m@1", "qa")) == {"L1": pytest.approx(1.0)}


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
