"""Do graders read long answers as well as brief ones?

    python -m tests.bench.graders --json tests/bench/results/graders-DATE.json

Llama-2's recorded answers at three levels of brevity (SPROUT's dev half: 987 to 1,014 prompts a task), beside the
accuracies that its authors published (GPT-4 holds 800 answers against the reference; GSM8K: the last number) and beside
two parsers that are often used and wrong: the first option letter anywhere, and a name anywhere as part of the text.

"Found" is the share of answers that an option is found in. "Luck" is what answers get against the references of twenty
other prompts of their task: the part of an accuracy that comes of saying much. Then two sets of solutions to GSM8K that
come with a verdict of their own.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import sys
from ast import literal_eval
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.quality.graders import grade
from common.quality.graders.choice import chosen
from common.quality.graders.numeric import numeric
from common.quality.graders.options import options_of, right_option
from tests.bench.machine import description
from tests.common.quality.recorded_answers import DATA, GRADER_OF, LEVELS, Recorded, recorded

PUBLISHED = {
    "math": (33.5, 18.0, 14.4),
    "scienceqa": (73.1, 66.6, 65.4),
    "mmlu": (50.9, 50.5, 50.3),
    "naturalqa": (50.4, 46.9, 45.5),
    "triviaqa": (59.8, 68.3, 67.9),
}
"""Percent by level: the authors' summary, and for GSM8K 2,000 of their answers by the last number in each."""
OTHERS = 20
SEED = 1


def first_letter(answer: str, reference: str, prompt: str) -> float:
    """The naive parser of choices: the first capital that is an option's letter."""
    options = options_of(prompt)
    found = re.search(f"[{''.join(options)}]", answer)
    return float(found is not None and found[0] == right_option(reference, options))


def last_number(answer: str, reference: str, prompt: str) -> float:
    """The naive parser of sums, which the published accuracies are by."""
    numbers = [re.findall(r"[0-9]+(?:\.[0-9]+)?", text.replace(",", "")) for text in (answer, reference)]
    return float(bool(numbers[0]) and float(numbers[0][-1]) == float(numbers[1][-1]))


def name_within(answer: str, reference: str, prompt: str) -> float:
    """The naive matcher of names: one of them anywhere in the text, even within a word."""
    return float(any(name.strip().lower() in answer.lower() for name in reference.split(";") if name.strip()))


NAIVE: dict[str, Callable[[str, str, str], float]] = {
    "numeric": last_number,
    "choice": first_letter,
    "alias": name_within,
}


def measure(task: str, level: str) -> dict[str, Any]:
    """Accuracies in percent, found and luck too."""
    rows = recorded()[task]
    name = GRADER_OF[task]
    grades = [grade(name, row.answers[level], row.reference, row.prompt) for row in rows]
    return {
        "task": task,
        "level": level,
        "grader": name,
        "answers": len(rows),
        "accuracy": 100 * fmean(grades),
        "halves": [100 * fmean(grades[::2]), 100 * fmean(grades[1::2])],
        "found": found(rows, level) if name == "choice" else None,
        "luck": luck(rows, level) if name == "alias" else None,
        "luck_of_naive": luck(rows, level, NAIVE[name]) if name == "alias" else None,
        "naive": 100 * fmean(NAIVE[name](row.answers[level], row.reference, row.prompt) for row in rows),
        "published": PUBLISHED[task][LEVELS.index(level)],
    }


def found(rows: Sequence[Recorded], level: str) -> float:
    return 100 * fmean(chosen(row.answers[level], options_of(row.prompt)) is not None for row in rows)


def luck(rows: Sequence[Recorded], level: str, naive: Callable[[str, str, str], float] | None = None) -> float:
    rng = random.Random(SEED)
    graded = []
    for index, row in enumerate(rows):
        for _ in range(OTHERS):
            other = rows[(index + rng.randrange(1, len(rows))) % len(rows)]
            answer, reference = row.answers[level], other.reference
            graded.append(naive(answer, reference, "") if naive else grade("alias", answer, reference))
    return 100 * fmean(graded)


