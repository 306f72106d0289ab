"""How many pairs of scores it takes until a directive's lower bound clears its floor, by simulation.

Scores are right or wrong, the case with the largest variance for its mean: L0 is right on a share B of the prompts, the
directive on a share g of those that L0 is wrong on, and on as many of the others as its share of L0's quality leaves. A
grader that gives parts of a point needs fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.quality.confidence import BETS, LOG_WEIGHTS

QUANTILES = (0.1, 0.5, 0.9)


def worthwhile_pairs(requests: float) -> int:
    """How many pairs of scores of a directive pay, where requests are served by its lower bound and not by a verdict.

    With n pairs the bound lies about k / sqrt(n) below the share. One more lets N requests lose N k / (2 n^1.5) more of
    quality in all. What a unit of quality saves, times k / 2, is of the order of what a pair costs: a request's carbon
    at L0. So it pays up to n = N^(2/3), and the sum of both is flat around it.

    Args:
        requests: That are to be served, by as many as there were.
    """
    return int(max(requests, 0.0) ** (2 / 3))


@dataclass(frozen=True, slots=True)
class Assumption:
    """What is taken to be true. Raises ValueError, naming the field, for what cannot be.

    share: of L0's quality that the directive keeps.
    baseline_quality: L0's, in (0, 1].
    gained: how often the directive is right where L0 is wrong, in [0, 1].
    """

    share: float
    baseline_quality: float = 1.0
    gained: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.baseline_quality <= 1:
            raise ValueError(f"baseline_quality must be in (0, 1], got {self.baseline_quality!r}")
        if not 0 <= self.gained <= 1:
            raise ValueError(f"gained must be in [0, 1], got {self.gained!r}")
        least, most = self._gains, 1 + self._gains
        if not least <= self.share <= most:
            raise ValueError(
                f"share must be {least:.4g} to {most:.4g}, as baseline quality and gained have it, got {self.share!r}"
            )

    @property
    def _gains(self) -> float:
        """Share of L0's quality that comes from prompts which L0 is wrong on."""
        return self.gained * (1 - self.baseline_quality) / self.baseline_quality

    def chances(self) -> tuple[float, float, float, float]:
        """Of (directive, L0) being (right, right), (wrong, right), (right, wrong), (wrong, wrong)."""
        both = self.baseline_quality * (self.share - self._gains)
        gained = (1 - self.baseline_quality) * self.gained
        return both, self.baseline_quality - both, gained, 1 - self.baseline_quality - gained


@dataclass(frozen=True, slots=True)
class SampleSize:
    """Pairs until the floor is cleared, over simulated streams."""

    cleared: float
    """Share of the streams that cleared it within `most` pairs."""
    most: int
    mean: float | None
    """None where a stream did not clear it: then the mean is not known, only that it is larger."""
    quantiles: tuple[float | None, ...]
    """At QUANTILES; None where it is beyond `most`."""


def simulate(
    assumed: Assumption, floor: float, alpha: float, rng: np.random.Generator, streams: int = 400, most: int = 20_000
) -> SampleSize:
    """Looked at after every pair, as the evaluator's bounds may be.

    alpha: error probability of the bound.
    Raises ValueError, naming the field, for a floor outside (0, 1] or an alpha outside (0, 1).
    """
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], got {floor!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
    gains = np.array([1 / floor - 1, -1.0, 1 / floor, 0.0])
    factor = 1 + np.outer(gains, BETS)  # [outcomes, bets]
    edges = np.cumsum(np.maximum(assumed.chances(), 0.0))[:-1]
    weights = np.exp(LOG_WEIGHTS)
    found, live = np.full(streams, most + 1), np.arange(streams)
    capital = np.ones((streams, len(BETS)))
    for pairs in range(1, most + 1):
        capital *= factor[np.searchsorted(edges, rng.random(len(live)), side="right")]
        cleared = capital @ weights >= 1 / alpha
        if cleared.any():
            found[live[cleared]] = pairs
            live, capital = live[~cleared], capital[~cleared]
            if not len(live):
                break
    at = np.quantile(found, QUANTILES, method="inverted_cdf")
    return SampleSize(
        cleared=float((found <= most).mean()),
        most=most,
        mean=float(found.mean()) if not len(live) else None,
        quantiles=tuple(float(value) if value <= most else None for value in at),
    )
