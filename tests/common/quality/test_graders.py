"""All graders by one door: what holds for each of them, whatever an answer is."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.graders import GRADERS, grade

PROMPT = "Which is it?\n(A): red fox\n(B): blue whale\n(C): both of them\n(D): 7"
names = st.sampled_from(sorted(GRADERS))
pieces = st.sampled_from(
    ["Answer:", "答え：", "(A)", "(B):", "B.", "**C**", "red fox", "blue whale", "is incorrect", "the best is", "not",
     "####", "7", "1,000", "-", "=", "(", ")", ";", ",", "\n", "\n\n", ": ", ". ", "none", "\0", "１", "Ａ", "（", "٣",
     "İ", "é", "\ue000A\ue001", "🎾", "東京"]
)  # fmt: skip
anything = st.text(max_size=80) | st.lists(pieces, max_size=12).map(" ".join)


@given(names, anything, anything, st.just(PROMPT) | anything)
def test_any_text_is_graded_or_its_reference_refused(name: str, answer: str, reference: str, prompt: str) -> None:
    try:
        quality = grade(name, answer, reference, prompt)
    except ValueError as error:
        assert str(error).startswith("reference must ")
    else:
        assert 0.0 <= quality <= 1.0
        assert grade(name, answer, reference, prompt) == quality


@given(names, st.text(max_size=60), st.text(max_size=60))
def test_a_reference_that_can_be_used_grades_itself_as_right(name: str, reference: str, prompt: str) -> None:
    # Of several names each is right; a paragraph more is not decisive.
    reference = " ".join(reference.replace(";", " ").split())
    try:
        quality = grade(name, reference, reference, prompt)
    except ValueError:
        return
    assert quality == 1.0


@given(names, anything)
def test_an_empty_answer_gets_nothing(name: str, reference: str) -> None:
    try:
        assert grade(name, "", reference, PROMPT) == grade(name, " \n\0", reference, PROMPT) == 0.0
    except ValueError as error:
        assert "reference" in str(error)


@pytest.mark.parametrize("name", sorted(GRADERS))
@pytest.mark.parametrize("reference", ["", " \n", "\0", "\0 \0"])
def test_a_blank_reference_is_refused(name: str, reference: str) -> None:
    with pytest.raises(ValueError, match=r"^reference must "):
        grade(name, "anything", reference, PROMPT)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("numeric", "no digits"),
        ("item_set", ", ,"),
        ("item_set", "rake, rake"),
        ("required_items", "rake, rake"),
        ("required_items", "rake, #"),
        ("alias", "; ;"),
        ("alias", "?"),
        ("token_f1", "..."),
        ("choice", "E"),
    ],
)
def test_a_reference_that_cannot_be_met_is_refused(name: str, reference: str) -> None:
    with pytest.raises(ValueError, match=r"^reference must "):
        grade(name, "anything", reference, PROMPT)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("numeric", "canary"),
        ("choice", "canary"),
        ("item_set", "canary, canary"),
        ("required_items", "canary, #"),
        ("alias", "#"),
        ("token_f1", "#"),
    ],
)
def test_what_a_log_must_not_hold_stands_at_the_end_of_the_error(name: str, reference: str) -> None:
    with pytest.raises(ValueError, match=", got ") as caught:
        grade(name, "anything", reference, PROMPT)
    kept, _, cut = str(caught.value).partition(", got ")
    assert "canary" not in kept
    assert cut == repr(reference)


def test_an_unknown_grader_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="alias, choice, exact, item_set, numeric, required_items, token_f1, got 'bleu'"
    ):
        grade("bleu", "a", "a")


HOSTILE = """
import itertools
from common.quality.graders import GRADERS, grade

def filled(piece):
    return (piece * (100_000 // len(piece) + 1))[:100_000]

pieces = (
    "A |(A) |(| |\\n \\n|: \\n|. |111,|- 1|= 1 |not (A) |(A) is not badly |correct a |answer is A |１|e\\u0301|日|"
    "both A and |a;|\\ue000A\\ue001|b b b "
).split("|")
answers = [filled(piece) for piece in pieces]
answers += [filled(" ") + "x", "answer" + filled(" ") + ":", filled("\\t") + "\\n", "correct " + filled("x")]
answers += ["(A)" + filled(" "), "A" + filled(" ") + "b", filled("a b ") + "c", filled("1") + "." + filled("1")]
prompt = "Which?\\n(A): a b c\\n(B): alpha beta\\n(C): a\\n(D): both A and B"
many = ["b" * count for count in range(1, 120)]
references = {"numeric": "7", "choice": "B", "exact": "a", "item_set": "a, b", "alias": "; ".join(many)}
references |= {"token_f1": references["alias"], "required_items": ", ".join(many)}
assert references.keys() == GRADERS.keys()
for name, answer in itertools.product(GRADERS, answers):
    assert 0.0 <= grade(name, answer, references[name], prompt) <= 1.0
long = "\\n".join(f"({letter}): {filled(letter + ' x ')}" for letter in "ABCD")
assert 0.0 <= grade("choice", filled("A x "), "A", long) <= 1.0
print("graded", len(answers) * len(GRADERS))
"""


@pytest.mark.timeout(900)  # of a busy machine's time
def test_no_answer_of_100_kb_makes_work_explode() -> None:
    """A limit on work, not on time: many times what is needed, a fraction of what backtracking takes."""
    processor_seconds = 90
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds)),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.startswith("graded ")