def agreement(name: str, judged: Sequence[tuple[str, str, bool]]) -> dict[str, Any]:
    """Of (answer, reference, published verdict)."""
    ours = [numeric(answer, reference) == 1.0 for answer, reference, _ in judged]
    theirs = [verdict for _, _, verdict in judged]
    return {
        "solutions": name,
        "answers": len(judged),
        "agreement": 100 * fmean(one == other for one, other in zip(ours, theirs, strict=True)),
        "right_by_us": 100 * fmean(ours),
        "right_as_published": 100 * fmean(theirs),
    }


def verdicts() -> list[dict[str, Any]]:
    """On GSM8K's test: solutions of fine-tuned GPT-3 that end with the answer, and free text of two chat models."""
    with gzip.open(DATA / "gsm8k" / "example_model_solutions.jsonl.gz", "rt", encoding="utf-8") as file:
        trained = [json.loads(line) for line in file]
    with gzip.open(DATA / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        references = {row["question"].strip(): row["answer"] for row in map(json.loads, file)}
    csv.field_size_limit(10**9)
    with gzip.open(DATA / "routellm" / "gsm8k_responses.csv.gz", "rt", encoding="utf-8", newline="") as file:
        chats = [row for row in csv.DictReader(file) if row["prompt"].strip() in references]
    rows = []
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        solutions = [(row["ground_truth"], _parsed(row[model])) for row in trained]
        rows.append(agreement(model, [(own["solution"], truth, own["is_correct"]) for truth, own in solutions]))
    for model in ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"):
        judged = [(row[f"{model}_response"], references[row["prompt"].strip()], row[model] == "True") for row in chats]
        rows.append(agreement(model, judged))
    return rows


def _parsed(solution: Any) -> dict[str, Any]:
    """Some are Python's notation of a dictionary in place of one."""
    parsed: dict[str, Any] = literal_eval(solution) if isinstance(solution, str) else solution
    return parsed


def show(console: Console, rows: Sequence[dict[str, Any]], solutions: Sequence[dict[str, Any]]) -> None:
    accuracies = Table(title="Llama-2-13B's answers, percent right")
    for column in (
        "task",
        "level",
        "grader",
        "n",
        "right",
        "halves",
        "found",
        "luck",
        "naive",
        "its luck",
        "published",
    ):
        accuracies.add_column(column, justify="left" if column in ("task", "level", "grader") else "right")
    for row in rows:
        accuracies.add_row(
            row["task"],
            row["level"],
            row["grader"],
            f"{row['answers']:,}",
            f"{row['accuracy']:.1f}",
            " / ".join(f"{half:.1f}" for half in row["halves"]),
            *(_percent(row[key]) for key in ("found", "luck", "naive", "luck_of_naive", "published")),
        )
    console.print(accuracies)
    agreements = Table(title="Solutions to GSM8K with a verdict of their own, percent")
    for column in ("solutions", "n", "agreement", "right by us", "right as published"):
        agreements.add_column(column, justify="left" if column == "solutions" else "right")
    for row in solutions:
        keys = ("agreement", "right_by_us", "right_as_published")
        agreements.add_row(row["solutions"], f"{row['answers']:,}", *(f"{row[key]:.1f}" for key in keys))
    console.print(agreements)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    console = Console()
    jobs = [(task, level) for task in PUBLISHED for level in LEVELS]
    rows = [measure(task, level) for task, level in track(jobs, "grading", console=console)]
    solutions = verdicts()
    show(console, rows, solutions)
    if arguments.json is not None:
        document = {
            "command": f"python -m tests.bench.graders {' '.join(sys.argv[1:])}",
            "machine": description(),
            "seed": SEED,
            "accuracies": rows,
            "verdicts": solutions,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
