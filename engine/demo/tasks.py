"""The demo's tasks: generated questions whose answers are known, at three lengths.

Every prompt is a short text of lines and one question: after the text in arithmetic and extraction, before
it in listing and counting, so that the network can judge each line as it reads it. The directive is the
exact text at the tail of the user message, after a newline (`message`); level L0 has none.

Form of the answers, and the rule by which `common.quality.graders` reads them:

- L0 starts with a line `Steps:`, works in numbered lines and ends with a line `Answer: RESULT`.
- L1 is short: `Maya has 12 apples.`, `There are 3.` or `Answer: RESULT`.
- L2 is the bare RESULT.
- A grader reads what follows the last `Answer:` where that marker occurs, else the whole text. `numeric`
  compares the last number in it, `exact` all of it (case, spaces and final punctuation aside), `item_set`
  the set of its comma-separated items, none of them twice.

Train and test never share content: the facts of a text (numbers, words, their order; not the wording around
them) are hashed, and the hash decides the split.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from engine.demo import words

Split = Literal["train", "test"]
Facts = tuple[object, ...]  # what a text says, wording aside

TASKS: tuple[str, ...] = ("arithmetic", "extraction", "listing", "counting")
GRADERS: Mapping[str, str] = {
    "arithmetic": "numeric",
    "extraction": "exact",
    "listing": "item_set",
    "counting": "numeric",
}
DIRECTIVES: Mapping[str, str] = {
    "L0": "",
    "L1": "Always answer briefly",
    "L2": "Always answer very briefly",
}
LEVELS: tuple[str, ...] = tuple(DIRECTIVES)

# Lines of a text at each difficulty, the last being the test's. Each is a range from the start: texts of one
# length teach where a line stands instead of what its number is.
LINES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "arithmetic": ((1, 3), (2, 4), (3, 5)),
    "extraction": ((1, 3), (2, 4), (3, 5)),
    "listing": ((1, 4), (2, 5), (3, 6)),
    "counting": ((2, 5), (3, 6), (4, 8)),
}
LARGEST_TOTAL = 50
TEST_SHARE = 10  # one text in this many is a test text


@dataclass(frozen=True, slots=True)
class Example:
    """One question: `prompt` is the user message without a directive, `answers` maps a level to its text."""

    task: str
    prompt: str
    reference: str
    answers: Mapping[str, str]


def message(prompt: str, level: str) -> str:
    """The user message: the prompt, with the level's directive on a line of its own at the tail."""
    directive = DIRECTIVES[level]
    return f"{prompt}\n{directive}" if directive else prompt


def examples(task: str, split: Split, seed: int, difficulty: int | None = None) -> Iterator[Example]:
    """Endless questions of one task, the same for the same arguments.

    `difficulty` counts from 0; None is the hardest, which is what is tested. Raises ValueError for an unknown
    task or difficulty.
    """
    if task not in LINES:
        raise ValueError(f"task: unknown task {task!r}, expected one of {', '.join(TASKS)}")
    hardest = len(LINES[task]) - 1
    level = hardest if difficulty is None else difficulty
    if not 0 <= level <= hardest:
        raise ValueError(f"difficulty: {level} is not between 0 and {hardest} for {task}")
    rng = random.Random(f"{task} {split} {seed} {level}")
    while True:
        example, facts = _MAKERS[task](rng, rng.randint(*LINES[task][level]))
        if split_of(facts) == split:
            yield example


