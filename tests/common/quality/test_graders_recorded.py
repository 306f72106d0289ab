"""Graders on recorded answers of Llama-2-13B, and on synthetic ones of the same forms whose truth is known."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from common.quality.graders import grade
from common.quality.graders.choice import chosen
from common.quality.graders.options import options_of
from tests.common.quality.recorded_answers import GRADER_OF, LEVELS, REQUESTS, recorded

needs_data = pytest.mark.skipif(not REQUESTS.exists(), reason="needs sprout from PITH_DATA_DIR")


def accuracy(task: str, level: str, part: slice = slice(None)) -> float:
    """In percent."""
    return 100 * fmean(
        grade(GRADER_OF[task], row.answers[level], row.reference, row.prompt) for row in recorded()[task][part]
    )


@needs_data
@pytest.mark.parametrize(("level", "expected"), [("L0", 35), ("L1", 19), ("L2", 16)])
def test_gsm8k_is_as_published(level: str, expected: float) -> None:
    assert accuracy("math", level) == pytest.approx(expected, abs=3)


@needs_data
def test_scienceqa_falls_with_brevity() -> None:
    # Judges prefer the brief answers here: a grader that overlooked long answers' options would, too.
    by_level = [accuracy("scienceqa", level) for level in LEVELS]
    assert by_level[0] > by_level[1] + 3
    assert by_level[0] > by_level[2] + 3
    assert by_level[1] > by_level[2]


@needs_data
def test_verbose_answers_to_mmlu_are_not_overlooked() -> None:
    # A parser that takes the first or the last letter reads 43.5.
    assert accuracy("mmlu", "L0") == pytest.approx(53.3, abs=1.5)
    assert accuracy("mmlu", "L0") > accuracy("mmlu", "L1") > accuracy("mmlu", "L2") - 1


@needs_data
@pytest.mark.parametrize("task", ["mmlu", "scienceqa"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_chosen_option_is_found(task: str, level: str) -> None:
    rows = recorded()[task]
    assert fmean(chosen(row.answers[level], options_of(row.prompt)) is not None for row in rows) >= 0.97


@needs_data
@pytest.mark.parametrize("task", GRADER_OF)
def test_every_reference_can_be_used_and_both_halves_agree(task: str) -> None:
    for level in LEVELS:
        # Five standard errors of the difference of two halves of 490.
        assert accuracy(task, level, slice(0, None, 2)) == pytest.approx(
            accuracy(task, level, slice(1, None, 2)), abs=16
        )


@needs_data
@pytest.mark.parametrize("task", ["naturalqa", "triviaqa"])
def test_a_name_is_seldom_held_by_luck(task: str) -> None:
    rows = recorded()[task]
    rng = random.Random(1)
    by_luck = fmean(grade("alias", rng.choice(rows).answers["L0"], row.reference) for row in rows for _ in range(5))
    assert by_luck < 0.01


FORMS = {
    "L0": "Let us see. The options differ in colour, and (A) may look right at first. {reason}\n\n"
    "Therefore, the correct answer is ({letter}): {text}.\n\nThe other options are incorrect:\n{others}",
    "L1": "Sure! Here's the answer:\n\n({letter}) {text}.",
    "L2": "{letter}",
}
COLOURS = ["red", "orange", "yellow", "green", "blue", "violet", "black", "white"]


@pytest.mark.parametrize("level", LEVELS)
def test_choices_of_any_length_are_read_alike(level: str) -> None:
    rng = random.Random(7)
    graded, truth = [], []
    for _ in range(300):
        texts = rng.sample(COLOURS, 4)
        prompt = "Which colour?\n" + "\n".join(
            f"({letter}): {text}" for letter, text in zip("ABCD", texts, strict=True)
        )
        said, right = rng.randrange(4), rng.randrange(4)
        others = "\n".join(f"* ({'ABCD'[k]}): {texts[k]} is rarer." for k in range(4) if k != said)
        reason = f"Yet {rng.choice(COLOURS)} is a colour, too."
        answer = FORMS[level].format(letter="ABCD"[said], text=texts[said], reason=reason, others=others)
        graded.append(grade("choice", answer, rng.choice(["ABCD"[right], texts[right]]), prompt))
        truth.append(float(said == right))
    assert graded == truth


@pytest.mark.parametrize("level", LEVELS)
def test_sums_of_any_length_are_read_alike(level: str) -> None:
    rng = random.Random(8)
    forms = {
        "L0": "First, {a} + {b} = {c}.\n\nThen I add {d}:\n\n{c} + {d} = {said:,}\n\nSo Ann has ${said:,} in {b} days.",
        "L1": "{a} + {b} + {d} = ${said:,} (for {b} days).",
        "L2": "{said}",
    }
    for _ in range(300):
        a, b, d, miss = rng.randrange(1, 4000), rng.randrange(2, 30), rng.randrange(1, 9000), rng.choice([0, 0, 1])
        answer = forms[level].format(a=a, b=b, c=a + b, d=d, said=a + b + d + miss)
        assert grade("numeric", answer, f"{a} + {b} + {d}\n#### {a + b + d}") == float(not miss)
