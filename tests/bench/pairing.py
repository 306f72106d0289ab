"""By how much judging both answers to the same prompts narrows the interval of the share that a directive keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.quality.confidence import ShareSequence
from tests.bench.sprout_scores import LEVELS, read

ALPHA = 0.05
DEALS = 10


def width(quality: NDArray[np.float64], baseline: NDArray[np.float64]) -> float:
    """Of the share's interval, both bounds of level ALPHA."""
    sequence = ShareSequence(ALPHA)
    for pair in zip(quality.tolist(), baseline.tolist(), strict=True):
        sequence.update(*pair)
    return sequence.upper - sequence.lower


def pairing(seed: int) -> dict[str, Any] | None:
    """For each task and directive: width of the paired interval, mean width with L0's scores dealt to other prompts
    (the same scores, independent), and the cut. None without the data."""
    graded = read()
    if not graded:
        return None
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for task, of in graded.items():
        for level in (1, 2):
            order = rng.permutation(len(of.quality))
            quality, baseline = of.quality[order, level], of.quality[order, 0]
            paired = width(quality, baseline)
            unpaired = float(np.mean([width(quality, rng.permutation(baseline)) for _ in range(DEALS)]))
            found[f"{task}, {LEVELS[level]}"] = {
                "pairs": len(quality),
                "l0": float(baseline.mean()),
                "share": float(quality.sum() / baseline.sum()),
                "paired_width": paired,
                "unpaired_width": unpaired,
                "cut": 1 - paired / unpaired,
            }
    return {"mean_cut": float(np.mean([one["cut"] for one in found.values()])), "cells": found}
