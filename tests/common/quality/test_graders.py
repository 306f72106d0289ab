from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.graders import GRADERS, exact, grade, item_set, numeric

words = st.text(alphabet="abcdefghijklmnop", min_size=1, max_size=8).filter(lambda word: word != "none")
prose = st.text(alphabet="abcdefgh ABCDEF.!?\n()éü", max_size=80)
markers = st.sampled_from(["Answer:", "answer :", "The final ANSWER:", "Answer: 12, no.\nAnswer:"])


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("72", "72"),
        ("Natalia sold 48 + 24 = 72 clips in all.", "72"),
        ("48 / 2 = 24\n48 + 24 = 72\n#### 72", "72"),
        ("48 to begin with #### 72 clips", "48 + 24 = 72\n#### 72"),
        ("That makes $1,234.50.", "1234.5"),
        ("1,000,000", "1000000"),
        ("It falls by 5, so -5.", "-5"),
        ("The balance is -$1,200", "-1200"),
        ("The balance is $-1,200", "-1200"),
        ("\u22127 degrees", "-7"),
        ("45%", "45"),
        ("18.0", "18"),
        ("about .5 litres", "0.5"),
        ("**Answer:** 9\n", "9"),
        ("Answer: 8. Wait. Answer: 9", "9"),
        ("10-3 = 7", "7"),
        ("between 3-4", "4"),
        ("6 grams of CO2", "6"),
        ("\\boxed{72}", "72"),
    ],
)
def test_numeric_reads_the_number_that_a_reader_would(answer: str, reference: str) -> None:
    assert numeric(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("71", "72"),
        ("72 of 100", "72"),
        ("-72", "72"),
        ("7,2", "72"),
        ("0.45", "45%"),
        ("seventy-two", "72"),
        ("", "72"),
        ("72\nAnswer:", "72"),
        ("Answer: 72\nAnswer: 71", "72"),
        ("72 #### 71", "72"),
        ("1234.567", "1234.56"),
        ("CO72", "72"),
    ],
)
def test_numeric_refuses_another_number_or_none(answer: str, reference: str) -> None:
    assert numeric(answer, reference) == 0.0


amounts = st.decimals(-1_000_000, 1_000_000, places=2)


@given(amounts, amounts)
def test_numeric_compares_values_in_any_notation(said: Decimal, expected: Decimal) -> None:
    assert numeric(f"It comes to {said:,}.", f"#### {expected}") == float(said == expected)
    assert numeric(f"{expected:,}.", f"${expected}") == 1.0
    assert numeric(f"${expected}", f"{expected:,}000%") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "  paris.\n",
        '"Paris"',
        "“PARIS”.",
        "**Paris**",
        "Ｐaris",
        "The capital.\nAnswer: Paris!",
        "'Paris.'",
    ],
)
def test_exact_ignores_form(answer: str) -> None:
    assert exact(answer, "Paris") == 1.0


@pytest.mark.parametrize("answer", ["", "Pari s", "Paris, France", "It is Paris", "Answer: Rome\nParis"])
def test_exact_refuses_other_text(answer: str) -> None:
    assert exact(answer, "Paris") == 0.0


def test_exact_keeps_punctuation_that_is_all_there_is() -> None:
    assert exact("?", "?") == 1.0
    assert exact("!", "?") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "quality"),
    [
        ("rake, saw", "saw, rake", 1.0),
        ("Answer: Rake,\nsaw.", "saw, rake", 1.0),
        ("- rake\n- saw", "saw, rake", 1.0),
        ("1. rake\n2) saw", "saw, rake", 1.0),
        ("rake, saw,", "saw, rake", 1.0),
        ("rake, saw, rake", "saw, rake", 0.0),
        ("rake, Rake.", "rake", 0.0),
        ("rake", "saw, rake", 0.0),
        ("rake, saw, hoe", "saw, rake", 0.0),
        ("none", "none", 1.0),
        ("Answer: None.", "none", 1.0),
        ("", "none", 0.0),
        ("none", "rake", 0.0),
        ("none, rake", "rake", 0.0),
    ],
)
def test_item_set(answer: str, reference: str, quality: float) -> None:
    assert item_set(answer, reference) == quality


@given(st.lists(words, min_size=1, max_size=6, unique=True), st.data())
def test_item_set_depends_on_the_set_alone(items: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(items))
    separator = data.draw(st.sampled_from([",", ", ", "\n", " ,\n"]))
    assert item_set(separator.join(shuffled), ", ".join(items)) == 1.0
    assert item_set(separator.join([*shuffled, shuffled[0]]), ", ".join(items)) == 0.0
    assert item_set(separator.join(shuffled[1:]), ", ".join(items)) == 0.0


@given(prose, markers, st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_numeric_grades_a_verbose_and_a_bare_answer_alike(steps: str, marker: str, said: int, expected: int) -> None:
    assert numeric(f"{steps} 3 + 4 = 7\n{marker} {said}", str(expected)) == numeric(str(said), str(expected))


@given(prose, markers, words, words)
def test_exact_grades_a_verbose_and_a_bare_answer_alike(steps: str, marker: str, said: str, expected: str) -> None:
    assert exact(f"{steps}\n{marker} {said}", expected) == exact(said, expected) == float(said == expected)


@given(prose, markers, st.lists(words, max_size=4), st.lists(words, min_size=1, max_size=4, unique=True))
def test_item_set_grades_a_verbose_and_a_bare_answer_alike(
    steps: str, marker: str, said: list[str], expected: list[str]
) -> None:
    bare, reference = ", ".join(said) or "none", ", ".join(expected)
    assert item_set(f"{steps}\n{marker} {bare}", reference) == item_set(bare, reference)


@given(st.sampled_from(sorted(GRADERS)), st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_graded_or_its_reference_refused(name: str, answer: str, reference: str) -> None:
    try:
        quality = grade(name, answer, reference)
    except ValueError as error:
        assert "reference" in str(error)
    else:
        assert 0.0 <= quality <= 1.0
        assert grade(name, reference, reference) == 1.0


@pytest.mark.parametrize(
    ("name", "reference"),
    [("numeric", "no digits"), ("exact", " \n"), ("item_set", ", ,"), ("item_set", "rake, rake")],
)
def test_a_reference_that_cannot_be_met_is_refused(name: str, reference: str) -> None:
    with pytest.raises(ValueError, match="reference"):
        grade(name, "anything", reference)


def test_an_unknown_grader_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(ValueError, match="exact, item_set, numeric, got 'bleu'"):
        grade("bleu", "a", "a")
