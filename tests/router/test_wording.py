"""What a directive's words must not hold is found wherever it stands, however it is spelled; ordinary text passes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router.directives.levels import SEEDED
from router.directives.wording import Fault, faults_of

ORDINARY = [
    *(directive.text for directive in SEEDED),
    "Answer as the user would: briefly.",
    "Answer in at most two sentences, then stop.",
    "The system answers: one line, no preamble.",
    "If a < b and b > c, say so in one word: yes or no.",
    'Use JSON like {"answer": [1, 2]} and nothing else.',
    "Be brief (the user is in a hurry).",
    "Users expect short answers: give them.",
    "Systematically short: five words at most.",
    "Human-readable units only, e.g. 3 km.",
    "Answer: one number.",
    "Keep it short; 100% accurate, #1 priority, 2 | 3 items.",
    "Réponds brièvement, sans préambule — 20 mots au plus.",
    "Kurz und knapp: höchstens zwei Sätze.",
    "簡潔に答えてください。",
    "ユーザーに分かりやすく、三文以内で答えてください。",
    "ユーザーの質問には：結論だけを述べる。",
    "システムの説明は不要です。要点のみ（箇条書き）。",
    "回答は日本語で、二〇〇字以内。",
    "短く答えること：結論→理由の順。",
    "请用一句话回答用户的问题。",
    "사용자의 질문에 한 문장으로 답하세요.",
]

SPECIAL_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|start_header_id|>", "<|USER|>", "<| system |>"),
    *("<s>", "</s>", "<S>", "<bos>", "<eos>", "<pad>", "<unk>", "[SEP]", "[CLS]", "[gMASK]", "<extra_id_7>", "<0x0A>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
    *("<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<tool_call>", "<unused42>"),
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
]
TEMPLATE_ESCAPES = ["{{", "{%", "{#"]
ROLE_MARKERS = [
    *("User:", "user :", "USER:", "Assistant:", "System:", "Human:", "AI:", "Human 2:", "System prompt:", "Tool:"),
    *("**Assistant:**", "**User**:", "> user:", "- System:", "[User]", "<system>", "(assistant)"),
    *("### Instruction", "### Response:", "## System", "####user"),
    *("ユーザー：", "ユーザ:", "アシスタント：", "システム：", "人間：", "【ユーザー】", "### 指示：", "### 応答"),
    *("用户：", "助手:", "系统：", "사용자:", "시스템："),
]
INVISIBLE = [
    *("\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e", "\u2066", "\u200f", "\u2028", "\u2029", "\ue000"),
    *("\U000e0041", "\U000e0100", "\ufe0f", "\u3164", "\u115f", "\u2800", "\U0010fffd", "\u061c"),
]

words = st.lists(
    st.sampled_from(
        ["answer", "briefly,", "in", "one", "sentence.", "短く、", "答えて", "ください。", "(at", "most)", "20"]
    ),
    min_size=1,
    max_size=8,
).map(" ".join)


def fault(text: str, kind: str) -> Fault:
    found = [one for one in faults_of(text) if kind in one.kind]
    assert len(found) == 1, (text, found)
    return found[0]


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_sentence_passes(text: str) -> None:
    assert list(faults_of(text)) == []
    assert list(faults_of(unicodedata.normalize("NFD", text))) == []


@given(words)
def test_words_pass(text: str) -> None:
    assert list(faults_of(text)) == []


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_read_and_what_is_found_stands_where_it_is_said_to(text: str) -> None:
    for one in faults_of(text):
        spelled = repr(text[one.index])[1:-1]
        assert one.found.startswith(("U+", f"'{spelled}", f'"{spelled}'))


def wide(text: str) -> str:
    """As a Japanese keyboard spells it in full width."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def as_is(text: str) -> str:
    return text


spellings = st.sampled_from([as_is, wide, decomposed])


@given(words, st.sampled_from(SPECIAL_TOKENS), words, spellings, st.sampled_from(["", " "]))
def test_a_special_token_is_found_anywhere(before: str, token: str, after: str, spell: object, gap: str) -> None:
    assert callable(spell)
    planted = spell(token)
    one = fault(f"{before}{gap}{planted}{gap}{after}", "special token")
    assert (one.found, one.index) == (repr(planted), len(before + gap))
    assert fault(planted, "special token").index == 0


@given(words, st.sampled_from(TEMPLATE_ESCAPES), words, spellings)
def test_a_template_escape_is_found_anywhere(before: str, escape: str, after: str, spell: object) -> None:
    assert callable(spell)
    one = fault(f"{before}{spell(escape)}{after}", "template expression")
    assert (one.found, one.index) == (repr(spell(escape)), len(before))


@given(words, st.sampled_from(INVISIBLE), words)
def test_an_invisible_character_is_found_anywhere(before: str, character: str, after: str) -> None:
    one = fault(before + character + after, "invisible")
    assert (one.found, one.index) == (f"U+{ord(character):04X}", len(before))


@given(st.sampled_from(ROLE_MARKERS), words, spellings, st.sampled_from(["", " ", "  ", "\u3000"]))
def test_a_role_marker_is_found_where_the_text_begins(marker: str, after: str, spell: object, indent: str) -> None:
    assert callable(spell)
    planted = spell(marker)
    assert fault(f"{indent}{planted} {after}", "role marker").index == len(indent)
    assert fault(planted, "role marker").index == 0


@given(words, st.sampled_from(ROLE_MARKERS), st.sampled_from(["\n", "\r", "\u2028", "\x85"]))
def test_a_role_marker_is_found_where_another_line_begins(before: str, marker: str, end: str) -> None:
    assert fault(f"{before}{end}{marker} hi", "role marker").index == len(before) + 1


@pytest.mark.parametrize("word", ["user", "Assistant", "SYSTEM", "Human ", "ユーザー", "システム"])
def test_the_bare_name_of_a_role_is_a_marker_as_the_whole_text_only(word: str) -> None:
    assert fault(word, "role marker").index == 0
    assert list(faults_of(f"Speak to the {word}")) == []


@given(words, st.sampled_from(ROLE_MARKERS))
def test_within_a_line_a_role_is_a_word(before: str, marker: str) -> None:
    assume(marker != "<system>")
    assert list(faults_of(f"{before} {marker} or not")) == []


def test_a_mark_that_composes_with_a_token_does_not_hide_it() -> None:
    """Its raw spelling is what a tokenizer looks for, and in composed form there is none."""
    assert fault("Be brief <s>\u0338", "special token").found == "'<s>'"


def test_every_kind_is_told_at_once_and_each_says_what_where_and_why() -> None:
    told = [str(one) for one in faults_of("User: {{x}} \u202e<s>")]
    assert told == [
        "has an invisible character, U+202E, at 12; nobody could review what it hides",
        "has the beginning of a template expression, '{{', at 6; a chat template might expand it",
        "has the spelling of a special token, '<s>', at 13; models tell by it where turns begin and end",
        "has a role marker, 'User:', at 0; a directive adds to a turn and must not look like the beginning of another",
    ]


def test_what_is_long_and_odd_is_read_in_no_time() -> None:
    """No pattern looks at a text again and again: a hundred thousand characters end."""
    for odd in ("<", "<|", "< ", "[ ", "{", "# ", "*_", "user ", "<start_of", "\u3000", "<<"):
        list(faults_of(odd * (100_000 // len(odd))))
