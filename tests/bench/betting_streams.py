"""Many streams of pairs at once under the rule that `common.quality` follows, and what comes of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from common.quality.confidence import BETS, LOG_WEIGHTS, STEPS_PER_UNIT
from tests.bench.score_laws import Law

ALPHA, DRIFT_ALPHA = 0.05, 0.01
FLOOR = 0.95
WEIGHTS = np.exp(LOG_WEIGHTS)
BATCH, RUN_SAMPLES, PATIENCE = 8, 200, 200

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def draw(law: Law, share: Floats, rng: np.random.Generator) -> Ints:
    """One pair for each share: its index in the law's support."""
    edges = np.cumsum(law.chances(share), axis=-1)[..., :-1]
    return np.asarray((rng.random(share.shape)[..., None] > edges).sum(-1))


# -- what opens, vectorised over streams


def betting(law: Law, floor: float) -> Callable[[Ints], NDArray[np.bool_]]:
    """The rule in force, over whole streams [streams, samples] of pairs: whether the floor is cleared at each."""
    factor = 1 + np.outer(law.quality / floor - law.baseline, BETS)  # [pairs, bets]

    def cleared(pairs: Ints) -> NDArray[np.bool_]:
        reached = np.zeros(pairs.shape, bool)
        capital = np.ones((len(pairs), len(BETS)))
        for at in range(pairs.shape[1]):
            capital *= factor[pairs[:, at]]
            reached[:, at] = capital @ WEIGHTS >= 1 / ALPHA
        return reached

    return cleared


def peeking(law: Law, floor: float) -> Callable[[Ints], NDArray[np.bool_]]:
    """Fault: the fixed-size normal bound at every look, from the 30th score on."""
    gain = law.quality - floor * law.baseline

    def cleared(pairs: Ints) -> NDArray[np.bool_]:
        count = np.arange(1, pairs.shape[1] + 1)
        total, squares = gain[pairs].cumsum(1), (gain[pairs] ** 2).cumsum(1)
        deviation = np.sqrt(np.maximum(squares - total**2 / count, 1e-12))
        return (total >= norm.ppf(1 - ALPHA) * deviation) & (count >= 30)

    return cleared


def decayed(law: Law, floor: float) -> Callable[[Ints], NDArray[np.bool_]]:
    """Fault: exponentially weighted mean (0.99 a score) with the normal bound of its effective size."""
    gain = law.quality - floor * law.baseline

    def cleared(pairs: Ints) -> NDArray[np.bool_]:
        mean = square = np.zeros(len(pairs))
        reached = np.zeros(pairs.shape, bool)
        for at in range(pairs.shape[1]):
            new = gain[pairs[:, at]]
            mean, square = 0.99 * mean + 0.01 * new, 0.99 * square + 0.01 * new**2
            deviation = np.sqrt(np.maximum(square - mean**2, 1e-12) * 0.01 / 1.99)
            reached[:, at] = (mean >= norm.ppf(1 - ALPHA) * deviation) & (at >= 30)
        return reached

    return cleared


def first(reached: NDArray[np.bool_]) -> Ints:
    """Samples to the first time, [streams]; one more than there are where it never comes."""
    return np.asarray(np.where(reached.any(1), reached.argmax(1) + 1, reached.shape[1] + 1))


class Epochs:
    """Capitals of the present epochs of some cells of one law: what opens, closes, or contradicts itself."""

    def __init__(self, law: Law, runs: int) -> None:
        gain = law.quality / FLOOR - law.baseline
        self.factor_up, self.factor_down = 1 + np.outer(gain, BETS), 1 - FLOOR * np.outer(gain, BETS)
        self.law = law
        self.up, self.down = np.ones((runs, len(BETS))), np.ones((runs, len(BETS)))
        self.counts = np.zeros((runs, len(gain)))
        self.samples = np.zeros(runs, np.int64)
        self.lower, self.upper = np.zeros(runs), np.full(runs, 2.0)
        self.opened, self.closed = np.zeros(runs, bool), np.zeros(runs, bool)

    def take(self, at: Ints, share: Floats, rng: np.random.Generator) -> None:
        """A batch of each of the cells `at`; then those that contradict themselves begin anew."""
        for _ in range(BATCH):
            self.add(at, draw(self.law, share, rng))
        self.settle(at)

    def add(self, at: Ints, pair: Ints) -> None:
        """One pair of each of the cells `at`."""
        self.up[at] *= self.factor_up[pair]
        self.down[at] *= self.factor_down[pair]
        self.counts[at, pair] += 1
        self.samples[at] += 1
        self.opened[at] |= self.up[at] @ WEIGHTS >= 1 / ALPHA
        self.closed[at] |= self.down[at] @ WEIGHTS >= 1 / ALPHA

    def settle(self, at: Ints) -> None:
        """Has those of the cells `at` begin anew that contradict themselves."""
        self.lower[at] = np.maximum(self.lower[at], bound(self.law, self.counts[at], lower=True))
        self.upper[at] = np.minimum(self.upper[at], bound(self.law, self.counts[at], lower=False))
        anew = at[(self.lower[at] > self.upper[at]) & ~self.opened[at]]
        self.up[anew] = self.down[anew] = 1.0
        self.counts[anew] = 0.0
        self.samples[anew] = 0
        self.lower[anew], self.upper[anew] = 0.0, 2.0
        self.closed[anew] = False


def bound(law: Law, counts: Floats, *, lower: bool) -> Floats:
    """The bound of ShareSequence from how often each pair came, [streams, pairs], without its running intersection."""
    near = np.zeros(len(counts), np.int64) if lower else np.full(len(counts), 2 * STEPS_PER_UNIT)
    far = np.full(len(counts), 2 * STEPS_PER_UNIT + 1) if lower else np.full(len(counts), 0)
    while (np.abs(far - near) > 1).any():
        middle = (near + far) // 2
        share = np.maximum(middle, 1)[:, None] / STEPS_PER_UNIT
        gain = law.quality / share - law.baseline if lower else share * law.baseline - law.quality
        log_capital = np.einsum("sbp,sp->sb", np.log1p(BETS[None, :, None] * gain[:, None, :]), counts) + LOG_WEIGHTS
        rejected = np.logaddexp.reduce(log_capital, axis=1) >= -math.log(ALPHA)
        near, far = np.where(rejected, middle, near), np.where(rejected, far, middle)
    return near / STEPS_PER_UNIT


def quantiles(samples: Ints, most: int) -> dict[str, float | None]:
    values = {str(q): float(np.quantile(samples, q, method="inverted_cdf")) for q in (0.1, 0.5, 0.9)}
    return {q: value if value <= most else None for q, value in values.items()}
