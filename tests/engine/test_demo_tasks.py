"""The demo's tasks, tokenizer and shipped files."""

from __future__ import annotations

import json
import re
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from safetensors import safe_open
from tokenizers import Tokenizer

from common.quality.graders import grade
from engine.demo import tasks, words
from engine.demo.tasks import DIRECTIVES, GRADERS, LEVELS, LINES, TASKS, examples, form_of, message

MODEL = Path(tasks.__file__).parent / "model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def rendered(messages: list[dict[str, str]]) -> str:
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    template = Environment().from_string(config["chat_template"])
    return template.render(messages=messages, bos_token=config["bos_token"], add_generation_prompt=True)


def lines_of(task: str, prompt: str) -> tuple[list[str], str]:
    """The numbered or dashed lines without their marks, and the question."""
    lines = prompt.split("\n")
    body = [re.sub(r"^(\d+\.|-) ", "", line) for line in lines[1:] if re.match(r"(\d+\.|-) ", line)]
    return body, lines[0] if task in ("listing", "counting") else lines[-1]


def steps_of(line: str) -> tuple[str, int]:
    """What a line of an arithmetic prompt does to the total."""
    number = re.search(r"\d+", line)
    if number is None:
        return "x", 2
    gains = {gain.split(" {")[0] for gain in words.GAINS}
    return "+" if line[: number.start()].strip() in gains else "-", int(number[0])


def facts_of(task: str, prompt: str) -> tuple[object, ...]:
    """The names, values and numbers of a prompt, read from its text alone."""
    body, _ = lines_of(task, prompt)
    if task == "arithmetic":
        return (re.findall(r"\d+", prompt.split("\n")[0])[0], *map(steps_of, body))
    return tuple(body) if task == "counting" else tuple(sorted(body))


def right_by_hand(task: str, prompt: str) -> str:
    """The right answer read from the prompt alone, by a second way of working it out."""
    body, question = lines_of(task, prompt)
    if task == "arithmetic":
        total = int(re.findall(r"\d+", prompt.split("\n")[0])[0])
        for kind, number in map(steps_of, body):
            total = {"+": total + number, "-": total - number, "x": total * number}[kind]
        return str(total)
    if task == "extraction":
        record = dict(line.split(": ") for line in body)
        return ", ".join(record[key] for key in re.findall(r"the (\w+)", question) if key in record)
    asked = re.findall(r"\w+", question)
    if task == "counting":
        return str(sum(line in asked for line in body))
    return ", ".join(item for mark, item in (line.split(": ") for line in body) if mark in asked)


