"""Measure the shipped demo model: `python -m engine.demo.evaluate`.

The same held-out prompts at every level, decoded greedily, graded as the product grades them. Writes
RESULTS.json and RESULTS.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from tokenizers import Tokenizer

from common.quality.graders import grade
from engine.demo.decode import greedy
from engine.demo.network import load_model
from engine.demo.tasks import GRADERS, LEVELS, TASKS, Example, examples, form_of, message

HERE = Path(__file__).parent
BATCH = 100


@dataclass(frozen=True, slots=True)
class Loss:
    """How many points of accuracy a level loses against L0 on the same prompts, with its 95 % interval."""

    points: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One task at one level. Tokens count the end token; `loss` is absent at L0."""

    accuracy: float
    output_tokens: float
    form_obeyed: float
    loss: Loss | None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task: what guessing would reach, how it is graded and its levels."""

    guessing_floor: float
    grader: str
    levels: Mapping[str, LevelResult]


def main() -> None:
    """Parse the command line, measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--prompts", type=int, default=1000, help="held-out prompts a task (default 1000)")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the prompts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for RESULTS.json and RESULTS.md")
    arguments = parser.parse_args()
    if arguments.prompts < 2:
        parser.error("--prompts: must be at least 2")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(arguments.threads)
    results = measure(arguments.model, arguments.prompts, arguments.seed)
    training = json.loads((arguments.model / "training.json").read_text())
    how = {
        "command": f"python -m engine.demo.evaluate --prompts {arguments.prompts} --seed {arguments.seed}",
        "training_command": f"python -m engine.demo.train --minutes {training['minutes_planned']:g} "
        f"--seed {training['seed']} --threads {training['threads']}",
        "prompts_a_task": arguments.prompts,
        "seed": arguments.seed,
        "hardware": hardware(),
        "torch": torch.__version__,
        "training": training,
    }
    tasks = {task: asdict(result) for task, result in results.items()}
    (arguments.out / "RESULTS.json").write_text(json.dumps({**how, "tasks": tasks}, indent=2) + "\n")
    text = as_markdown(results, how)
    (arguments.out / "RESULTS.md").write_text(text)
    print(text)


