"""`pithctl quality` and `pithctl evaluate`."""

import pytest
from pith.evaluator.v1.evaluation_pb2 import EvaluationProgress, Status
from pith.router.v1.feedback_pb2 import BOUND_METHOD_LENGTH_CORRECTED, Cell, QualityBound
from pith.router.v1.reports_pb2 import ListBoundsResponse

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import NOW, FakeServices


@pytest.fixture
def bounds(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("policy", "create", "strict", "--floor", "0.98").code == 0
    assert pithctl("policy", "create", "loose", "--floor", "0.5", "--floor-kind", "absolute").code == 0
    for task in ("sums", "lists", "[dates]"):
        bound = QualityBound(
            cell=Cell(model="demo@abc", task=task, directive="L1"),
            lower=0.961,
            upper=float("inf"),
            share=0.99,
            samples=1200,
            judge="grader:numeric",
            directive_revision=1,
        )
        bound.updated_at.FromDatetime(NOW)
        fake.bounds.append(ListBoundsResponse.Bound(bound=bound, open_for=["loose"], closed_for=["strict", "gone"]))
    fake.bounds[2].bound.ClearField("share")
    fake.status = Status(evaluations=3, reason="waits for a cleaner hour", samples_scored=4200, energy_joules=36.0)
    fake.status.last_run_at.FromDatetime(NOW)


def test_bounds_stand_beside_the_floors_they_are_held_against(pithctl: Pithctl, bounds: None) -> None:
    said = pithctl("quality").out
    heading, _, first, second, third = said.splitlines()[:5]
    assert heading == "Bounds of demo@abc:"
    assert first.split() == [
        *("sums", "L1", "99.0", "%", "96.1", "%", "1,200", "open", "for", "loose", "(50", "%", "absolute)"),
        *("2026-03-01", "12:00:00Z"),
    ]
    assert second.split() == ["closed", "for", "strict", "(98", "%)"]
    # A policy that is not there any more has no floor to show.
    assert third.split() == ["closed", "for", "gone"]
    last = next(line for line in said.splitlines() if "[dates]" in line)
    assert last.split()[2] == "unknown"


def test_a_bound_is_never_rounded_up_to_its_floor(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    fake.bounds[0].bound.lower = 0.9796
    first = pithctl("quality").out.splitlines()[2]
    assert "97.9 %" in first and "98.0 %" not in first


def test_what_clears_its_floor_and_is_closed_says_why(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    assert "no longer count" not in pithctl("quality").out
    fake.bounds[0].bound.lower = 0.985
    assert pithctl("quality").out.count("closed for strict (98 %): its scores no longer count") == 1


def test_a_quality_budget_opens_at_its_directive_floor(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    """The bounds are 0.961, below the floor of 0.98."""
    assert pithctl("policy", "update", "strict", "--directive-floor", "0.97").code == 0
    said = pithctl("quality").out
    assert (said.count("closed for strict (97 %)"), "no longer count" in said) == (3, False)
    assert pithctl("policy", "update", "strict", "--directive-floor", "0.96").code == 0
    assert pithctl("quality").out.count("closed for strict (96 %): its scores no longer count") == 3


def test_several_models_have_a_column(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    fake.bounds[1].bound.cell.model = "other@def"
    heading, first, *_ = pithctl("quality").out.splitlines()
    assert heading.split()[0] == "MODEL"
    assert first.split()[0] == "demo@abc"


def test_what_a_judge_compared_is_shown_as_corrected_and_as_it_was(
    pithctl: Pithctl, fake: FakeServices, bounds: None
) -> None:
    said = pithctl("quality").out
    assert "RAW" not in said and "asymptotic" not in said
    fake.bounds[1].bound.method = BOUND_METHOD_LENGTH_CORRECTED
    fake.bounds[1].bound.raw.CopyFrom(QualityBound.RawShare(lower=0.801, upper=0.893, share=0.842))
    said = pithctl("quality").out
    assert said.splitlines()[1].split()[2:5] == ["KEEPS", "RAW", "BOUND"]
    graded, compared = (next(line for line in said.splitlines() if line.startswith(task)) for task in ("sums", "lists"))
    assert graded.split()[2:6] == ["99.0", "%", "96.1", "%"]
    assert compared.split()[2:8] == ["99.0", "%", "84.2", "%", "96.1", "%"]
    assert "asymptotic" in said
    document = pithctl("quality", "--json").document["bounds"][1]["bound"]
    assert (document["method"], document["raw"]["upper"]) == ("length_corrected", 0.893)


def test_tenants_have_rows_of_their_own(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    assert "TENANT" not in pithctl("quality").out
    own = ListBoundsResponse.Bound()
    own.CopyFrom(fake.bounds[0])
    own.bound.cell.tenant = "acme"
    del own.open_for[:], own.closed_for[:]
    fake.bounds.insert(1, own)
    heading, *rest = pithctl("quality").out.splitlines()[1:]
    assert heading.split()[:3] == ["TENANT", "TASK", "DIRECTIVE"]
    assert rest[0].split()[:3] == ["all", "sums", "L1"]
    of_acme = next(line for line in rest if line.startswith("acme"))
    assert of_acme.split()[1:3] == ["sums", "L1"]
    assert "as for all tenants" in of_acme
    assert pithctl("quality", "--json").document["bounds"][1]["bound"]["cell"]["tenant"] == "acme"
    planned = pithctl("quality", "plan", "--json").document["plans"]
    assert len([plan for plan in planned if plan["task"] == "sums"]) == 1


def test_every_page_of_bounds_is_read(pithctl: Pithctl, bounds: None) -> None:
    document = pithctl("quality", "--json").document
    assert [bound["bound"]["cell"]["task"] for bound in document["bounds"]] == ["sums", "lists", "[dates]"]
    assert document["bounds"][0]["closed_for"] == ["strict", "gone"]
    # JSON has no infinity.
    assert document["bounds"][0]["bound"]["upper"] is None
    assert document["evaluator"]["samples_scored"] == 4200
    assert document["evaluator"]["carbon_grams"] is None
    assert document["evaluator_error"] is None


def test_evaluator_tells_how_it_fares(pithctl: Pithctl, fake: FakeServices, bounds: None) -> None:
    said = pithctl("quality").out
    assert "waits for a cleaner hour" in said
    assert "3, the last at 2026-03-01 12:00:00Z" in said
    assert "36 J, unknown CO2e, on evaluations and trials" in said
    fake.status.ClearField("energy_joules")
    assert "unknown, unknown CO2e, on evaluations and trials" not in pithctl("quality").out
    fake.status.answers_generated = 3
    assert "unknown, unknown CO2e, on evaluations and trials" in pithctl("quality").out
    fake.status.version = "9.9+abc"
    assert "waits, version 9.9+abc\n" in pithctl("quality").out


def test_nothing_spent_is_no_unknown(pithctl: Pithctl) -> None:
    said = pithctl("quality").out
    assert "nothing yet, on evaluations and trials since it started" in said
    assert "unknown" not in said


def test_bounds_are_shown_without_the_evaluator(pithctl: Pithctl, bounds: None) -> None:
    result = pithctl("quality", "--evaluator", "127.0.0.1:1")
    assert result.code == 0
    assert "demo@abc" in result.out
    assert "cannot reach the evaluator at 127.0.0.1:1" in result.out
    document = pithctl("quality", "--evaluator", "127.0.0.1:1", "--json").document
    assert document["evaluator"] is None
    assert document["evaluator_error"]["code"] == "UNAVAILABLE"


def test_no_bounds_yet_is_said(pithctl: Pithctl) -> None:
    assert "No directive has been judged yet" in pithctl("quality").out


def test_evaluate_shows_what_happens_and_what_it_cost(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.progress = [
        EvaluationProgress(samples_done=0, samples_planned=40),
        EvaluationProgress(samples_done=20, samples_planned=40, event="L1 opened for [sums]"),
        EvaluationProgress(samples_done=30, samples_planned=30, done=True, energy_joules=0.25),
    ]
    result = pithctl("evaluate", "--task", "sums")
    assert result.code == 0
    assert result.out.splitlines() == [
        "L1 opened for [sums]",
        "30 samples judged; answers for it took 250 mJ, unknown CO2e.",
    ]
    assert fake.called("RunEvaluation")[0].task == "sums"


def test_evaluate_prints_a_json_line_a_step(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.progress = [EvaluationProgress(samples_done=1), EvaluationProgress(samples_done=2, done=True)]
    steps = pithctl("evaluate", "--json").lines
    assert [step["samples_done"] for step in steps] == [1, 2]
    assert steps[1]["done"] is True
    assert steps[1]["energy_joules"] is None


def test_evaluate_beyond_its_deadline_says_that_it_goes_on(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.hang = True
    result = pithctl("evaluate", "--timeout", "0.1")
    assert result.code == 5
    assert "The evaluation goes on" in result.err


def test_evaluate_that_judged_nothing_says_so(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.progress = [EvaluationProgress(event="too few samples"), EvaluationProgress(done=True)]
    assert pithctl("evaluate").out.splitlines() == [
        *("too few samples", "No sample was judged."),
        "None that waits can be, or would decide anything; further requests bring more.",
    ]


def test_fault_is_shown_while_it_lasts(pithctl: Pithctl, fake: FakeServices) -> None:
    assert "last fault" not in pithctl("quality").out
    fake.status.last_fault = "UNAVAILABLE NO_ENGINE: none"
    assert "last fault" in pithctl("quality").out
