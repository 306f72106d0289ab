"""How sure a saving is that was seen on one day of requests, each of them served twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.quality.interval import Interval

RESAMPLES = 4_000
METHOD = f"paired bootstrap over requests, percentiles of {RESAMPLES:,} resamples; another run's batching is not in it"


def paired_saving(
    baseline_grams: Sequence[float],
    grams: Sequence[float],
    spent_grams: float = 0.0,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Share of the baseline's carbon that was saved: 1 - (sum of grams + spent_grams) / sum of baseline_grams.

    The requests stand for others like them: whole pairs are drawn anew, so that what makes one request dear in both
    days counts once (percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Args:
        baseline_grams, grams: Of each request on either day, in the same order.
        spent_grams: What was spent beside them and is deducted as it is, such as evaluation.

    Raises ValueError where the days differ in length, or the baseline emitted nothing.
    """
    pairs = np.array([baseline_grams, grams], dtype=np.float64)  # [2, requests]
    sums = pairs.sum(axis=1)
    if not sums[0] > 0:
        raise ValueError("the baseline emitted nothing, of which no share can be saved")
    random = np.random.default_rng(seed)
    count = pairs.shape[1]
    resampled = np.array([random.multinomial(count, np.full(count, 1 / count)) @ pairs.T for _ in range(RESAMPLES)])
    savings = 1 - (resampled[:, 1] + spent_grams) / np.where(resampled[:, 0] > 0, resampled[:, 0], np.nan)
    lower, upper = np.nanquantile(savings, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(1 - (sums[1] + spent_grams) / sums[0]), float(lower), float(upper), confidence, METHOD)
