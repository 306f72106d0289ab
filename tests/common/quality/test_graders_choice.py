"""The option that an answer settles on: letters, texts, several of them, none."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.quality.graders.choice import choice, chosen
from common.quality.graders.options import options_of, right_option

PROMPT = """Which planet is the hottest?
(A): Mercury
(B): Venus
(C): Both are equally hot.
(D): None of them"""
OPTIONS = options_of(PROMPT)
PAIRS = options_of("Two statements.\n(A): True, True\n(B): False, False\n(C): True, False\n(D): False, True")
CHANGES = options_of(
    "What do they share?\nChoices:\n(A): Both are only physical changes.\n(B): Both are chemical changes.\n"
    "(C): Both are caused by heating."
)
CASES = options_of("Which greeting is right?\nChoices:\n(A): Dear Ms. Perry,\n(B): dear Ms. Perry,")


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "**B**",
        "(B): Venus",
        "B) Venus.",
        "Venus",
        "venus.",
        "Answer: B",
        "Sure! Here's my answer:\n\nB: Venus.",
        "The correct answer is B because of its clouds.",
        "The correct answer is (B): Venus.\n\nMercury (A) has no air, and option (C) is incorrect.",
        "The hottest planet is:\n\n(B) Venus.\n\nThe others:\n(A): Mercury is small.\n(C): They differ.",
        "I would say that it is **(B)**.",
        "\\boxed{B}",
        "(A) is not correct. (C) and (D) are wrong. So Venus it is.",
        "Mercury is nearer to the sun, yet the best choice is (B), not (A).",
        "(A): 430 °C by day\n(B): 465 °C\n\nSo the planet that stays hottest is the one of (B).",
        "(B): Mercury",  # the letter decides
        "It is Venus, since its clouds keep the heat.",
        "Mercury is near, but therefore option (B) is the correct answer.",
        "The answer is (B), as Plan A and Plan C failed.",
        "答えは（Ｂ）です。",
        "答え：Ｂ",
        "正解はBです。",
        "答案是B。",
        "正确答案：B",
        "الإجابة: B",
        "Die Antwort: (B)",
        "(B)\0",
    ],
)
def test_finds_the_option_that_a_reader_would(answer: str) -> None:
    assert chosen(answer, OPTIONS) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "\0",
        "I cannot answer that.",
        "As an AI, I have no opinion on planets.",
        "The answer is (A) or (B).",
        "The correct answer is (A). No, the correct answer is (B).",
        "Both (A) and (B) could be right.",
        "(A) True.\n(B) False.\n(C) True.\n(D) False.",
        "Here are the answers:\n\nA. It is small.\nB. It is hot.\nC. They are not.",
        "(E): Pluto",
        "The answer is (E).",
        "A planet is a body that orbits a star.",
        "I think that we will never know.",
        "(A) is not correct.",
        "Unlike (A), it is hot.",
        "金星かもしれません。",
    ],
)
def test_finds_none_where_none_or_several_are_declared(answer: str) -> None:
    assert chosen(answer, OPTIONS) is None


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (PAIRS, "Statement 1: True\nStatement 2: False", "C"),
        (PAIRS, "True, False", "C"),
        (PAIRS, "The first statement is true.", None),
        (CHANGES, "Both are physical changes.", "A"),
        (CHANGES, "Both are examples of chemical changes.", "B"),
        (CHANGES, "Sure! Here it is:\n\nBoth are caused by heating.", "C"),
        (CASES, "The letter should begin with: dear Ms. Perry,", "B"),
        (CASES, "Dear Ms. Perry", "A"),
        ({}, "The correct answer is (F).", "F"),
        ({}, "It depends.", None),
    ],
)
def test_texts_count_where_no_letter_stands(options: dict[str, str], answer: str, letter: str | None) -> None:
    assert chosen(answer, options) == letter


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Which?\n(A) one\n(B) two", {"A": "one", "B": "two"}),
        ("Which?\nA. one\nB. two\nC. three", {"A": "one", "B": "two", "C": "three"}),
        ("Which?\n a) one\n b) two\n\nAnswer with a letter.", {"A": "one", "B": "two"}),
        ("Which? (A) one (B) two", {"A": "one", "B": "two"}),
        ("Which? A. one B. two", {"A": "one", "B": "two"}),
        ("どれ？\n（Ａ）一\n（Ｂ）二", {"A": "一", "B": "二"}),
        ("Poem:\n(A): a line\nand another\n(B): the end", {"A": "a line\nand another", "B": "the end"}),
        ("Example:\n(A) x\n(B) y\nAnswer: A\n\nNow you:\n(A) one\n(B) two", {"A": "one", "B": "two"}),
        ("(A) alone", {}),
        ("Tell me about A. Milne.", {}),
        ("", {}),
    ],
)
def test_reads_the_options_of_a_prompt(prompt: str, options: dict[str, str]) -> None:
    assert options_of(prompt) == options


@pytest.mark.parametrize(
    "reference", ["B", "b", "(B)", "B.", "Venus", "venus.", "(B): Venus", "B. Venus", "Ｂ", "Answer: B"]
)
def test_a_reference_is_a_letter_a_text_or_both(reference: str) -> None:
    assert right_option(reference, OPTIONS) == "B"
    assert choice("I think that (B) is right.", reference, PROMPT) == 1.0
    assert choice("I think that (A) is right.", reference, PROMPT) == 0.0
    assert choice("", reference, PROMPT) == 0.0


@pytest.mark.parametrize(
    ("reference", "prompt", "fault"),
    [
        ("", PROMPT, "must be a letter or the text of an option, got a blank one"),
        ("\0 \n", PROMPT, "must be a letter or the text of an option, got a blank one"),
        ("E", PROMPT, "must be one of the letters A, B, C, D or the text of one option, got 'E'"),
        ("Pluto", PROMPT, "must be one of the letters A, B, C, D or the text of one option, got 'Pluto'"),
        ("(A): Venus", PROMPT, "must be one of the letters A, B, C, D or the text of one option"),
        ("7", PROMPT, "must be one of the letters"),
        ("Venus", "Which planet?", "must be a letter where the prompt lists no options, got 'Venus'"),
        ("same", "(A) same\n(B) same", "must fit one option, not A and B, got 'same'"),
    ],
)
def test_a_reference_that_names_no_option_is_refused(reference: str, prompt: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^reference ") as caught:
        choice("B", reference, prompt)
    assert fault in str(caught.value)


texts = st.lists(
    st.text(alphabet="bcdefghjklmnopqrstuvwxyz", min_size=3, max_size=8).filter(
        lambda word: word not in {"not", "nor", "best", "right", "than"}
    ),
    min_size=1,
    max_size=3,
).map(" ".join)
listed = st.lists(texts, min_size=2, max_size=6, unique_by=str.casefold)
declarations = st.sampled_from(
    [
        "The correct answer is ({letter}): {text}.",
        "({letter}) {text}",
        "{letter}. {text}",
        "Sure! Here's the answer:\n\n**{letter}**",
        "Answer: {letter}",
        "{text}",
        "I would choose option {letter}.",
        "Therefore, option ({letter}) is the best answer.",
    ]
)


@given(listed, declarations, st.data())
def test_any_declared_option_is_found(options: list[str], declaration: str, data: st.DataObject) -> None:
    # One option within another ("red", "red fox") is another matter: the longest that stands there counts.
    assume(not any(f" {one} " in f" {other} " for one in options for other in options if one != other))
    letters = "ABCDEF"[: len(options)]
    prompt = "Which?\n" + "\n".join(f"({letter}): {text}" for letter, text in zip(letters, options, strict=True))
    right = data.draw(st.integers(0, len(options) - 1))
    answer = declaration.format(letter=letters[right], text=options[right])
    assert chosen(answer, options_of(prompt)) == letters[right]
    for reference in (letters[right], options[right]):
        assert choice(answer, reference, prompt) == choice(reference, reference, prompt) == 1.0


@given(listed, st.data())
def test_what_is_said_of_the_others_changes_nothing(options: list[str], data: st.DataObject) -> None:
    letters = "ABCDEF"[: len(options)]
    prompt = "\n".join(f"({letter}): {text}" for letter, text in zip(letters, options, strict=True))
    right = data.draw(st.integers(0, len(options) - 1))
    others = [f"({letter}) {text}: that one is incorrect." for letter, text in zip(letters, options, strict=True)]
    del others[right]
    answer = f"The correct answer is ({letters[right]}).\n\n" + "\n".join(data.draw(st.permutations(others)))
    assert chosen(answer, options_of(prompt)) == letters[right]
