"""How many requests of which task come in each hour of a replay, and which recorded prompts they are."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from router.diagnosis.lines import LogError, file_kind, opened
from router.replay.recordings import Floats, Ints, RecordedSet

LOAD_COLUMN: Final = "job_name"
MOST_LOAD_ROWS: Final = 1_000_000
PUBLISHED_TASKS: Final = ("alpaca", "math", "mmlu", "naturalqa", "triviaqa", "scienceqa")
"""In the order in which the published evaluation draws their start rows; other tasks follow, in their own order."""
_DRAWS: Final = 1
"""Beside a seed: policies, which have the same one, must not draw the same numbers."""
_CHANGE_HOURS: Final = (24.0, 4.8)
"""Mean and standard deviation of how long a mix lasts."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Requests to come.

    Attributes:
        requests: [hours].
        mix: Share of each task, [hours, tasks] in the recorded set's order; rows sum to 1.
    """

    requests: Ints
    mix: Floats

    def draws(self, recorded: RecordedSet, seed: int) -> Iterator[Ints]:
        """The hours' requests: prompts, each drawn anew from all recorded prompts of a task drawn by the mix."""
        rng = np.random.default_rng((seed, _DRAWS))
        by_task = np.argsort(recorded.task, kind="stable")
        counts = np.bincount(recorded.task, minlength=len(recorded.tasks))
        first = np.cumsum(counts) - counts
        for requests, mix in zip(self.requests, self.mix, strict=True):
            task = rng.choice(len(mix), size=int(requests), p=mix)
            yield np.asarray(by_task[first[task] + rng.integers(0, counts[task])])


def read_load(path: Path) -> Floats:
    """Hourly counts: the column `job_name` of a CSV file (plain or .gz), or its only column.

    Raises LogError where the file cannot be read, or has a row without a count above 0.
    """
    file_kind(path, ".csv")
    with opened(path) as lines:
        rows = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            if header.count(LOAD_COLUMN) != 1 and len(header) != 1:
                has = ", ".join(header[:10]) or "nothing"
                raise LogError([f"{path}:1: {LOAD_COLUMN} must be a column; it has {has}"])
            place = header.index(LOAD_COLUMN) if LOAD_COLUMN in header else 0
            counts: list[float] = []
            for row in rows:
                if not row:
                    continue
                if len(counts) == MOST_LOAD_ROWS:
                    raise LogError([f"{path}:{rows.line_num}: a load may have at most {MOST_LOAD_ROWS:,} hours"])
                counts.append(_count(path, rows.line_num, row, place))
        except csv.Error as error:
            raise LogError([f"{path}:{rows.line_num}: is not CSV: {error}"]) from None
    if not counts:
        raise LogError([f"{path}: holds no hour"])
    return np.array(counts)


def _count(path: Path, line: int, row: list[str], place: int) -> float:
    text = row[place].strip() if place < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise LogError([f"{path}:{line}: {LOAD_COLUMN} must be a number above 0, got {text!r}"])
    return value


def published_demand(load: Floats, tasks: tuple[str, ...], hours: int, requests_per_hour: float, seed: int) -> Demand:
    """Demand after a load file, [rows].

    By the published rule every task starts at a row of its own, drawn below rows - hours / 24; the rows' counts,
    normalised, are the mix of an hour; after round(normal(24, 4.8)) hours every task moves on by a row. The published
    evaluation has seed 0, and takes every hour for as much as any other; here the sum of the rows' counts is the load
    of the hour, scaled to a mean of `requests_per_hour` over the window.

    Raises ValueError where the file has too few rows to draw start rows from.
    """
    room = len(load) - hours // 24
    if room < 1:
        raise ValueError(f"load: {hours} hours need more than {hours // 24} rows, got {len(load)}")
    generator = np.random.RandomState(seed)  # the published evaluation's, of which the draws must be the same
    ordered = sorted(tasks, key=lambda task: (PUBLISHED_TASKS.index(task) if task in PUBLISHED_TASKS else 6, task))
    rows = {task: int(generator.randint(0, room)) for task in ordered}
    counts = np.empty((hours, len(tasks)))
    hour = 0
    while hour < hours:
        until = hour + max(1, round(generator.normal(*_CHANGE_HOURS)))
        counts[hour:until] = [load[rows[task] % len(load)] for task in tasks]
        hour = until
        rows = {task: row + 1 for task, row in rows.items()}
    total = counts.sum(axis=1)
    return Demand(_whole(total * (requests_per_hour / total.mean())), counts / total[:, None])


def constant_demand(recorded: RecordedSet, hours: int, requests_per_hour: float) -> Demand:
    """The same number each hour, in the mix of the recorded prompts."""
    counts = np.bincount(recorded.task, minlength=len(recorded.tasks))
    return Demand(_whole(np.full(hours, requests_per_hour)), np.tile(counts / counts.sum(), (hours, 1)))


def _whole(requests: Floats) -> Ints:
    """At least one an hour: an hour without requests has no quality."""
    return np.maximum(1, np.rint(requests)).astype(np.int64)
