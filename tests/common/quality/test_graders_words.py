"""The same text, one of several names, common words, items of a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.graders.aliases import alias
from common.quality.graders.exact import exact
from common.quality.graders.items import item_set, required_items
from common.quality.graders.normalisation import composed, normalised
from common.quality.graders.normalisation import words as words_of
from common.quality.graders.token_f1 import token_f1

words = st.text(alphabet="bcdefghijklmnop", min_size=1, max_size=8).filter(lambda word: word != "none")
prose = st.text(alphabet="abcdefgh ABCDEF.!?\n()éü", max_size=80)
markers = st.sampled_from(["Answer:", "answer :", "The final ANSWER:", "Answer: 12, no.\nAnswer:"])


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


@given(prose, markers, words, words)
def test_exact_grades_a_verbose_and_a_bare_answer_alike(steps: str, marker: str, said: str, expected: str) -> None:
    assert exact(f"{steps}\n{marker} {said}", expected) == exact(said, expected) == float(said == expected)


@given(prose, markers, st.lists(words, max_size=4), st.lists(words, min_size=1, max_size=4, unique=True))
def test_item_set_grades_a_verbose_and_a_bare_answer_alike(
    steps: str, marker: str, said: list[str], expected: list[str]
) -> None:
    bare, reference = ", ".join(said) or "none", ", ".join(expected)
    assert item_set(f"{steps}\n{marker} {bare}", reference) == item_set(bare, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Griffin.", "Gryphon; Griffin; griffins"),
        ("The creature is called a Griffin.", "griffin"),
        ("Spider-Man came out in 2002.", "Spiderman"),
        ("spider man", "Spider-Man"),
        ("It was J. M. Digman.", "J.M. Digman"),
        ("Beyonce", "Beyoncé"),
        ("Gulliver’s Travels", "Gulliver's Travels"),
        ("The Cornet", "cornet"),
        ("It came out on April 29, 2018.", "April\xa029,\xa02018"),
        ("1,000 metres", "1000 metres"),
        ("🎾", "Tennis; 🎾"),
        ("The The", "The The"),
        ("Sure! Here's the answer:\n\nParis.", "Paris"),
        ("Steps: Rome, no.\n\nAnswer: Paris", "Paris"),
        ("ＰＡＲＩＳ", "Paris"),
        ("首都は東京です。", "東京"),
        ("Paris\0", "Paris"),
    ],
)
def test_alias_finds_any_of_the_names(answer: str, reference: str) -> None:
    assert alias(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("", "Paris"),
        ("Rome", "Paris; Lutetia"),
        ("The art of spinning", "pin"),
        ("parish", "Paris"),
        ("Options 1, 2 and 3", "12"),
        ("3.5", "5"),
        ("There is no such island.\n\nPerhaps you think of Laputa, or of Lilliput.", "Laputa"),
        ("It is Rome.\n\nOther capitals are Paris, Berlin and Madrid.", "Paris"),
        ("Paris.\nAnswer: Rome", "Paris"),
    ],
)
def test_alias_needs_whole_words_in_the_decisive_part(answer: str, reference: str) -> None:
    assert alias(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "quality"),
    [
        ("Paul Simon", "paul simon", 1.0),
        ("It was Paul Simon", "paul simon", 2 * 2 / (4 + 2)),
        ("Simon", "Jerry Landis; Paul Simon", 2 * 1 / (1 + 2)),
        ("the the simon", "simon", 1.0),
        ("simon simon", "simon", 2 / 3),
        ("Garfunkel", "Paul Simon", 0.0),
        ("", "Paul Simon", 0.0),
        ("First Garfunkel.\nAnswer: Paul Simon", "Paul Simon", 1.0),
    ],
)
def test_token_f1_is_that_of_squad(answer: str, reference: str, quality: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(quality)


@given(st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=6), st.lists(words, max_size=20))
def test_token_f1_falls_and_alias_does_not_with_every_word_more(
    said: list[str], expected: list[str], more: list[str]
) -> None:
    answer, reference = " ".join(said), " ".join(expected)
    longer = f"{answer} {' '.join('z' + word for word in more)}"
    assert token_f1(longer, reference) <= token_f1(answer, reference)
    assert alias(longer, reference) >= alias(answer, reference)
    assert token_f1(answer, reference) == token_f1(reference, answer)


@pytest.mark.parametrize(
    ("answer", "reference", "quality"),
    [
        ("Bring a rake, then the saw.", "saw, rake", 1.0),
        ("Bring a rake.", "saw, rake", 0.5),
        ("Rakes and sawdust", "saw, rake", 0.0),
        ("", "saw, rake", 0.0),
        ("Answer: rake\n\n1. Saw", "saw\nrake", 1.0),
        ("Use the hand-saw and the watering can", "hand saw, watering can, rake", 2 / 3),
        ("のこぎりと熊手", "のこぎり、熊手", 1.0),
    ],
)
def test_required_items_gives_the_share_that_is_there(answer: str, reference: str, quality: float) -> None:
    assert required_items(answer, reference) == pytest.approx(quality)


@given(st.lists(words, min_size=1, max_size=6, unique=True), st.data())
def test_required_items_counts_each_item_once_in_any_company(items: list[str], data: st.DataObject) -> None:
    there = data.draw(st.lists(st.sampled_from(items), max_size=8))
    answer = "z, ".join(there) + "."
    said = [*(word + "z" for word in there[:-1]), *there[-1:]]
    assert required_items(answer, ", ".join(items)) == len(set(items) & set(said)) / len(items)


anything = st.text(max_size=60) | st.text(alphabet="aA. ,'\"İıﬁ½²１Ａ（）\u0301\u3099\0the12-;:\n*", max_size=30)


@given(anything)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert composed(composed(text)) == composed(text)
    assert normalised(normalised(text)) == normalised(text)
    assert words_of(" ".join(words_of(text))) == words_of(text)


@given(st.lists(words, min_size=1, max_size=4))
def test_form_does_not_matter(said: list[str]) -> None:
    name = " ".join(said)
    for form in (name.upper(), name.title(), f'  "{name}". ', f"the {name}", name.replace(" ", "\n"), f"«{name}»!"):
        assert alias(form, name) == token_f1(form, name) == required_items(form, name) == 1.0
