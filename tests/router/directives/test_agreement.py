"""Whether two answers say the same."""

import pytest

from router.directives.agreement import agree

OPTIONS = "Which is the largest?\n(A): the sun\n(B): the moon\n(C): the earth"


@pytest.mark.parametrize(
    ("answer", "other", "prompt", "same"),
    [
        ("(A) the sun", "The answer is A.", OPTIONS, True),
        ("(A) the sun", "(B) the moon", OPTIONS, False),
        ("I cannot say.", "I cannot say.", OPTIONS, False),
        ("Paris.", "Sure! The capital of France is Paris.", "what is the capital of france", True),
        ("Lyon.", "The capital of France is Paris.", "what is the capital of france", False),
        ("1969", "It was in July 1969.", "when did men land on the moon", True),
        ("", "Paris", "what is the capital of france", False),
        ("The capital of France", "capital of France", "what is the capital of france", False),
        ("James Joyce", "Joyce wrote it.", "who wrote ulysses", True),
    ],
)
def test_answers_agree_by_option_or_by_telling_words(answer: str, other: str, prompt: str, same: bool) -> None:
    assert agree(answer, other, prompt) is same
    assert agree(other, answer, prompt) is same
