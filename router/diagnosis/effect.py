"""How a directive changes the length of answers, learned from requests that were answered with and without it. Pure.

With m tokens without the directive, an answer has in the mean with it

    mu(m) = exp(intercept + slope (log m - center)),

with a slope below 1 in every published measurement: short answers are shortened less. It is a quasi-likelihood fit with
logarithmic link and variance dispersion x mu^2 (McCullagh and Nelder, Generalized Linear Models, ch. 8-9): what is
fitted is the mean of tokens, so that sums come out right, which a regression of logarithms would not give.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

MIN_REQUESTS: Final = 20
"""From which on an effect is fitted."""
MIN_REQUESTS_APART: Final = 100
"""From which on the short and the long half of the evidence are held against each other."""
PRIOR_SLOPE: Final = 0.5
PRIOR_SLOPE_DEVIATION: Final = 0.25
"""What is taken of a slope where the evidence is too little to tell: mean and spread of the twelve published."""
PRIOR_DISPERSION: Final = 1.0
PRIOR_REQUESTS: Final = 20
"""Few answers seldom show the long ones that make a mean uncertain: so many count as if they had the dispersion that is
common among those published."""
_MOST_STEPS: Final = 100
_LEAST_TOKENS: Final = 0.5
"""Stands for an answer without any token."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Of one directive on one task's answers."""

    task: str
    directive: str
    requests: int
    """That it was learned from."""
    center: float
    """Mean log of the tokens without the directive, weighted by those with it: there, the slope changes no sum."""
    intercept: float
    slope: float
    covariance: tuple[float, float, float]
    """Of intercept and slope: variance, covariance, variance; robust to a wrong variance function."""
    dispersion: float
    """Variance of one answer's tokens, divided by their mean squared."""
    shortest_tokens: float
    """Without the directive: 2.5 % of the evidence is shorter."""
    longest_tokens: float
    """97.5 % of the evidence is shorter. Beyond, the fit extrapolates."""
    extra_input_tokens: float
    """That the directive adds to a prompt."""

    def with_misfit(self, slope_variance: float) -> Effect:
        """What `misfit` has found, added: how sure the effect is on answers of other lengths than the evidence's."""
        first, cross, second = self.covariance
        return replace(self, covariance=(first, cross, second + slope_variance))