@pytest.mark.parametrize("task", TASKS)
def test_examples_repeat_for_the_same_seed_and_differ_for_another(task: str) -> None:
    first, again, other = (list(islice(examples(task, "test", seed), 50)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("task", TASKS)
def test_no_facts_of_the_test_are_trained_on(task: str) -> None:
    held_out = {facts_of(task, example.prompt) for example in islice(examples(task, "test", 1), 1500)}
    for difficulty in range(len(LINES[task])):
        trained = {facts_of(task, example.prompt) for example in islice(examples(task, "train", 1, difficulty), 3000)}
        assert not held_out & trained


@pytest.mark.parametrize("task", TASKS)
def test_a_thousand_prompts_can_be_asked(task: str) -> None:
    assert len({example.prompt for example in islice(examples(task, "test", 2026), 1500)}) >= 1000


def test_the_split_does_not_depend_on_the_process() -> None:
    # Values taken once: Python's own hash of text would change from run to run.
    facts = [(start, ("+", 3)) for start in range(40)]
    assert [start for start, fact in enumerate(facts) if tasks.split_of(fact) == "test"] == [
        4, 5, 14, 15, 19, 31, 33, 34, 39,
    ]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_reference_is_what_the_prompt_says(task: str) -> None:
    for difficulty in range(len(LINES[task])):
        for example in islice(examples(task, "train", 3, difficulty), 300):
            assert right_by_hand(task, example.prompt) == example.reference


@pytest.mark.parametrize("task", TASKS)
def test_every_level_answers_rightly_in_its_form_and_is_shorter_than_the_last(task: str) -> None:
    for example in islice(examples(task, "test", 2), 300):
        assert tuple(example.answers) == LEVELS
        for level, answer in example.answers.items():
            assert grade(GRADERS[task], answer, example.reference) == 1.0
            assert form_of(answer) == level
        assert example.answers["L2"] == example.reference
        full, brief, bare = (len(example.answers[level]) for level in LEVELS)
        assert full > brief > bare


@pytest.mark.parametrize("task", TASKS)
def test_another_answer_is_graded_wrong(task: str) -> None:
    several = list(islice(examples(task, "test", 4), 200))
    for example, other in pairwise(several):
        if set(example.reference.split(", ")) != set(other.reference.split(", ")):
            for level in LEVELS:
                assert grade(GRADERS[task], other.answers[level], example.reference) == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_the_steps_of_the_full_answer_lead_to_its_result(task: str) -> None:
    for example in islice(examples(task, "test", 8), 200):
        head, *steps, last = example.answers["L0"].split("\n")
        assert (head, last) == ("Steps:", f"Answer: {example.reference}")
        assert [step.split(". ")[0] for step in steps] == [str(number) for number in range(1, len(steps) + 1)]
        if task == "arithmetic":
            for step in steps:
                _, left, kind, right, _, result = step.split(" ")
                sums = {"+": int(left) + int(right), "-": int(left) - int(right), "x": int(left) * int(right)}
                assert sums[kind] == int(result)


def test_wording_varies() -> None:
    for task in TASKS:
        first_words = {example.prompt.split("\n")[-1].split()[0] for example in islice(examples(task, "test", 1), 99)}
        assert len(first_words) > 1


def test_the_directive_is_the_tail_of_the_message() -> None:
    assert message("How many?", "L0") == "How many?"
    assert message("How many?", "L1") == "How many?\nAlways answer briefly"
    assert message("How many?", "L2") == "How many?\nAlways answer very briefly"
    assert tuple(DIRECTIVES) == LEVELS


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ("Steps:\n1. 4 + 5 = 9\nAnswer: 9", "L0"),
        ("Steps:\n1. 4 + 5 = 9", ""),
        (" Maya has 9 apples.", "L1"),
        ("There are 3.", "L1"),
        ("Answer: blue, 77", "L1"),
        ("blue, 77", "L2"),
        ("9", "L2"),
        ("blue 77", ""),
        ("", ""),
    ],
)
def test_the_form_of_an_answer(answer: str, level: str) -> None:
    assert form_of(answer) == level


@pytest.mark.parametrize(("task", "difficulty"), [("lookup", None), ("counting", -1), ("counting", 99)])
def test_unknown_tasks_and_difficulties_are_refused(task: str, difficulty: int | None) -> None:
    with pytest.raises(ValueError, match=r"^(task|difficulty): "):
        next(examples(task, "train", 0, difficulty))


@given(st.text(max_size=80))
def test_the_tokenizer_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    marks = re.compile(r"<\|(begin|end|user|assistant|system)\|>")
    plain = marks.sub("", text)
    assert tokenizer.decode(tokenizer.encode(plain, add_special_tokens=False).ids) == plain


def test_words_and_numbers_are_one_token_each(tokenizer: Tokenizer) -> None:
    content = {word for values in words.FIELDS.values() for word in values} | set(words.THINGS)
    content |= {word for scene in words.LISTS + words.LOGS for word in scene.marks + scene.items}
    content |= {str(number) for number in range(100)}
    split = {word for word in content if len(tokenizer.encode(f" {word}").ids) != 1}
    assert not split


def test_a_prompt_and_its_answer_share_tokens(tokenizer: Tokenizer) -> None:
    for task in TASKS:
        for example in islice(examples(task, "test", 9), 50):
            prompt = rendered([{"role": "user", "content": message(example.prompt, "L2")}])
            apart = tokenizer.encode(prompt).ids + tokenizer.encode(f" {example.answers['L2']}").ids
            assert tokenizer.encode(f"{prompt} {example.answers['L2']}").ids == apart


def test_the_chat_template_renders_a_conversation() -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "  Hello  "},
        {"role": "assistant", "content": "9"},
        {"role": "user", "content": "Again?"},
    ]
    assert rendered(messages) == (
        "<|begin|><|system|> You are a helpful assistant.<|end|><|user|> Hello<|end|><|assistant|> 9<|end|>"
        "<|user|> Again?<|end|><|assistant|>"
    )


def test_the_shipped_files_agree_and_are_small(tokenizer: Tokenizer) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["eos_token_id"] == tokenizer.token_to_id("<|end|>")
    generation = json.loads((MODEL / "generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"]
    with safe_open(MODEL / "model.safetensors", framework="np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        assert shapes[f"{block}.self_attn.q_proj.weight"] == [heads * config["head_dim"], hidden]
        assert shapes[f"{block}.mlp.down_proj.weight"] == [hidden, config["intermediate_size"]]
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 4 * 2**20
