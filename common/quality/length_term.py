"""The term by which a model of preferences knows a judge's liking for long answers, and how its form is chosen.

With d the difference of the lengths in characters and r its root mean square, the term is s tanh(d / (s r)): about
d / r for small differences, and at most s. s and the ridge penalty on the slopes are chosen by the cross-validated
likelihood of instructions that the fit did not see: the simplest (largest penalty, then nearest to linear) that is
within one standard error of the best, so that no more is corrected than the pairs call for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

LINEAR = 1e3
SCALES = (LINEAR, 2.0, 1.0, 0.5)
"""s, the simplest first."""
PENALTIES = (100.0, 10.0, 1.0, 1e-3)
"""Of the squared slopes, whose terms are about 1 in size; the simplest first."""
FOLDS = 5

Floats = NDArray[np.float64]


def length_term(longer: Floats, typical_characters: float, scale: float) -> Floats:
    """The term of each pair, of the same shape as `longer`, d."""
    return np.asarray(scale * np.tanh(longer / (scale * typical_characters)))


def simplest(unseen_of: Mapping[tuple[float, float], Floats]) -> tuple[float, float]:
    """The first penalty and scale within one standard error of the likeliest.

    Args:
        unseen_of: log-likelihood of each instruction by a fit without it, by (penalty, scale), the simplest first.
    """
    best = max(unseen_of.values(), key=np.sum)
    for chosen, unseen in unseen_of.items():
        worse = best - unseen
        if worse.sum() <= math.sqrt(len(worse)) * worse.std():
            return chosen
    raise AssertionError("the best is as good as itself")


def plausible_scales(unseen_of: Mapping[tuple[float, float], Floats]) -> tuple[float, ...]:
    """Those which, with a penalty that suits them, are within two standard errors of the likeliest."""
    best = max(unseen_of.values(), key=np.sum)

    def is_near(unseen: Floats) -> bool:
        worse = best - unseen
        return bool(worse.sum() <= 2 * math.sqrt(len(worse)) * worse.std())

    near = {scale for (_, scale), unseen in unseen_of.items() if is_near(unseen)}
    return tuple(scale for scale in SCALES if scale in near)


def sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