def mean_tokens(effect: Effect, tokens: Vector, parameters: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Expected tokens with the directive of answers that have `tokens` without.

    Args:
        tokens: # [lengths]
        parameters: Other intercepts and slopes.  # [draws, 2]

    Returns: # [lengths], or [draws, lengths]
    """
    import numpy as np

    least = np.maximum(tokens, _LEAST_TOKENS)
    # A directive to be brief lengthens no answer, unless the evidence's shortest show it; a power law would.
    own = np.array([[effect.intercept, effect.slope]]) if parameters is None else parameters
    edge = np.exp(own[:, :1] + own[:, 1:] * (math.log(effect.shortest_tokens) - effect.center)) / effect.shortest_tokens
    most = np.where(tokens < effect.shortest_tokens, np.maximum(edge, 1.0), np.inf) * least
    mean = np.minimum(np.exp(np.clip(own[:, :1] + own[:, 1:] * (np.log(least) - effect.center), -50.0, 50.0)), most)
    found: NDArray[np.float64] = np.where(tokens > 0, mean, 0.0)
    return found if parameters is not None else found.reshape(-1)


def fit_effect(
    task: str, directive: str, before: Sequence[float], after: Sequence[float], extra_input_tokens: float
) -> Effect:
    """The effect on the same prompts' answers: tokens `before` without the directive, `after` with it.

    The slope is drawn to PRIOR_SLOPE as far as the evidence leaves it open. Raises ValueError for fewer than
    MIN_REQUESTS requests.
    """
    import numpy as np

    if len(before) < MIN_REQUESTS:
        raise ValueError(f"an effect needs at least {MIN_REQUESTS} requests, got {len(before)}")
    x = np.log(np.maximum(np.asarray(before, float), _LEAST_TOKENS))
    y = np.maximum(np.asarray(after, float), _LEAST_TOKENS)
    # Weighted by what the sum consists of, so that a slope which is a little off leaves the sum as it was.
    center = float((y * x).sum() / y.sum())
    design = np.stack([np.ones_like(x), x - center], axis=1)
    prior = np.diag([0.0, 1 / PRIOR_SLOPE_DEVIATION**2])
    found, dispersion = np.array([math.log(y.mean()), PRIOR_SLOPE]), 1.0
    for _ in range(_MOST_STEPS):
        residual = y / np.exp(design @ found) - 1
        dispersion = _dispersion(float((residual**2).sum()), len(x))
        information = design.T @ design / dispersion + prior
        step = np.linalg.solve(
            information, design.T @ residual / dispersion - prior @ (found - np.array([0.0, PRIOR_SLOPE]))
        )
        found = found + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-10:
            break
    residual = y / np.exp(design @ found) - 1
    inverse = np.linalg.inv(information)
    squares = (len(x) * residual**2 + PRIOR_REQUESTS * PRIOR_DISPERSION) / (len(x) - 2 + PRIOR_REQUESTS)
    scores = design.T * squares @ design / dispersion**2
    covariance = inverse @ (scores + prior) @ inverse
    shortest, longest = np.quantile(np.exp(x), [0.025, 0.975])
    return Effect(
        task=task,
        directive=directive,
        requests=len(x),
        center=center,
        intercept=float(found[0]),
        slope=float(found[1]),
        covariance=(float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1])),
        dispersion=dispersion,
        shortest_tokens=float(shortest),
        longest_tokens=float(longest),
        extra_input_tokens=extra_input_tokens,
    )


def _dispersion(square_sum: float, requests: int) -> float:
    return (square_sum + PRIOR_REQUESTS * PRIOR_DISPERSION) / (requests - 2 + PRIOR_REQUESTS)


Lengths = tuple[Sequence[float], Sequence[float]]
"""Tokens of the same prompts' answers without a directive and with it."""


def misfit(evidence: Iterable[Lengths]) -> float | None:
    """Variance of the slope beyond the fit's own, as the shorter half of each piece of evidence shows when it foretells
    the longer half, and the other way round: the law holds only so far, and a log is never like the evidence.

    None where no piece has MIN_REQUESTS_APART requests.
    """
    import numpy as np

    surplus: list[float] = []
    distances: list[float] = []
    for before, after in evidence:
        if len(before) < MIN_REQUESTS_APART:
            continue
        x, y = np.asarray(before, float), np.asarray(after, float)
        order = np.argsort(x, kind="stable")
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for known, asked in (halves, halves[::-1]):
            effect = fit_effect("", "", x[known].tolist(), y[known].tolist(), 0.0)
            foretold, total = mean_tokens(effect, x[asked]), float(y[asked].sum())
            distance = float((foretold * np.log(np.maximum(x[asked], _LEAST_TOKENS))).sum() / foretold.sum())
            distance -= effect.center
            a, ab, b = effect.covariance
            own = a + 2 * distance * ab + distance**2 * b
            scatter = effect.dispersion * float((foretold**2).sum()) / float(foretold.sum()) ** 2
            surplus.append(math.log(float(foretold.sum()) / max(total, _LEAST_TOKENS)) ** 2 - own - scatter)
            distances.append(distance**2)
    if not surplus or sum(distances) == 0:
        return None
    return max(0.0, sum(surplus) / sum(distances))


def draw_parameters(effect: Effect, draws: int, generator: Any) -> NDArray[np.float64]:
    """Intercepts and slopes as they may be: multivariate t with requests - 2 degrees of freedom.  # [draws, 2]"""
    import numpy as np

    a, ab, b = effect.covariance
    # A hair on the diagonal: evidence without any scatter has a covariance of 0.
    root = np.linalg.cholesky(np.array([[a + 1e-12, ab], [ab, b + 1e-12]]))
    freedom = effect.requests - 2
    scale = np.sqrt(freedom / generator.chisquare(freedom, size=(draws, 1)))
    found: NDArray[np.float64] = np.array([effect.intercept, effect.slope]) + scale * (
        generator.standard_normal((draws, 2)) @ root.T
    )
    return found
