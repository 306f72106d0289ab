"""`pithctl quality plan`."""

import pytest
from pith.evaluator.v1.evaluation_pb2 import Status
from pith.router.v1.feedback_pb2 import Cell, QualityBound
from pith.router.v1.reports_pb2 import ListBoundsResponse

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import NOW, FakeServices

AWAY = ("--router", "127.0.0.1:1", "--evaluator", "127.0.0.1:1")


@pytest.fixture
def bounds(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("policy", "create", "strict", "--floor", "0.95").code == 0
    assert pithctl("policy", "create", "loose", "--floor", "0.5", "--floor-kind", "absolute").code == 0
    for task, share, open_for in (
        ("sums", 0.99, []),
        ("lists", 0.9, []),
        ("dates", 1.02, ["strict"]),
        ("odes", None, []),
    ):
        bound = QualityBound(
            cell=Cell(model="demo@abc", task=task, directive="L1"), lower=0.94, samples=120, share=share, judge="j"
        )
        bound.updated_at.FromDatetime(NOW)
        closed_for = ["strict", "gone"] if not open_for else []
        fake.bounds.append(ListBoundsResponse.Bound(bound=bound, open_for=[*open_for, "loose"], closed_for=closed_for))
    fake.status = Status(energy_joules=800.0, answers_generated=100, samples_scored=500)


def test_each_floor_of_each_directive_has_its_number_and_its_cost(pithctl: Pithctl, bounds: None) -> None:
    plans = {plan["task"]: plan for plan in pithctl("quality", "plan", "--json").document["plans"]}
    assert {task: plan["verdict"] for task, plan in plans.items()} == {
        "sums": "in_sight",
        "lists": "never",
        "dates": "open",
        "odes": "unknown",
    }
    sums = plans["sums"]
    assert (sums["policy"], sums["floor"], sums["share"], sums["samples"]) == ("strict", 0.95, 0.99, 120)
    needed = sums["samples_needed"]
    assert 73 <= needed["p10"] <= needed["p50"] <= needed["p90"] < 400
    assert sums["energy_joules"] == pytest.approx(8 * needed["mean"])
    assert plans["lists"]["samples_needed"] is None and plans["lists"]["energy_joules"] is None


def test_people_read_it_as_a_table(pithctl: Pithctl, bounds: None) -> None:
    lines = pithctl("quality", "plan").out.splitlines()
    assert lines[0].split()[:3] == ["TASK", "DIRECTIVE", "POLICY"]
    said = {line.split()[0]: line for line in lines[1:5]}
    assert "never: it keeps less than the floor" in said["lists"]
    assert "open already" in said["dates"]
    assert "L0 scored nothing" in said["odes"]
    assert len(pithctl("quality", "plan", "--task", "sums").out.splitlines()) == 4
    assert "of task none" in pithctl("quality", "plan", "--task", "none").out


def test_what_was_scored_of_an_earlier_text_is_planned_anew(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    fake.bounds[0].bound.lower = 0.96
    (sums,) = pithctl("quality", "plan", "--task", "sums", "--json").document["plans"]
    assert (sums["verdict"], sums["samples_needed"]) == ("outdated", None)
    assert "its scores no longer count" in pithctl("quality", "plan", "--task", "sums").out


def test_with_a_quality_budget_both_floors_have_their_number(
    pithctl: Pithctl, fake: FakeServices, bounds: None
) -> None:
    """The bounds are 0.94."""
    assert pithctl("policy", "update", "strict", "--directive-floor", "0.93").code == 0
    for listed in fake.bounds:
        del listed.closed_for[:]
        listed.open_for[:] = ["strict"]
    fake.bounds[0].bound.lower = 0.96
    plans = pithctl("quality", "plan", "--json").document["plans"]
    assert [(plan["task"], plan["floor"], plan["verdict"]) for plan in plans] == [
        ("sums", 0.93, "open"),
        ("sums", 0.95, "open"),
        ("lists", 0.93, "open"),
        ("lists", 0.95, "never"),
        ("dates", 0.93, "open"),
        ("dates", 0.95, "in_sight"),
        ("odes", 0.93, "open"),
        ("odes", 0.95, "unknown"),
    ]
    # What clears both and is closed for all that is outdated by both.
    del fake.bounds[0].open_for[:]
    fake.bounds[0].closed_for[:] = ["strict"]
    plans = pithctl("quality", "plan", "--task", "sums", "--json").document["plans"]
    assert [plan["verdict"] for plan in plans] == ["outdated", "outdated"]


def test_another_floor_and_price_can_be_asked_for(pithctl: Pithctl, bounds: None) -> None:
    document = pithctl("quality", "plan", "--floor", "0.85", "--joules", "2", "--json").document
    by_task = {plan["task"]: plan for plan in document["plans"]}
    assert by_task["lists"]["verdict"] == "open"  # its bound is 0.94
    document = pithctl("quality", "plan", "--floor", "0.96", "--task", "sums", "--joules", "2", "--json").document
    (plan,) = document["plans"]
    assert plan["energy_joules"] == pytest.approx(2 * plan["samples_needed"]["mean"])


def test_without_the_evaluator_the_cost_is_unknown(pithctl: Pithctl, bounds: None) -> None:
    arguments = ("quality", "plan", "--task", "sums", "--evaluator", "127.0.0.1:1")
    assert pithctl(*arguments, "--json").document["plans"][0]["energy_joules"] is None
    assert "unknown" in pithctl(*arguments).out


def test_with_a_share_no_service_is_asked(pithctl: Pithctl) -> None:
    first = pithctl("quality", "plan", "--share", "0.98", "--json", *AWAY).document
    assert first == pithctl("quality", "plan", "--share", "0.98", "--json", *AWAY).document
    noisier = pithctl("quality", "plan", "--share", "0.98", "--baseline", "0.9", "--gained", "0.1", "--json", *AWAY)
    (plan,), (other,) = first["plans"], noisier.document["plans"]
    assert plan["samples_needed"]["mean"] < other["samples_needed"]["mean"]
    assert plan["energy_joules"] is None


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--share", "1.2"), "share must be"),
        (("--share", "0.9", "--baseline", "0"), "--baseline must be in"),
        (("--share", "0.99", "--floor", "0"), "--floor"),
        (("--share", "0.99", "--alpha", "1"), "--alpha"),
    ],
)
def test_what_cannot_be_is_refused(pithctl: Pithctl, arguments: tuple[str, ...], fault: str) -> None:
    result = pithctl("quality", "plan", *arguments, *AWAY)
    assert result.code == 2
    assert fault in result.err
