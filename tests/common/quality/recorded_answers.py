"""Answers of Llama-2 to prompts with a reference, as published with SPROUT; the dev half of them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data"))
REQUESTS = DATA / "sprout" / "requests_dev.jsonl.gz"
LEVELS = ("L0", "L1", "L2")
GRADER_OF: Mapping[str, str] = {
    "math": "numeric",
    "scienceqa": "choice",
    "mmlu": "choice",
    "naturalqa": "alias",
    "triviaqa": "alias",
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A prompt with its reference and Llama-2-13B's answers by level."""

    prompt: str
    reference: str
    answers: Mapping[str, str]


@cache
def recorded() -> Mapping[str, Sequence[Recorded]]:
    """By task. Raises FileNotFoundError where the data is not there."""
    found: dict[str, list[Recorded]] = {task: [] for task in GRADER_OF}
    with gzip.open(REQUESTS, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["task"] in found:
                answers = {level: row["variants"][f"13b/{level}"]["answer"] for level in LEVELS}
                found[row["task"]].append(Recorded(row["prompt"], row["reference"], answers))
    return found
