"""Rows of Pith's own ledger in a file, and what of them can be replayed.

The ledger's table as CSV with its columns' names, or as JSON lines, plain or .gz:

    sqlite3 -header -csv pith.db 'select * from ledger' > ledger.csv

A served request has one row: its energy under the directive that it got. What another directive would have made of it
is known only where an evaluator had the same prompt answered at other levels: those rows have one evaluation_sample_id.
The ledger holds neither texts nor judgements.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from router.diagnosis.lines import MOST_FAULTS, LogError, file_kind, json_objects, opened
from router.replay.recordings import RecordedSet

BASELINE_NAME: Final = "L0"
MOST_ROWS: Final = 10_000_000
_REQUIRED: Final = ("request_id", "directive", "energy_joules", "busy_seconds")
_SUMS: Final = ("requests", "operational_grams")
"""Columns of `pithctl report --csv` together."""

Cost = tuple[float, float]
"""Joules and device seconds."""


@dataclass(slots=True)
class _Prompt:
    id: str
    task: str
    costs: dict[str, Cost] = field(default_factory=dict)
    """By directive."""


def is_ledger(row: Mapping[str, Any]) -> bool:
    """Whether an object of a JSON lines file is a row of the ledger."""
    return "variants" not in row and "request_id" in row and "directive" in row


def read_ledger(path: Path) -> RecordedSet:
    """Prompts that the ledger holds at every directive that occurs in it; without any, those at L0, at L0 alone.

    Raises LogError where the file cannot be read, has faults, or has no request at L0 with energy.
    """
    kind = file_kind(path, ".csv", ".jsonl")
    prompts: dict[str, _Prompt] = {}
    faults: list[str] = []
    rows = without_energy = 0
    with opened(path) as lines:
        for number, row in _csv_rows(path, lines) if kind == ".csv" else json_objects(path, lines):
            rows += 1
            if rows > MOST_ROWS:
                raise LogError([f"{path}:{number}: a ledger may hold at most {MOST_ROWS:,} rows"])
            try:
                cost = _cost(row)
            except ValueError as error:
                faults.append(f"{path}:{number}: {error}")
                if len(faults) == MOST_FAULTS:
                    break
                continue
            if cost is None:
                without_energy += 1
                continue
            sample, request = str(row.get("evaluation_sample_id") or ""), str(row["request_id"])
            key = f"sample {sample}" if sample else f"request {row.get('tenant', '')}/{request}"
            prompt = prompts.setdefault(key, _Prompt(sample or request, str(row.get("task") or "")))
            prompt.costs[str(row["directive"])] = cost
    if faults:
        raise LogError(faults)
    return _recorded(path, list(prompts.values()), without_energy)


def _recorded(path: Path, prompts: list[_Prompt], without_energy: int) -> RecordedSet:
    names = sorted({name for prompt in prompts for name in prompt.costs} - {BASELINE_NAME})
    levels = (BASELINE_NAME, *names)
    usable = [prompt for prompt in prompts if all(level in prompt.costs for level in levels)]
    asked = f"{path.name} is a ledger: of its {len(prompts):,} prompts, {len(usable):,} were answered at each of "
    asked += f"{', '.join(levels)}"
    if usable:
        found = f"{asked}; what another directive would have made of the others is not known, and they are left out."
    else:
        levels = (BASELINE_NAME,)
        usable = [prompt for prompt in prompts if BASELINE_NAME in prompt.costs]
        found = f"{asked}; the {len(usable):,} that were answered at {BASELINE_NAME} are replayed at that alone."
    notes = [found, "A ledger holds no judgements: preference and accuracy are not known."]
    if without_energy:
        notes.append(f"Rows of {path.name} without energy are left out: {without_energy:,}.")
    if not usable:
        raise LogError([f"{path}: has no request at {BASELINE_NAME} whose energy is known: nothing can be replayed"])
    tasks = tuple(dict.fromkeys(prompt.task for prompt in usable))
    places = {task: place for place, task in enumerate(tasks)}
    costs = np.array([[prompt.costs[level] for level in levels] for prompt in usable])  # [prompts, levels, 2]
    unknown = np.full(costs.shape[:2], np.nan)
    return RecordedSet(
        ids=tuple(prompt.id for prompt in usable),
        texts=("",) * len(usable),
        tasks=tasks,
        task=np.array([places[prompt.task] for prompt in usable], dtype=np.int64),
        levels=levels,
        joules=costs[:, :, 0],
        seconds=costs[:, :, 1],
        preference=unknown,
        accuracy=unknown,
        answers={level: ("",) * len(usable) for level in levels},
        notes=tuple(notes),
    )


def _csv_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in _REQUIRED if name not in header]
        if missing and all(name in header for name in _SUMS):
            raise LogError(
                [f"{path}: holds sums of requests, as `pithctl report --csv` prints them; a replay needs the requests"]
            )
        if missing:
            has = ", ".join(header[:10]) or "nothing"
            raise LogError([f"{path}:1: {', '.join(missing)} must be among the columns; it has {has}"])
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                raise LogError([f"{path}:{rows.line_num}: must have {len(header)} columns, got {len(cells)}"])
            yield rows.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise LogError([f"{path}:{rows.line_num}: is not CSV: {error}"]) from None


def _cost(row: Mapping[str, Any]) -> Cost | None:
    """None where its energy is unknown."""
    if not row.get("directive") or not row.get("request_id"):
        raise ValueError("request_id and directive must be there")
    joules, seconds = (_number(row, name) for name in ("energy_joules", "busy_seconds"))
    return None if joules is None or seconds is None else (joules, seconds)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    text = row.get(name)
    if text is None or text == "":
        return None
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0 or blank, got {text!r}")
    return value
