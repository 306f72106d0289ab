"""What a request shows: in the words of people who ask, in English and Japanese."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.directives.compile import Turn
from router.directives.policy import Trait
from router.directives.traits import READ_CHARACTERS, traits_of

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data"))

SHOWN = {
    Trait.STRUCTURED_OUTPUT: [
        "List the three largest cities of Spain as JSON.",
        "Answer in YAML, please",
        "Give me a CSV of the planets and their radii",
        "Return valid XML only.",
        "Compare the two phones in a table.",
        "Make me a neat little table of the results",
        "Show the differences in a short two-column table",
        "I need a table with one row for each country",
        "Your answer must match the following schema:\n{...}",
        "Reply in the following format: name; year",
        "Please present the results in the format of 'word, number'",
        "Format your answer as a list of key-value pairs",
        "Give the names as a comma-separated list",
        "結果をJSONで返してください。",
        "次の国の首都を表にまとめてください。",
        "比較表を作って",
        "以下の形式で答えてください。",
        "カンマ区切りで出力して",
    ],
    Trait.EXPLICIT_LENGTH: [
        "Describe the French revolution in 200 words.",
        "Summarise this in three sentences",
        "Write at least 500 words on bees.",
        "Write a 1,500-word essay on tides",
        "Explain it in a single paragraph",
        "Use no more than 280 characters.",
        "Answer in one word: is it blue?",
        "in 2-3 short sentences, who was Ada Lovelace?",
        "Give me a summary in five bullet points",
        "I need at most ten lines",
        "Write two pages about my holiday",
        "Explain in detail how a heat pump works.",
        "Give me a detailed explanation",
        "Write a long story about a fox",
        "Mind the word limit",
        "明治維新について200字で説明してください。",
        "３文で要約して",
        "三行でまとめて",
        "400文字以内で書いてください",
        "仕組みを詳しく教えて",
    ],
    Trait.CODE: [
        "Write a function that reverses a string.",
        "Create a small script to rename my photos",
        "write an SQL query for the ten best customers",
        "How do I read a file in Python?",
        "Fix this:\n```\nfor i in x print(i)\n```",
        "Why does the following code not compile?",
        "Can you refactor my code?",
        "Implement a parser for this grammar",
        "Give me a regex for dates",
        "how do I sort a vector in c++",
        "Write unit tests for it",
        "フィボナッチ数を求めるコードを書いて",
        "エクセルのマクロを作ってください",
        "この関数のバグを直して",
        "メールアドレスの正規表現を教えて",
        "二分探索を実装してください",
    ],
    Trait.TOOLS: [
        "You have access to the following tools: search, calculator.",
        "You may call any of these functions.",
        "Use the available tools where they help.",
        "Respond with a tool call.",
        "<tools>[...]</tools>",
        "Thought: ...\nAction: search\nAction Input: weather",
        "次のツールを使って答えてください。",
        "利用可能な関数: search",
    ],
}

PLAIN = [
    "What are the names of some famous actors that started their careers on Broadway?",
    "who is the only indian to get out for obstructing the field in t20 cricket",
    "Katya sold 8 glasses of lemonade and Ricky sold 9 glasses of lemonade. How many more than Katya did Tina sell?",
    "She wrote 12 pages on Monday and read 30 pages on Tuesday. How many pages is that?",
    "Look at the table. Which animal is the fastest?",
    "How do I take care of a wooden table?",
    "Which is a complex sentence?\nChoices:\n(A): She ran.\n(B): Although she ran, she was late.",
    "What is the main point of this passage?",
    "Who wrote the letter to the Corinthians?",
    "What class did he teach?",
    "What is the function of the liver?",
    "How long is the Nile?",
    "What tools did early humans use?",
    "Answer briefly: why is the sky blue?",
    "Name a synonym of 'quick'.",
    "富士山の高さは何メートルですか？",
    "彼の発表を聞いた人は何人ですか。",
    "この言葉の意味を教えてください。",
    "東京の人口は？",
]


def user(text: str) -> list[Turn]:
    return [Turn("user", text)]


@pytest.mark.parametrize(("trait", "text"), [(trait, text) for trait, texts in SHOWN.items() for text in texts])
def test_what_is_asked_for_shows(trait: Trait, text: str) -> None:
    assert trait in traits_of(user(text))
    assert trait in traits_of([Turn("system", text), Turn("user", "Who was Ada Lovelace?")])
    assert trait in traits_of(user(text.upper()))


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_not_asked_for_does_not(text: str) -> None:
    assert traits_of(user(text)) == frozenset()


def test_what_the_caller_declares_is_taken_at_its_word() -> None:
    assert traits_of([], {Trait.TOOLS}) == {Trait.TOOLS}
    assert traits_of(user("Answer as JSON."), [Trait.TOOLS, Trait.CODE]) == {
        Trait.TOOLS,
        Trait.CODE,
        Trait.STRUCTURED_OUTPUT,
    }
    assert traits_of(user("Hello"), opt_out=True) == traits_of(user("Hello"), [Trait.OPT_OUT]) == {Trait.OPT_OUT}


def test_only_what_is_asked_now_counts() -> None:
    earlier = [Turn("user", "Give me JSON."), Turn("assistant", "```json\n{}\n```"), Turn("user", "Thank you!")]
    assert traits_of(earlier) == frozenset()


def test_a_demand_is_found_before_and_after_a_long_text() -> None:
    passage = "The river rose in the night and the people went up to the hill. " * 1_000
    assert len(passage) > 10 * READ_CHARACTERS
    assert traits_of(user(passage)) == frozenset()
    assert traits_of(user(f"Turn this into JSON.\n{passage}")) == {Trait.STRUCTURED_OUTPUT}
    assert traits_of(user(f"{passage}\nSay that in 50 words.")) == {Trait.EXPLICIT_LENGTH}


@given(st.text(max_size=200), st.text(min_size=1, max_size=200))
def test_what_stands_in_the_middle_of_a_long_text_costs_nothing(middle: str, other: str) -> None:
    def around(text: str) -> list[Turn]:
        return user("b" * READ_CHARACTERS + text + "e" * (READ_CHARACTERS + 1))

    assert traits_of(around(middle)) == traits_of(around(other)) == frozenset()


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["write", "a", "table", "in", "200", "words", "json", ".", "表", "を", "作", "コード", " ", "\n", "```"]
        ),
        max_size=2_000,
    )
)
def test_no_text_is_too_odd(words: list[str]) -> None:
    text = " ".join(words)
    shown = traits_of(user(text))
    assert ("```" in text[:READ_CHARACTERS]) <= (Trait.CODE in shown)


def _rate(prompts: Iterable[str], trait: Trait | None = None) -> float:
    shown = [traits_of(user(prompt)) for prompt in prompts]
    return sum(bool(traits) if trait is None else trait in traits for traits in shown) / len(shown)


def test_on_synthetic_prompts_few_alarms_are_false() -> None:
    """Questions of the kind that short answers are good for, made from parts, without any demand in them."""
    subjects = ["the Nile", "a heat pump", "Ada Lovelace", "the French revolution", "a black hole", "photosynthesis"]
    questions = ["What is {}?", "Why is {} important?", "Who first described {}?", "Explain {}.", "Tell me about {}."]
    prompts = [question.format(subject) for question in questions for subject in subjects]
    assert _rate(prompts) == 0.0
    demands = ["Answer as JSON.", "Use at most 50 words.", "Write a Python script for it."]
    assert _rate(f"{prompt} {demand}" for prompt in prompts for demand in demands) == 1.0


def test_on_real_prompts_few_alarms_are_false_and_most_demands_are_seen() -> None:
    sprout, mt_bench = DATA / "sprout" / "requests_dev.jsonl.gz", DATA / "mt_bench" / "mt_bench__question.jsonl"
    if not (sprout.exists() and mt_bench.exists()):
        pytest.skip("needs sprout and mt_bench from PITH_DATA_DIR")
    by_task: dict[str, list[str]] = {}
    with gzip.open(sprout, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            by_task.setdefault(row["task"], []).append(row["prompt"])
    for task in ("mmlu", "naturalqa", "triviaqa", "math", "scienceqa"):
        assert _rate(by_task[task]) < 0.03, task
    turns: dict[str, list[str]] = {}
    for line in mt_bench.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns.setdefault(row["category"], []).append(row["turns"][0])
    assert _rate(turns["coding"], Trait.CODE) >= 0.9
    assert _rate(turns["extraction"], Trait.STRUCTURED_OUTPUT) >= 0.5
    assert _rate(turns["roleplay"]) <= 0.2
