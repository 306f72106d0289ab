"""Judging by a reference: both answers by one grader, or not at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from evaluator.judges.base import Judgement, Unscored
from evaluator.judges.reference import ReferenceJudge
from evaluator.samples import Sample, Turn

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sample(grader: str = "numeric", reference: str = "12") -> Sample:
    return Sample("s", "demo@abc", "arithmetic", reference, grader, served_at=NOW, answers=(), request=b"")


async def test_answer_and_baseline_are_held_against_the_same_reference() -> None:
    judged = await ReferenceJudge().judge(sample(), "13", "Steps: 4 + 8\nAnswer: 12")
    assert judged == Judgement(quality=0.0, baseline_quality=1.0, judge="grader:numeric@2")


async def test_options_are_those_of_all_that_the_user_said() -> None:
    turns = (Turn("user", "Which?\n(A) Mars\n(B) Venus"), Turn("assistant", "(A)"), Turn("user", "Are you sure?"))
    asked = replace(sample("choice", "Venus"), turns=turns)
    assert await ReferenceJudge().judge(asked, "No, it is (B).", "Yes.") == Judgement(1.0, 0.0, "grader:choice@1")
    assert ReferenceJudge().refusal(replace(asked, turns=())) == Unscored(
        "reference must be a letter where the prompt lists no options"
    )


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (sample(reference=""), "no reference"),
        (sample(reference="twelve"), "reference must hold a number"),
        (sample(grader="item_set", reference="a, b, a"), "reference must not repeat an item"),
        (
            sample(grader="beauty"),
            "grader must be one of alias, choice, exact, item_set, numeric, required_items, token_f1, got 'beauty'",
        ),
    ],
)
async def test_what_cannot_be_judged_says_why_before_and_after(asked: Sample, reason: str) -> None:
    judge = ReferenceJudge()
    assert judge.refusal(asked) == Unscored(reason)
    assert await judge.judge(asked, "12", "12") == Unscored(reason)


def test_knows_its_graders() -> None:
    assert ReferenceJudge().judges("exact")
    assert not ReferenceJudge().judges("")