def measure(directory: Path, prompts: int, seed: int) -> dict[str, TaskResult]:
    """Every task at every level on its first `prompts` different held-out prompts of this seed."""
    model = load_model(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    asked = {task: distinct(task, prompts, seed) for task in TASKS}
    work = [(task, level, at) for task in TASKS for level in LEVELS for at in range(0, prompts, BATCH)]
    scores: dict[tuple[str, str], list[tuple[float, int, bool]]] = {}
    for task, level, at in track(work, "measuring"):
        batch = asked[task][at : at + BATCH]
        answers = greedy(model, tokenizer, [message(example.prompt, level) for example in batch])
        scores.setdefault((task, level), []).extend(
            (grade(GRADERS[task], answer, example.reference), tokens, form_of(answer) == level)
            for (answer, tokens), example in zip(answers, batch, strict=True)
        )
    results = {}
    for task in TASKS:
        full = [score for score, _, _ in scores[task, "L0"]]
        levels = {}
        for level in LEVELS:
            graded, tokens, obeyed = zip(*scores[task, level], strict=True)
            loss = None if level == "L0" else paired_loss(full, graded)
            levels[level] = LevelResult(mean(graded), mean(tokens), mean(obeyed), loss)
        results[task] = TaskResult(guessing_floor(task, asked[task]), GRADERS[task], levels)
    return results


def distinct(task: str, count: int, seed: int) -> list[Example]:
    """The first `count` held-out examples with different prompts."""
    found: dict[str, Example] = {}
    for example in examples(task, "test", seed):
        found.setdefault(example.prompt, example)
        if len(found) == count:
            break
    return list(found.values())


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def paired_loss(full: Sequence[float], level: Sequence[float]) -> Loss:
    """The loss in points, with the adjusted Wald interval for paired proportions (Agresti and Min, 2005).

    The adjustment keeps the interval open where no pair differs.
    """
    only_full = sum(a > b for a, b in zip(full, level, strict=True))
    only_level = sum(a < b for a, b in zip(full, level, strict=True))
    pairs = len(full) + 2
    centre = (only_full - only_level) / pairs
    variance = (only_full + only_level + 1) - (only_full - only_level) ** 2 / pairs
    half = 1.96 * math.sqrt(variance) / pairs
    return Loss(100 * (only_full - only_level) / len(full), 100 * (centre - half), 100 * (centre + half))


def guessing_floor(task: str, asked: Sequence[Example]) -> float:
    """What a guesser reaches who knows the form but not the answer.

    Numbers: always the commonest one. Extraction: values of the record drawn at random. Listing: a random
    set of the items, at least one.
    """
    if GRADERS[task] == "numeric":
        commonest = Counter(example.reference for example in asked).most_common(1)[0][1]
        return commonest / len(asked)
    chances = []
    for example in asked:
        lines, wanted = example.prompt.count("\n") - 1, example.reference.count(",") + 1
        chances.append(1 / math.perm(lines, wanted) if task == "extraction" else 1 / (2**lines - 1))
    return mean(chances)


def hardware() -> str:
    """The processor's name where the system tells it, and its architecture."""
    information = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (information.read_text().splitlines() if information.exists() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or "unknown processor"
    return f"{name}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"


def as_markdown(results: Mapping[str, TaskResult], how: Mapping[str, Any]) -> str:
    """The results as a page."""
    columns = ["task", "level", "accuracy %", "guessing floor %", "loss against L0, points [95 %]"]
    columns += ["output tokens", "of L0's", "form obeyed %"]
    rows = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for task, result in results.items():
        for level, at in result.levels.items():
            loss = at.loss
            cells = [
                task,
                level,
                f"{100 * at.accuracy:.1f}",
                f"{100 * result.guessing_floor:.1f}",
                "" if loss is None else f"{loss.points:.1f} [{loss.low:.1f}, {loss.high:.1f}]",
                f"{at.output_tokens:.1f}",
                f"{at.output_tokens / result.levels['L0'].output_tokens:.0%}",
                f"{100 * at.form_obeyed:.1f}",
            ]
            rows.append(" | ".join(cells))
    table = "\n".join(f"| {row} |" for row in rows)
    tokens = {level: mean([result.levels[level].output_tokens for result in results.values()]) for level in LEVELS}
    shares = ", ".join(f"{level} {tokens[level]:.1f} ({tokens[level] / tokens['L0']:.0%} of L0)" for level in LEVELS)
    training = how["training"]
    return f"""# What the demo model does

A demonstration: a small network that answers four kinds of generated questions and obeys three directives.
It knows nothing else. Measured on {how["prompts_a_task"]} held-out prompts a task, the same at every level,
decoded greedily from the shipped weights. No set of facts of a test text (its numbers, or its names and
values) occurs in training; the single words do. The tasks' formats were settled after looking at other
held-out prompts (seed 1), so these figures say nothing about other formats. Arithmetic without its steps is
practised on 15 % of the training prompts only, so that it stays hard: how far it falls is a choice.

{table}

Mean output tokens over the tasks (end token counted): {shares}.

Intervals are paired, adjusted Wald (Agresti and Min, 2005). Guessing floor: the commonest number (arithmetic,
counting), values of the record at random (extraction), a random set of the items (listing).

- Measured: `{how["command"]}`
- Trained: `{how["training_command"]}`; from scratch in one go, {training["minutes_trained"]:g} minutes,
  {training["steps"]:,} steps, {training["padded_tokens"] / 1e6:.1f} million tokens, {training["answers"]:,} answers
- Trained lengths: conversations of about 150 tokens, rarely more; up to {training["shape"]["longest_tokens"]}
  are accepted, which is not the same as learned
- Hardware: {how["hardware"]}; other programs shared the processor. torch {how["torch"]}
"""


if __name__ == "__main__":
    main()
