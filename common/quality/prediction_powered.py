"""A mean of what people would say, from few things that they have said and many that a judge has.

Prediction-powered inference: Angelopoulos, Bates, Fannjiang, Jordan and Zrnic, Science 382 (2023), with the weight of
Angelopoulos, Duchi and Zrnic, "PPI++: Efficient prediction-powered inference" (2023), for means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from common.quality.interval import Interval

CONFIDENCE = 0.95
METHOD = "prediction-powered, power-tuned; asymptotic"


@dataclass(frozen=True, slots=True)
class Labelled:
    """What people said of one thing, and what was predicted; both in [0, 1]."""

    label: float
    prediction: float


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Things with a prediction alone: how many, and the sums of the predictions and of their squares."""

    count: int
    total: float
    squares: float


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """The mean label over all things."""

    rate: Interval
    weight: float
    """Of the predictions, in [0, 1]; 0 leaves the labels' own mean."""


_IMAGINARY = (Labelled(1.0, 0.0), Labelled(0.0, 1.0))
"""Where all labels so far were predicted rightly, it is not known yet that all always are. Two that were not, one each
way, leave the mean as it is and keep the interval from closing (as Agresti and Coull do for a share)."""


def corrected_rate(labelled: Sequence[Labelled], unlabelled: Unlabelled) -> CorrectedRate:
    """mean(label) + weight (mean over unlabelled of prediction - mean over labelled of prediction).

    The weight is the one that makes the variance least, so that predictions that tell nothing are not used.

    Args:
        labelled: at least two, drawn uniformly from all things.
        unlabelled: the others.
    """
    count = len(labelled)
    mean_label = fmean(one.label for one in labelled)
    mean_prediction = fmean(one.prediction for one in labelled)
    weight, predicted, variance_of_others = 0.0, mean_prediction, 0.0
    padded = [*labelled, *_IMAGINARY]
    if unlabelled.count > 0:
        predicted = unlabelled.total / unlabelled.count
        variance_of_others = max(0.0, unlabelled.squares / unlabelled.count - predicted**2)
        variance = _variance_of_predictions(padded, unlabelled)
        if variance > 0:
            weight = min(1.0, max(0.0, _covariance(padded) / variance / (1 + count / unlabelled.count)))
    value = mean_label + weight * (predicted - mean_prediction)
    residuals = [one.label - weight * one.prediction for one in padded]
    centre = fmean(residuals)
    variance_of_residuals = math.fsum((r - centre) ** 2 for r in residuals) / (count - 1)
    error = math.sqrt(variance_of_residuals / count)
    if unlabelled.count > 0:
        error = math.hypot(error, weight * math.sqrt(variance_of_others / unlabelled.count))
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
    value = max(0.0, min(1.0, value))
    return CorrectedRate(Interval(value, max(0.0, value - half), min(1.0, value + half), CONFIDENCE, METHOD), weight)


def _covariance(pairs: Sequence[Labelled]) -> float:
    label, prediction = fmean(one.label for one in pairs), fmean(one.prediction for one in pairs)
    return fmean((one.label - label) * (one.prediction - prediction) for one in pairs)


def _variance_of_predictions(labelled: Sequence[Labelled], unlabelled: Unlabelled) -> float:
    """Over both together: of few alone it would make the weight a matter of chance."""
    count = len(labelled) + unlabelled.count
    total = math.fsum(one.prediction for one in labelled) + unlabelled.total
    squares = math.fsum(one.prediction**2 for one in labelled) + unlabelled.squares
    return max(0.0, squares / count - (total / count) ** 2)
