"""What the same requests would have emitted without directives, from those held back at random. Pure.

A request for which a directive was open is eligible; a share of the eligible is held back at random and served at L0.
In each stratum, a (model, task, policy), they are a random sample of the eligible, so their mean energy m is an
unbiased estimate of what a steered request (one served under a directive) would have used at L0. Then

    carbon had all been at L0 = carbon of the requests served at L0 + sum over strata and steered requests i of
                                (m * f_i + mean embodied carbon of the held back),

with f_i = operational grams per joule of request i as it was served: its own hour's intensity, and PUE. Assumed is
that energy does not depend on the hour, and that a request's chance to be held back was the same within a stratum and
window; a change of a policy's holdback_share within the window weakens that.

Assumed too is that what one request uses does not depend on how others are served. Requests that share decode steps
break that: shorter answers empty the batch, so that those held back pay a larger share of each step than they would if
all were at L0, and the saving comes out too large (in the demo 60 %, where two whole days differ by about half). The
method says so.

Once a policy's carbon budget is spent and it tightens, every request is steered and none held back. Those are priced by
the same mean, which further assumes that they are like the ones that came before the budget was spent.

Steered requests of a stratum with too few held back are not covered: what they emitted is left out throughout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from common.quality.interval import Interval

MIN_HELD_BACK = 2
METHOD = (
    "stratified mean of randomised hold-back, Welch-Satterthwaite t, corrected for skewness by Hall's transformation; "
    "approximate for few requests, and too large by what shorter answers take from the batches that all share"
)
BUDGET_METHOD = "those steered as a carbon budget was spent are taken to be like those held back before"
SHOWN_UNCOVERED = 5


@dataclass(frozen=True, slots=True)
class Stratum:
    """Sums over the eligible requests of one (model, task, policy) whose energy and carbon are known, and over those
    steered as the carbon budget was spent; those whose embodied carbon is known apart from those where it is not."""

    model: str
    task: str
    policy: str
    steered_requests: int
    budget_steered_requests: int
    """Of these, as the policy's carbon budget was spent: none of their like was held back at that time."""
    steered_grams: float
    """What they emitted, operational and embodied."""
    grams_per_joule_sum: float
    """Sum of f_i over the steered requests."""
    grams_per_joule_square_sum: float
    held_back_requests: int
    joules_sum: float
    """This and what follows: over the held back."""
    joules_square_sum: float
    joules_cube_sum: float
    embodied_grams_sum: float
    embodied_grams_square_sum: float
    joules_embodied_grams_sum: float


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Requests served under a directive that the estimate says nothing of."""

    policy: str
    task: str
    requests: int


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Had every covered request been served at L0."""

    carbon_grams: Interval
    saving: Interval
    """Share of it that was saved; what the evaluation emitted is deducted."""
    held_back_requests: int
    uncovered_requests: int
    uncovered: tuple[Uncovered, ...]
    """The largest parts of these, the most first."""


def estimate(
    strata: Sequence[Stratum], served_grams: float, evaluation_grams: float, confidence: float = 0.95
) -> Counterfactual | None:
    """The counterfactual and its interval.

    Args:
        served_grams: what all requests emitted, eligible or not, those of evaluators left out.
        evaluation_grams: what those of evaluators emitted.

    Returns:
        None where requests were steered and no stratum of theirs has two held back, or where the interval reaches down
        to no carbon at all: then nothing can be said.

    The interval is for what these very requests would have emitted, not for an average of many such days: with s² the
    variance within a stratum, it counts s² (sum f)² / n for the mean of the n held back and s² sum f² for the steered
    requests' own scatter about it. Degrees of freedom by Welch and Satterthwaite. Lengths of answers are skewed: a
    sample whose mean is too low has too low a variance as well, and a symmetric interval then ends below the truth too
    often. So the quantiles are those of Hall's transformation (P. Hall, On the removal of skewness by transformation,
    JRSS B 54, 1992). With few held back it still covers less often than it says.
    """
    own_grams = served_grams - math.fsum(stratum.steered_grams for stratum in strata)
    steered = [stratum for stratum in strata if stratum.steered_requests > 0]
    covered = [stratum for stratum in steered if stratum.held_back_requests >= MIN_HELD_BACK]
    if steered and not covered:
        return None
    value = own_grams + math.fsum(map(_steered_at_l0, covered))
    variances = [(_variance(stratum), stratum.held_back_requests - 1) for stratum in covered]
    variance = math.fsum(v for v, _ in variances)
    lower = upper = value
    if variance > 0:
        freedom = variance**2 / math.fsum(v**2 / n for v, n in variances)
        quantile = float(stdtrit(freedom, 0.5 + confidence / 2))
        skewness = math.fsum(map(_skewness_term, covered)) / variance**1.5
        lower = max(own_grams, value - math.sqrt(variance) * _unskewed(quantile, skewness))
        upper = value - math.sqrt(variance) * _unskewed(-quantile, skewness)
    if lower <= 0:
        return None
    emitted = own_grams + math.fsum(stratum.steered_grams for stratum in covered) + evaluation_grams
    of_budget = any(stratum.budget_steered_requests for stratum in covered)
    method = f"{METHOD}; {BUDGET_METHOD}" if of_budget else METHOD
    uncovered = _uncovered(stratum for stratum in steered if stratum.held_back_requests < MIN_HELD_BACK)
    return Counterfactual(
        carbon_grams=Interval(value, lower, upper, confidence, method),
        # What was emitted is known, so the saving is a monotone function of the one unknown.
        saving=Interval(1 - emitted / value, 1 - emitted / lower, 1 - emitted / upper, confidence, method),
        held_back_requests=sum(stratum.held_back_requests for stratum in covered),
        uncovered_requests=sum(part.requests for part in uncovered),
        uncovered=uncovered[:SHOWN_UNCOVERED],
    )


