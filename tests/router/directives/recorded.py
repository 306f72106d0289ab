"""SPROUT's recorded prompts, where the data is there."""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

PATH = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "sprout" / "requests_dev.jsonl.gz"
needs_data = pytest.mark.skipif(not PATH.exists(), reason=f"{PATH} is absent")
LEVELS = ("13b/L0", "13b/L1", "13b/L2")


@cache
def rows() -> list[dict[str, Any]]:
    with gzip.open(PATH, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def joules() -> NDArray[np.float64]:
    """[prompts, levels]."""
    return np.array([[3.6e6 * row["variants"][level]["energy_kwh"] for level in LEVELS] for row in rows()])
