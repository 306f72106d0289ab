"""Recorded requests, a grid and a load whose truth is known, in memory and as files."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from router.replay.demand import Demand
from router.replay.recordings import Floats, RecordedSet
from router.replay.trace import Trace, Year

START = datetime(2023, 1, 1, tzinfo=UTC)
TASKS = ("chat", "sums", "trivia")
LEVELS = ("L0", "L1", "L2")
JOULES = np.array([[2000.0, 600.0, 400.0], [1000.0, 350.0, 250.0], [800.0, 120.0, 80.0]])
PREFERENCE = np.array([[0.55, 0.25, 0.20], [0.50, 0.30, 0.20], [0.30, 0.45, 0.25]])
ACCURACY = np.array([[np.nan, np.nan, np.nan], [0.40, 0.20, 0.15], [0.55, 0.60, 0.58]])
"""[tasks, levels]; chat has no grader."""


def recorded(prompts_a_task: int = 200, seed: int = 0) -> RecordedSet:
    """Each task's shares of the judge's choice and of right answers are as planted, to the whole prompt."""
    rng = np.random.default_rng(seed)
    n = prompts_a_task
    task = np.repeat(np.arange(len(TASKS)), n)
    long = rng.gamma(4.0, 0.25, (len(task), 1))
    preference, accuracy = np.zeros((len(task), 3)), np.full((len(task), 3), np.nan)
    for place in range(len(TASKS)):
        of = rng.permutation(np.flatnonzero(task == place))
        chosen = np.repeat(np.arange(3), np.diff(np.rint(np.cumsum(PREFERENCE[place]) * n), prepend=0).astype(int))
        preference[of, chosen] = 1.0
        if not np.isnan(ACCURACY[place, 0]):
            for level in range(3):
                right = rng.permutation(of)[: round(ACCURACY[place, level] * n)]
                accuracy[of, level] = 0.0
                accuracy[right, level] = 1.0
    joules = JOULES[task] * long
    return RecordedSet(
        ids=tuple(f"{TASKS[place]}-{number}" for number, place in enumerate(task)),
        texts=tuple(f"{TASKS[place]}: prompt {number}" for number, place in enumerate(task)),
        tasks=TASKS,
        task=task,
        levels=LEVELS,
        joules=joules,
        seconds=joules / 250.0,
        preference=preference,
        accuracy=accuracy,
        answers={level: ("",) * len(task) for level in LEVELS},
    )


def trace(hours: int = 24 * 40) -> Trace:
    """A day's swing about a slowly changing mean."""
    hour = np.arange(hours)
    values = 200 + 90 * np.sin(2 * np.pi * hour / 24) + 40 * np.sin(2 * np.pi * hour / 170)
    return Trace(
        values, START, "direct", Year(float(values.min()), float(values.max()), float(values.mean()), "planted")
    )


def demand(hours: int, requests: int = 400) -> Demand:
    mixes = np.array([[0.2, 0.3, 0.5], [0.5, 0.2, 0.3]])
    return Demand(np.full(hours, requests), mixes[np.arange(hours) // 24 % 2])


def rows(of: RecordedSet, model: str = "13b") -> list[dict[str, Any]]:
    """As a file of requests has them."""
    found = []
    for place in range(len(of)):
        chosen = int(of.preference[place].argmax())
        task = of.tasks[of.task[place]]
        graded = not np.isnan(of.accuracy[place, 0])
        variants = {
            f"{model}/{level}": {
                "energy_kwh": float(of.joules[place, number]) / 3.6e6,
                "seconds": float(of.seconds[place, number]),
                "answer": "42" if of.accuracy[place, number] == 1 else "nothing",
            }
            for number, level in enumerate(of.levels)
        }
        row = {"id": of.ids[place], "task": task, "prompt": of.texts[place], "variants": variants}
        row |= {"reference": "42", "grader": "exact"} if graded else {}
        found.append({**row, "judge_choice": f"{model}/{of.levels[chosen]}"})
    return found


def requests_file(folder: Path, of: RecordedSet | None = None, name: str = "requests.jsonl.gz") -> Path:
    path = folder / name
    text = "".join(f"{json.dumps(row)}\n" for row in rows(of or recorded(60)))
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def carbon_file(folder: Path, values: Floats | None = None, name: str = "XX_2023.csv") -> Path:
    path = folder / name
    lines = ["Datetime (UTC),Carbon Intensity gCO2eq/kWh (direct),Carbon Intensity gCO2eq/kWh (LCA)"]
    for hour, value in enumerate(trace().g_per_kwh if values is None else values):
        lines.append(f"{START + timedelta(hours=hour):%Y-%m-%d %H:%M:%S},{value:.3f},{2 * value:.3f}")
    path.write_text("\n".join([*lines, ""]))
    return path


def load_file(folder: Path, name: str = "load.csv") -> Path:
    path = folder / name
    counts = 300 + 100 * np.sin(np.arange(200) / 3)
    lines = [f"{hour},{hour}.0,{number:.0f},{hour}.0" for hour, number in enumerate(counts)]
    path.write_text("\n".join([",hourofyear,job_name,hour", *lines, ""]))
    return path


COLUMNS = ("tenant", "request_id", "task", "directive", "evaluation_sample_id", "energy_joules", "busy_seconds", "seed")
"""Some of the ledger's."""


def ledger_row(
    request: str, directive: str, joules: float | str, sample: str = "", task: str = "faq"
) -> dict[str, Any]:
    values = ("acme", request, task, directive, sample, joules, 0.01 * joules if isinstance(joules, float) else "", "s")
    return dict(zip(COLUMNS, values, strict=True))


SAMPLED = [
    ledger_row("r1", "L0", 1000.0),
    ledger_row("r2", "L2", 50.0),
    ledger_row("e1", "L0", 800.0, "s1"),
    ledger_row("e2", "L2", 80.0, "s1"),
    ledger_row("e3", "L0", 600.0, "s2", "sums"),
    ledger_row("e4", "L2", 90.0, "s2", "sums"),
    ledger_row("e5", "L2", 70.0, "s3"),
    ledger_row("r3", "L0", ""),
]


def ledger_file(folder: Path, found: Sequence[Mapping[str, Any]] = SAMPLED) -> Path:
    path = folder / "ledger.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(found)
    return path