def split_of(facts: Facts) -> Split:
    """The split that a text's facts belong to: a stable hash, the same on every machine and run."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def form_of(answer: str) -> str:
    """The level whose form an answer has, or "" for none of them."""
    text = answer.strip()
    if text.startswith("Steps:\n"):
        return "L0" if re.search(r"\nAnswer: [^\n]+$", text) else ""
    if re.fullmatch(r"Answer: [^\n:]+|There are \d+\.|\w+ has \d+ \w+\.", text):
        return "L1"
    return "L2" if re.fullmatch(r"\w+(, \w+)*", text) else ""


def _arithmetic(rng: random.Random, steps: int) -> tuple[Example, Facts]:
    name, thing = rng.choice(words.NAMES), rng.choice(words.THINGS)
    total = start = rng.randint(2, 20)
    facts: list[object] = [start]
    lines, work = [], []
    for _ in range(steps):
        n = rng.randint(2, 9)
        kinds = ["+"] * (total + n <= LARGEST_TOTAL) + ["-"] * (total - n >= 1)
        # Doubling is not a sum of signed numbers, so that adding all of them up at a glance does not answer.
        if rng.random() < 0.25 and 2 * total <= LARGEST_TOTAL:
            kinds = ["x"]
        kind = rng.choice(kinds)
        operand = 2 if kind == "x" else n
        result = {"+": total + n, "-": total - n, "x": 2 * total}[kind]
        wording = rng.choice({"+": words.GAINS, "-": words.LOSSES, "x": words.DOUBLINGS}[kind])
        lines.append(wording.format(n=n))
        work.append(f"{total} {kind} {operand} = {result}")
        facts.append((kind, operand))
        total = result
    opening = rng.choice(words.OPENINGS).format(name=name, start=start, thing=thing)
    question = rng.choice(words.TOTAL_QUESTIONS).format(name=name, thing=thing)
    prompt = "\n".join([opening, *_numbered(lines), question])
    return _example("arithmetic", prompt, str(total), work, f"{name} has {total} {thing}."), tuple(facts)


def _extraction(rng: random.Random, fields: int) -> tuple[Example, Facts]:
    keys = rng.sample(list(words.FIELDS), fields)
    record = {key: rng.choice(words.FIELDS[key]) for key in keys}
    asked = rng.sample(keys, rng.randint(1, min(3, fields)))
    named = [f"the {key}" for key in asked]
    phrase = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    question = rng.choice(words.FIELD_QUESTIONS).format(fields=phrase)
    lines = [f"- {key}: {value}" for key, value in record.items()]
    prompt = "\n".join([rng.choice(words.RECORDS), *lines, question])
    work = [f"{key}: {record[key]}" for key in asked]
    example = _example("extraction", prompt, ", ".join(record[key] for key in asked), work)
    return example, tuple(sorted(record.items()))


def _listing(rng: random.Random, lines: int) -> tuple[Example, Facts]:
    scene = rng.choice(words.LISTS)
    pairs = [(rng.choice(scene.marks), item) for item in rng.sample(scene.items, lines)]
    mark = rng.choice(sorted({mark for mark, _ in pairs}))
    question = rng.choice(words.LIST_QUESTIONS).format(mark=mark)
    prompt = "\n".join([question, scene.title, *_numbered([f"{has}: {item}" for has, item in pairs])])
    chosen = [item for has, item in pairs if has == mark]
    work = [f"{has} {item}: {'yes' if has == mark else 'no'}" for has, item in pairs]
    return _example("listing", prompt, ", ".join(chosen), work), tuple(sorted(pairs))


def _counting(rng: random.Random, lines: int) -> tuple[Example, Facts]:
    scene = rng.choice(words.LOGS)
    marks = [rng.choice(scene.marks) for _ in range(lines)]
    mark = rng.choice(scene.marks)
    question = rng.choice(words.COUNT_QUESTIONS).format(mark=mark)
    prompt = "\n".join([question, scene.title, *_numbered(marks)])
    count, work = 0, []
    for has in marks:
        count += has == mark
        work.append(f"{has}: {'yes' if has == mark else 'no'}, {count}")
    return _example("counting", prompt, str(count), work, f"There are {count}."), tuple(marks)


def _numbered(lines: list[str]) -> list[str]:
    return [f"{number}. {line}" for number, line in enumerate(lines, 1)]


def _example(task: str, prompt: str, reference: str, work: list[str], brief: str = "") -> Example:
    steps = "\n".join(["Steps:", *_numbered(work), f"Answer: {reference}"])
    answers = {"L0": steps, "L1": brief or f"Answer: {reference}", "L2": reference}
    return Example(task, prompt, reference, answers)


_MAKERS = {"arithmetic": _arithmetic, "extraction": _extraction, "listing": _listing, "counting": _counting}
