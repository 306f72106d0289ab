"""Graded answers of SPROUT's requests (Llama-2 13B at L0, L1, L2) to the prompts of its five tasks with references."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.quality.graders import grade

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "sprout"
GRADER_OF_TASK = {
    "math": "numeric",
    "mmlu": "choice",
    "naturalqa": "alias",
    "triviaqa": "alias",
    "scienceqa": "choice",
}
LEVELS = ("L0", "L1", "L2")


@dataclass(frozen=True, slots=True)
class Graded:
    """quality, energy_kwh: [prompts, levels]."""

    quality: NDArray[np.float64]
    energy_kwh: NDArray[np.float64]


def read() -> dict[str, Graded]:
    """By task, in the data's order of tasks; empty where the data is absent."""
    path = DATA / "requests_dev.jsonl.gz"
    if not path.exists():
        return {}
    quality: dict[str, list[list[float]]] = {task: [] for task in GRADER_OF_TASK}
    energy: dict[str, list[list[float]]] = {task: [] for task in GRADER_OF_TASK}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            grader = GRADER_OF_TASK.get(row["task"])
            if grader is None:
                continue
            variants = [row["variants"][f"13b/{level}"] for level in LEVELS]
            quality[row["task"]].append([grade(grader, v["answer"], row["reference"], row["prompt"]) for v in variants])
            energy[row["task"]].append([v["energy_kwh"] for v in variants])
    return {task: Graded(np.array(quality[task]), np.array(energy[task])) for task in GRADER_OF_TASK}
