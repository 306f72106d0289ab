"""Recorded requests in a file: prompts that were answered at several levels, and what each answer cost.

JSON lines, plain or .gz, an object a prompt:

    {"id": "q1", "task": "faq", "prompt": "...", "reference": "...", "grader": "alias", "judge_choice": "13b/L1",
     "variants": {"13b/L0": {"energy_kwh": 0.0007, "seconds": 10.3, "answer": "..."}, "13b/L1": {...}, ...}}

Variants are levels of one model, whose name and a slash may stand before theirs. The first has no directive and is
called L0. energy_joules may stand for energy_kwh. Without judge_choice there is no preference of the prompt; without
reference, or for a task without a grader, no accuracy.

Rows of Pith's own ledger are read as well: router/replay/ledger_file.py says what of them can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from common.carbon.accounting import JOULES_PER_KWH
from common.quality.graders import GRADERS, grade
from router.diagnosis.lines import MOST_FAULTS, LogError, file_kind, json_objects, opened
from router.replay.ledger_file import BASELINE_NAME, is_ledger, read_ledger
from router.replay.recordings import RecordedSet

MOST_PROMPTS: Final = 200_000
MOST_TASKS: Final = 1_000
GRADER_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "math": "numeric",
        "mmlu": "choice",
        "naturalqa": "alias",
        "triviaqa": "alias",
        "scienceqa": "choice",
    }
)
"""Of the published tasks, where a prompt does not name its grader. Instructions (alpaca) have none."""


@dataclass(frozen=True, slots=True)
class _Variant:
    joules: float
    seconds: float
    answer: str


@dataclass(frozen=True, slots=True)
class _Prompt:
    id: str
    text: str
    task: str
    grader: str
    reference: str
    choice: str
    variants: Mapping[str, _Variant]
    line: int


def read_requests(path: Path) -> RecordedSet:
    """Raises LogError where the file cannot be read, or has faults: nothing is left out silently."""
    if file_kind(path, ".csv", ".jsonl") == ".csv":
        return read_ledger(path)
    prompts: list[_Prompt] = []
    faults: list[str] = []
    with opened(path) as lines:
        for number, found in json_objects(path, lines):
            if not prompts and not faults and is_ledger(found):
                return read_ledger(path)
            try:
                prompts.append(_prompt(found, number))
            except ValueError as error:
                faults.append(f"{path}:{number}: {error}")
                if len(faults) == MOST_FAULTS:
                    break
            if len(prompts) > MOST_PROMPTS:
                raise LogError([f"{path}:{number}: at most {MOST_PROMPTS:,} prompts can be replayed"])
    if faults:
        raise LogError(faults)
    if not prompts:
        raise LogError([f"{path}: holds no request"])
    return _recorded(path, prompts)


def _recorded(path: Path, prompts: Sequence[_Prompt]) -> RecordedSet:
    model, levels = _levels(path, prompts)
    tasks = tuple(dict.fromkeys(prompt.task for prompt in prompts))
    if len(tasks) > MOST_TASKS:
        raise LogError([f"{path}: task: at most {MOST_TASKS:,} tasks can be told apart; is it the task's name?"])
    names = [f"{model}/{level}" if model else level for level in levels]
    shape = len(prompts), len(levels)
    joules, seconds = np.empty(shape), np.empty(shape)
    preference, accuracy = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, prompt in enumerate(prompts):
        if missing := [name for name in names if name not in prompt.variants]:
            raise LogError([f"{path}:{prompt.line}: variants: must have {', '.join(names)}, has no {missing[0]}"])
        for place, name in enumerate(names):
            variant = prompt.variants[name]
            joules[row, place], seconds[row, place] = variant.joules, variant.seconds
            if prompt.grader and prompt.reference:
                try:
                    accuracy[row, place] = grade(prompt.grader, variant.answer, prompt.reference, prompt.text)
                except ValueError as error:
                    raise LogError([f"{path}:{prompt.line}: reference: {error}"]) from None
        if prompt.choice in names:
            preference[row] = [name == prompt.choice for name in names]
    places = {task: place for place, task in enumerate(tasks)}
    return RecordedSet(
        ids=tuple(prompt.id for prompt in prompts),
        texts=tuple(prompt.text for prompt in prompts),
        tasks=tasks,
        task=np.array([places[prompt.task] for prompt in prompts], dtype=np.int64),
        levels=levels,
        joules=joules,
        seconds=seconds,
        preference=preference,
        accuracy=accuracy,
        answers={
            level: tuple(prompt.variants[name].answer for prompt in prompts)
            for level, name in zip(levels, names, strict=True)
        },
    )


def _levels(path: Path, prompts: Sequence[_Prompt]) -> tuple[str, tuple[str, ...]]:
    """The model with the most levels beside L0, and its levels, L0 first."""
    models: dict[str, set[str]] = {}
    for name in {name for prompt in prompts for name in prompt.variants}:
        model, _, level = name.rpartition("/")
        models.setdefault(model, set()).add(level)
    complete = {model: levels for model, levels in models.items() if BASELINE_NAME in levels}
    if not complete:
        raise LogError([f"{path}: variants: must have {BASELINE_NAME}, the answer without a directive"])
    model = max(complete, key=lambda name: (len(complete[name]), name))
    return model, (BASELINE_NAME, *sorted(complete[model] - {BASELINE_NAME}))


def _prompt(found: Mapping[str, Any], line: int) -> _Prompt:
    variants = found.get("variants")
    if not isinstance(variants, dict) or not variants or not all(isinstance(v, dict) for v in variants.values()):
        raise ValueError('variants must be an object of objects, such as {"L0": {"energy_joules": 900, "seconds": 4}}')
    task = _text(found, "task")
    grader = _text(found, "grader") or GRADER_OF.get(task, "")
    if grader and grader not in GRADERS:
        raise ValueError(f"grader must be one of {', '.join(sorted(GRADERS))}, got {grader!r}")
    return _Prompt(
        id=_text(found, "id") or str(line),
        text=_text(found, "prompt"),
        task=task,
        grader=grader,
        reference=_text(found, "reference"),
        choice=_text(found, "judge_choice"),
        variants={name: _variant(name, variant) for name, variant in variants.items()},
        line=line,
    )


def _variant(name: str, found: Mapping[str, Any]) -> _Variant:
    kwh, joules = _number(found, name, "energy_kwh"), _number(found, name, "energy_joules")
    if joules is None and kwh is None:
        raise ValueError(f"variants.{name}: energy_joules or energy_kwh must be there: nothing is assumed for it")
    seconds = _number(found, name, "seconds")
    if seconds is None:
        raise ValueError(f"variants.{name}: seconds must be there")
    return _Variant(joules if joules is not None else JOULES_PER_KWH * (kwh or 0.0), seconds, _text(found, "answer"))


def _number(found: Mapping[str, Any], name: str, field: str) -> float | None:
    value = found.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"variants.{name}.{field} must be a finite number of at least 0, got {value!r}")
    return float(value)


def _text(found: Mapping[str, Any], field: str) -> str:
    value = found.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{field} must be text, got {type(value).__name__}")
    return value
