"""Bounds of an estimate that may be looked at as often as one likes, once it is about normal.

An asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory
and asymptotic confidence sequences", Annals of Statistics 2024). For an estimate that is, but for what vanishes, a mean
of t independent influences, with standard error e_t, the one-sided bound (their proposition B.1)

    estimate -/+ e_t sqrt(2 (t v + 1) / (t v) log(1 + sqrt(t v + 1) / (2 alpha)))

is Robbins' normal mixture with the variance as estimated. Used from m influences on, with v such that it is tightest
about there (their section 2.5), it errs at any t >= m with a probability that tends to at most alpha as m grows. That
is no guarantee at a given m: `tests/bench/preference_bounds.py` measures what is left of it.
"""

from __future__ import annotations

import math


def deviations(samples: int, start: int, alpha: float) -> float:
    """How many standard errors the bound is from the estimate; with fewer samples than `start`, what it is there.

    Args:
        start: samples from which on the bound is used, at least 2.
        alpha: error probability of each of the two bounds, in (0, 1).
    """
    log = -2 * math.log(alpha)
    mixture_variance = (log + math.log(log) + 1) / (start * math.log(max(start, math.e)))
    information = max(samples, start) * mixture_variance + 1
    return math.sqrt(2 * information / (information - 1) * math.log(1 + math.sqrt(information) / (2 * alpha)))