def _uncovered(strata: Iterable[Stratum]) -> tuple[Uncovered, ...]:
    requests: Counter[tuple[str, str]] = Counter()
    for stratum in strata:
        requests[stratum.policy, stratum.task] += stratum.steered_requests
    parts = sorted(requests.items(), key=lambda part: (-part[1], part[0]))
    return tuple(Uncovered(policy, task, number) for (policy, task), number in parts)


def _steered_at_l0(stratum: Stratum) -> float:
    joules = stratum.joules_sum / stratum.held_back_requests
    embodied = stratum.embodied_grams_sum / stratum.held_back_requests
    return joules * stratum.grams_per_joule_sum + embodied * stratum.steered_requests


def _variance(stratum: Stratum) -> float:
    """Of the difference between `_steered_at_l0` and what the steered requests would have emitted, grams²."""
    return sum(_variances(stratum))


def _variances(stratum: Stratum) -> tuple[float, float]:
    """Of the mean of those held back, and of the steered requests' scatter about it, grams²."""
    n = stratum.held_back_requests

    def covariance(product_sum: float, first_sum: float, second_sum: float) -> float:
        return (product_sum - first_sum * second_sum / n) / (n - 1)

    joules = covariance(stratum.joules_square_sum, stratum.joules_sum, stratum.joules_sum)
    embodied = covariance(stratum.embodied_grams_square_sum, stratum.embodied_grams_sum, stratum.embodied_grams_sum)
    mixed = covariance(stratum.joules_embodied_grams_sum, stratum.joules_sum, stratum.embodied_grams_sum)
    f, f2, m = stratum.grams_per_joule_sum, stratum.grams_per_joule_square_sum, stratum.steered_requests
    of_mean = (f**2 * joules + 2 * f * m * mixed + m**2 * embodied) / n
    of_scatter = f2 * joules + 2 * f * mixed + m * embodied
    # Sums of squares of nearly equal numbers may cancel to just below zero.
    return max(0.0, of_mean), max(0.0, of_scatter)


def _skewness_term(stratum: Stratum) -> float:
    """Covariance of `_steered_at_l0` with its own estimated variance, grams³: variance x skewness x standard deviation
    of one held-back request / n, the skewness being that of the energy, which carbon is nearly proportional to."""
    n = stratum.held_back_requests
    of_mean, of_scatter = _variances(stratum)
    mean = stratum.joules_sum / n
    second = stratum.joules_square_sum / n - mean**2
    # Below that, what is left of nearly equal numbers is rounding.
    if second <= 1e-8 * mean**2:
        return 0.0
    third = stratum.joules_cube_sum / n - 3 * mean * stratum.joules_square_sum / n + 2 * mean**3
    # No n numbers are more skewed than one that differs from all others.
    most = (n - 2) / math.sqrt(n - 1)
    skewness = max(-most, min(most, third / (second * math.sqrt(second))))
    return (of_mean + of_scatter) * skewness * math.sqrt(of_mean / n)


def _unskewed(quantile: float, skewness: float) -> float:
    """The quantile of a studentised mean, from that of a symmetric one; `skewness` that of one request over √n."""
    if abs(skewness) < 1e-6:
        return quantile
    return 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)
