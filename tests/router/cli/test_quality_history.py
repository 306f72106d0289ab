"""`pithctl quality history`: a directive's life at a router that runs, and how steps are put in words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pith.router.v1 import feedback_pb2, policies_pb2, reports_pb2

from common.code_revision import code_revision
from router.convert import timestamp
from tests.router.cli.bench import Bench, judged
from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import NOW, FakeServices
from tests.router.cli.world import World
from tests.router.fake_engine import IDENTITY

CELL = feedback_pb2.Cell(model=IDENTITY, task="qa", directive="L1")
FLOOR = feedback_pb2.EvaluationPlan.Floor(quality=0.96, kind=policies_pb2.FLOOR_KIND_RELATIVE)
DRIFT = feedback_pb2.Withdrawal(
    cell=CELL, judge="grader:numeric@2", reason=feedback_pb2.WITHDRAWAL_REASON_DRIFT, floor=FLOOR
)


def report(world: World, lower: float = 0.957, revision: int = 1, *, withdraw: bool = False) -> None:
    """What an evaluator sends, a minute after all that was before."""

    async def happening() -> None:
        await world.router.clock.advance(60)
        now = world.router.clock.now()
        bound = feedback_pb2.QualityBound(
            cell=CELL,
            lower=lower,
            upper=1.01,
            share=0.972,
            absolute_lower=lower,
            samples=73,
            judge="grader:numeric@2",
            directive_revision=revision,
            since=timestamp(now - timedelta(minutes=4)),
            updated_at=timestamp(now),
        )
        request = feedback_pb2.ReportQualityRequest(
            evaluator="eval-1-ab12",
            code_revision="0.1.0+d6176aa",
            bounds=[] if withdraw else [bound],
            withdrawals=[DRIFT] if withdraw else [],
        )
        await world._stubs.feedback.ReportQuality(request)

    world.do(happening())


@pytest.fixture
def life(world: World, admin: Pithctl) -> None:
    """Opens, closes by a floor, opens for a tenant, closes by another text, opens, drifts, opens, grows old."""

    def wait(seconds: float) -> None:
        world.do(world.router.clock.advance(seconds))

    report(world, 0.93)
    report(world)
    wait(60)
    admin("policy", "update", "default", "--floor", "0.96", "--reason", "stricter")
    wait(60)
    world.policy(floor=0.9, directives=["L1"])
    wait(60)
    admin("directive", "update", "L1", "--text", "Answer briefly!", "--reason", "shorter")
    report(world, 0.97, 2)
    report(world, withdraw=True)
    report(world, 0.98, 2)
    wait(8 * 24 * 3600)


OLD = "L1 keeps at least 95.7 % of L0's quality (estimate 97.2 %, 73 answers judged by grader:numeric@2)."
OLD_BY = (
    "By evaluator eval-1-ab12, code 0.1.0+d6176aa; scores of revision 1 from 2025-12-31 23:58:00Z to "
    "2026-01-01 00:02:00Z."
)


def test_a_life_is_told_with_the_reasons(life: None, admin: Pithctl) -> None:
    heading, *lines = admin("quality", "history").out.splitlines()
    assert heading == f"Of {IDENTITY}:"
    told = [line.strip() for line in lines]
    assert told[:3] == [
        "2026-01-01 00:02:00Z  L1 of task qa: opened for policy default (floor 95 %, shadow)",
        f"Known: {OLD}",
        OLD_BY,
    ]
    assert told[3:8] == [
        "2026-01-01 00:03:00Z  L1 of task qa: closed for policy default (floor 96 %, shadow)",
        'root changed policy default, now at revision 2: floor 95 % -> 96 %. Reason given: "stricter".',
        "L1: closed, bound 0.957 is below the floor 0.960.",
        f"Known: {OLD}",
        OLD_BY,
    ]
    assert told[8:10] == [
        "2026-01-01 00:04:00Z  L1 of task qa: opened for policy acme-qa (floor 90 %); still closed for policy default "
        "(floor 96 %, shadow)",
        "root created policy acme-qa, now at revision 1: mode on, floor 90 %, directives L1, tenant acme, task qa, "
        'greatest age of a bound 7 d. Reason given: "test".',
    ]
    assert told[12:16] == [
        "2026-01-01 00:05:00Z  L1 of task qa: closed for policy acme-qa (floor 90 %); still closed for policy default "
        "(floor 96 %, shadow)",
        'root changed directive L1, now at revision 2. Reason given: "shorter".',
        "Scores of other revisions of L1 say nothing about revision 2.",
        "L1: closed, the bound is of revision 1, the directive at 2.",
    ]
    assert told[18].startswith("2026-01-01 00:06:00Z  L1 of task qa: opened for policy acme-qa")
    assert told[21:25] == [
        "2026-01-01 00:07:00Z  L1 of task qa: closed for policy acme-qa (floor 90 %); closed for policy default "
        "(floor 96 %, shadow)",
        "The bound was withdrawn: quality fell below 96 % of that of L0 (drift). Only fresh scores can open it again.",
        f"Until then: {OLD.replace('95.7', '97.0')}",
        "By evaluator eval-1-ab12, code 0.1.0+d6176aa; scores of revision 2.",
    ]
    assert told[25].startswith("2026-01-01 00:08:00Z  L1 of task qa: opened for policy acme-qa")
    assert told[28:30] == [
        "2026-01-08 00:08:00Z  L1 of task qa: closed for policy acme-qa (floor 90 %); closed for policy default "
        "(floor 96 %, shadow)",
        "No newer scores came, and the last may be as old as 7 d for policy acme-qa, 7 d for policy default.",
    ]
    assert len(told) == 32


def test_a_change_of_the_quality_budget_is_told(world: World, admin: Pithctl) -> None:
    report(world, 0.93)
    world.do(world.router.clock.advance(60))
    admin("policy", "update", "default", "--directive-floor", "0.85", "--reason", "the mean will do")
    world.do(world.router.clock.advance(60))
    admin("policy", "update", "default", "--quality-budget-scope", "day", "--directive-floor", "0.94")
    world.do(world.router.clock.advance(60))
    admin("policy", "update", "default", "--directive-floor", "none", "--floor", "0.9")
    told = [line.strip() for line in admin("quality", "history").out.splitlines()]
    assert [line for line in told if "policy default" in line] == [
        "2026-01-01 00:02:00Z  L1 of task qa: opened for policy default (floor 85 %, shadow)",
        "root changed policy default, now at revision 2: quality budget none -> mean of each task with directives of "
        '85 %. Reason given: "the mean will do".',
        "2026-01-01 00:03:00Z  L1 of task qa: closed for policy default (floor 94 %, shadow)",
        "root changed policy default, now at revision 3: quality budget mean of each task with directives of 85 % -> "
        "mean of each day with directives of 94 %.",
        "2026-01-01 00:04:00Z  L1 of task qa: opened for policy default (floor 90 %, shadow)",
        "root changed policy default, now at revision 4: floor 95 % -> 90 %, quality budget mean of each day with "
        "directives of 94 % -> none.",
    ]


def test_programs_get_every_step(life: None, admin: Pithctl) -> None:
    steps = admin("quality", "history", "--policy", "acme-qa", "--json").document["steps"]
    assert [(step["cause"], [(o["was_open"], o["open"]) for o in step["openings"]]) for step in steps] == [
        ("policy", [(False, True)]),
        ("directive", [(True, False)]),
        ("bound", [(False, True)]),
        ("withdrawal", [(True, False)]),
        ("bound", [(False, True)]),
        ("age", [(True, False)]),
    ]
    assert (steps[0]["policy"]["policy"]["updated_by"], steps[0]["policy_before"]) == ("root", None)
    assert (steps[1]["directive"]["reason"], steps[1]["directive"]["directive"]["revision"]) == ("shorter", 2)
    assert steps[3]["withdrawal"]["reason"] == "drift"
    assert steps[3]["withdrawal"]["floor"]["quality"] == 0.96
    evidence = steps[4]["evidence"]
    assert (evidence["evaluator"], evidence["code_revision"]) == ("eval-1-ab12", "0.1.0+d6176aa")
    assert (evidence["bound"]["judge"], evidence["bound"]["samples"]) == ("grader:numeric@2", 73)


def test_what_is_asked_for_is_told(life: None, admin: Pithctl) -> None:
    def count(*arguments: str) -> int:
        return len(admin("quality", "history", *arguments, "--json").document["steps"])

    everything = count("--all")
    # The first bound was too low to open anything, and the first policy was there before it.
    assert (count(), everything) == (8, 9)
    assert count("--all", "--task", "qa", "--directive", "L1", "--model", IDENTITY.partition("@")[0]) == everything
    assert (count("--task", ""), count("--directive", "L2"), count("--model", "smal")) == (0, 0, 0)
    # As acme has it: policy default until it has one of its own.
    acme = admin("quality", "history", "--tenant", "acme", "--json").document["steps"]
    assert {step["cell"]["tenant"] for step in acme} == {"acme"}
    assert [[o["policy"] for o in step["openings"]] for step in acme] == [["default"]] * 2 + [["acme-qa"]] * 6
    said = admin("quality", "history", "--task", "none").out
    assert said == "Nothing of what these options name has opened or closed; --all tells what else happened.\n"


def test_an_evaluator_tells_what_it_is(world: World, admin: Pithctl) -> None:
    judged(Bench(world, admin, world.tokens_file.parent))
    admin("evaluate")
    steps = admin("quality", "history", "--all", "--json").document["steps"]
    bounds = [step["evidence"] for step in steps if step["cause"] == "bound"]
    assert bounds
    assert {evidence["code_revision"] for evidence in bounds} == {code_revision()}
    assert bounds[-1]["bound"]["samples"] > 0
    assert bounds[-1]["bound"]["since"] is not None
    assert bounds[-1]["position"] is not None


def step(**fields: Any) -> reports_pb2.QualityStep:
    bound = feedback_pb2.QualityBound(
        cell=feedback_pb2.Cell(model="m@1", task="qa", directive="L1"),
        lower=0.91,
        upper=1.0,
        absolute_lower=0.62,
        samples=1200,
        judge="pairwise:m",
        directive_revision=3,
        updated_at=timestamp(NOW),
    )
    made = reports_pb2.QualityStep(
        time=timestamp(NOW),
        cell=bound.cell,
        cause=reports_pb2.QUALITY_STEP_CAUSE_BOUND,
        evidence=reports_pb2.QualityStep.Evidence(bound=bound, evaluator="e", position=99),
        openings=[
            reports_pb2.QualityStep.Opening(
                policy="p",
                mode=policies_pb2.MODE_ON,
                floor=0.6,
                floor_kind=policies_pb2.FLOOR_KIND_ABSOLUTE,
                open=True,
                explanation="L1: open, bound 0.620 clears the floor 0.600",
            )
        ],
    )
    made.MergeFrom(reports_pb2.QualityStep(**fields))
    return made


def test_a_corrected_share_is_called_asymptotic_and_has_the_raw_one_beside_it(
    pithctl: Pithctl, fake: FakeServices
) -> None:
    corrected = step()
    corrected.evidence.bound.method = feedback_pb2.BOUND_METHOD_LENGTH_CORRECTED
    corrected.evidence.bound.share = 0.95
    corrected.evidence.bound.raw.CopyFrom(feedback_pb2.QualityBound.RawShare(lower=0.8, upper=0.9, share=0.85))
    fake.steps = [corrected]
    said = pithctl("quality", "history").out
    assert (
        "Known: L1 keeps at least 91.0 % of L0's quality, at equal length and balanced order (asymptotic, estimate "
        "95.0 %, 1,200 answers judged by pairwise:m), and its mean quality is at least 62.0 %. As the judge gave it: "
        "at least 80.0 % (estimate 85.0 %).\n"
    ) in said
    assert "opened for policy p (floor 60 % absolute)" in said


def test_what_is_not_known_is_said(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.steps = [step()]
    said = pithctl("quality", "history").out
    assert "(estimate unknown, 1,200 answers" in said
    assert (
        "By evaluator e, code unknown; scores of revision 3 up to 2026-03-01 12:00:00Z, "
        "all scores up to number 99 known."
    ) in said
    fake.steps[0].ClearField("evidence")
    assert "Nothing is known of its quality." in pithctl("quality", "history").out


@pytest.mark.parametrize("number", feedback_pb2.WithdrawalReason.values()[1:])
def test_every_reason_has_its_words(pithctl: Pithctl, fake: FakeServices, number: Any) -> None:
    name = feedback_pb2.WithdrawalReason.Name(number).removeprefix("WITHDRAWAL_REASON_").lower()
    fake.steps = [
        step(
            cause=reports_pb2.QUALITY_STEP_CAUSE_WITHDRAWAL,
            withdrawal=feedback_pb2.Withdrawal(cell=CELL, reason=number),
        )
    ]
    said = pithctl("quality", "history").out
    assert "The bound was withdrawn: " in said
    assert f"withdrawn: {name}." not in said


def test_names_cannot_steer_a_terminal_and_models_are_told_apart(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.steps = [step(), step(), step()]
    fake.steps[1].cell.model = "other@2"
    fake.steps[2].evidence.evaluator = "\x1b[2Jx"
    said = pithctl("quality", "history").out
    assert "\x1b" not in said
    assert "L1 of task qa on other@2: " in said
    # Of every page.
    assert said.count("Known: ") == 3
