"""Which bounds in force the evaluator has withdrawn for reasons that no score shows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind
from common.quality.graders import GRADERS, grader_of, judge_name
from common.quality.mix import Part, TaskMix
from evaluator.invalidation import outdated
from evaluator.samples import EvaluationPlan, Target

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHIFTED = TaskMix(lengths={"5": Part(900, 0), "12": Part(0, 900)})
TARGET = Target(Cell("m@1", "qa", "L1"), (Floor(0.9, FloorKind.RELATIVE),), "numeric", 1, 9, 0.5, "grader:numeric@2")


@pytest.mark.parametrize(
    ("changes", "judge", "reason"),
    [
        ({}, "grader:numeric@2", None),
        ({"mix": SHIFTED}, "grader:numeric@2", EpochReason.TASK_MIX),
        ({}, "grader:numeric@3", EpochReason.JUDGE),
        ({"mix": SHIFTED}, "grader:numeric@3", EpochReason.JUDGE),
        ({"judge": "", "mix": SHIFTED}, "grader:numeric@2", None),
        # The router sees that by itself, and an edit back shows it again.
        ({"judge": "grader:exact@1"}, "grader:numeric@2", None),
        ({"judge": "pairwise:a@1/prompt-0", "grader": "pairwise"}, "pairwise:a@2/prompt-0", EpochReason.JUDGE),
        ({"judge": "pairwise:a@1/prompt-0", "grader": "pairwise"}, "pairwise:a@1/prompt-1", EpochReason.JUDGE),
        # Not known yet: nothing is said.
        ({"judge": "pairwise:a@1/prompt-0", "grader": "pairwise", "mix": SHIFTED}, "", None),
    ],
)
def test_what_ends(changes: dict[str, object], judge: str, reason: EpochReason | None) -> None:
    target = replace(TARGET, **changes)  # type: ignore[arg-type]
    plan = EvaluationPlan((target,), (), NOW, None)
    found = list(outdated(plan, lambda grader: judge if grader == target.grader else "another"))
    assert found == ([] if reason is None else [EpochStart(target.cell, target.judge, reason, NOW)])


def test_a_judge_names_its_grader_and_its_revision() -> None:
    assert judge_name("numeric") == "grader:numeric@2"
    assert {grader_of(judge_name(grader)) for grader in GRADERS} == set(GRADERS)
    assert judge_name("gone") == "grader:gone"
