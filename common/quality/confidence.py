"""Anytime-valid confidence bounds for the share of baseline quality that a directive keeps.

For scores q (directive) and b (baseline, L0) of one prompt, both in [0, 1], the share r* solves
E[q - r* b] = 0. Two betting processes test each r (Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", JRSS B 2024, section 4, carried over from q - m to q - r b):

    against  E[q - r b | past] <= 0:   K_t(r) = sum_c w_c prod_{s<=t} (1 + (c / r) (q_s - r b_s))
    against  E[q - r b | past] >= 0:   L_t(r) = sum_c w_c prod_{s<=t} (1 +  c      (r b_s - q_s))

Since q - r b lies in [-r, 1] and 0 < c < 1, every factor is positive. Written as 1 - c b + c q / r and
1 - c q + c r b, the factors are monotone in r: K_t rejects (reaches 1 / alpha) exactly the r up to one
point, which is the lower bound, and L_t those from one point on, the upper bound. So no grid of r need be
kept.

What is guaranteed, whatever the stopping rule and without independence of the pairs:

- Let m_t(r) = E[q_t - r b_t | past]. Under m_t(r) <= 0 for all t, K(r) is a nonnegative supermartingale
  that starts at 1 and reaches 1 / alpha with probability at most alpha (Ville's inequality). Where
  E[q_t | past] = r* E[b_t | past] for one r* and all t, the lower bound therefore exceeds r* at any time
  ever with probability at most alpha, and so for the upper bound; for both together, at most 2 alpha.
- Where the share changes with time, for each r fixed beforehand, such as a floor: with probability at least
  1 - alpha, K_t(r) stays below 1 / alpha at every time t at which m_1(r) + ... + m_t(r) <= 0. For with
  fixed c, prod (1 + (c/r) m_s) <= exp((c/r) sum m_s) <= 1 at such times, so that K_t(r) is at most the
  mixture of the test martingales prod (1 + (c/r) X_s) / (1 + (c/r) m_s), X_s = q_s - r b_s. In words: a
  directive whose mean share so far, sum E[q | past] / sum E[b | past], has never been above the floor is
  ever opened with probability at most alpha. That speaks of the stream so far, not of its next score:
  `drift` watches for a change.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

STEPS_PER_UNIT = 2000
"""Bounds are multiples of 1 / 2000, rounded outwards."""
SHARE_LIMIT = 2.0
"""Largest share that is told apart: an upper bound of 2.0 says that nothing is known above."""

# A mixture, since the best bet is not known: almost everything where no pair loses, less the more do. The
# weight on the first buys a lower bound of 0.95 after 73 pairs without a loss and costs the others little.
BETS = np.array([0.99, 0.9, 0.75, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03])  # [bets]
LOG_WEIGHTS = np.log([0.4] + [0.06] * 10)  # [bets]


class ShareSequence:
    """Confidence sequence for the share that q keeps of b; with b = 1 throughout, for the mean of q.

    alpha: error probability of each bound over the whole stream, in (0, 1).
    limit: largest share of interest; upper starts there. 1.0 where b is always 1.

    Bounds are those of the running intersection over time. Where it is empty, which has probability at most
    2 alpha under one constant share, the share has changed: then `contradicted` is true and `lower` falls
    to `upper`.
    """

    def __init__(self, alpha: float, limit: float = SHARE_LIMIT) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
        if not 0 < limit <= SHARE_LIMIT:
            raise ValueError(f"limit must be in (0, {SHARE_LIMIT:g}], got {limit!r}")
        self._log_threshold = -math.log(alpha)
        self._steps = round(limit * STEPS_PER_UNIT)
        self._lower_step = 0
        self._upper_step = self._steps
        self._samples = 0
        self._quality_sum = 0.0
        self._baseline_sum = 0.0
        # Equal pairs are counted, not kept: graders give few different scores, and a bound needs no order.
        self._count_of_pair: dict[tuple[float, float], int] = {}

    def update(self, quality: float, baseline_quality: float) -> None:
        """Take in one pair of scores. Raises ValueError, naming the field, for one outside [0, 1]."""
        check_quality("quality", quality)
        check_quality("baseline_quality", baseline_quality)
        pair = (float(quality), float(baseline_quality))
        self._count_of_pair[pair] = self._count_of_pair.get(pair, 0) + 1
        self._samples += 1
        self._quality_sum += pair[0]
        self._baseline_sum += pair[1]
        self._tighten()

    @property
    def lower(self) -> float:
        """Lower bound of the share; 0.0 while nothing is known."""
        return min(self._lower_step, self._upper_step) / STEPS_PER_UNIT

    @property
    def upper(self) -> float:
        """Upper bound of the share; the limit while nothing is known."""
        return self._upper_step / STEPS_PER_UNIT

    @property
    def share(self) -> float | None:
        """Point estimate sum q / sum b; None where the baseline scored nothing."""
        return self._quality_sum / self._baseline_sum if self._baseline_sum > 0 else None

    @property
    def samples(self) -> int:
        """Number of pairs so far."""
        return self._samples

    @property
    def contradicted(self) -> bool:
        """Whether no share is left that the whole stream agrees with."""
        return self._lower_step > self._upper_step

    def samples_to_exclude(self, share: float, most: int) -> int | None:
        """After how many pairs in all, further ones being like those so far, a bound excludes this share.

        None where that takes more than `most`, and where there is no pair yet.
        """
        if self._samples == 0:
            return None
        scores, count = self._scores()
        quality, baseline = scores[:, 0], scores[:, 1]
        weight = count / self._samples

        def rejected(samples: int) -> bool:
            return self._rejects(quality / share - baseline, samples * weight) or self._rejects(
                share * baseline - quality, samples * weight
            )

        # The capital of a mixture of bets is convex in the number of pairs and begins at 1: once above the threshold,
        # which is above 1, it stays there.
        if not rejected(most):
            return None
        return bisect.bisect_left(range(1, most + 1), True, key=rejected) + 1

    def chance_to_clear(self, share: float, more: int) -> float:
        """About how likely the lower bound is to reach a share with so many more pairs, the share being what it is.

        For choosing what to sample, which no bound depends on. Normal approximation of the predictive distribution of
        the mean of q - share b, with one pair of no tendency and the largest spread for a prior, against the mean at
        which the best single bet would reach 1 / alpha, its place in the mixture being worth a factor of five.
        """
        scores, count = self._scores()
        gain = scores[:, 0] - share * scores[:, 1] if self._samples else np.zeros(0)
        known = self._samples + 1
        total = known + more
        mean = float(gain @ count) / known
        variance = (float(gain**2 @ count) + 1) / known - mean**2
        needed = math.sqrt(2 * (self._log_threshold + math.log(5)) * variance / total)
        spread = math.sqrt(variance * more / (known * total))
        return 0.5 * math.erfc((needed - mean) / (spread * math.sqrt(2)))

    def _scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The pairs of scores, [pairs, 2], and how often each came, [pairs]."""
        return (
            np.array(list(self._count_of_pair), dtype=np.float64),
            np.array(list(self._count_of_pair.values()), dtype=np.float64),
        )

    def _tighten(self) -> None:
        scores, count = self._scores()
        quality, baseline = scores[:, 0], scores[:, 1]

        def is_too_small(step: int) -> bool:
            return self._rejects(quality * STEPS_PER_UNIT / step - baseline, count)

        def is_too_large(step: int) -> bool:
            return self._rejects(step / STEPS_PER_UNIT * baseline - quality, count)

        self._lower_step = _furthest(is_too_small, self._lower_step, self._steps)
        self._upper_step = _furthest(is_too_large, self._upper_step, 0)

    def _rejects(self, gain: NDArray[np.float64], count: NDArray[np.float64]) -> bool:
        """Whether the capital of the bets on gain, [pairs] each seen count times, has reached 1 / alpha."""
        log_capital_of_bet = np.log1p(BETS[:, None] * gain) @ count  # [bets]
        return bool(np.logaddexp.reduce(LOG_WEIGHTS + log_capital_of_bet) >= self._log_threshold)


def _furthest(is_rejected: Callable[[int], bool], start: int, end: int) -> int:
    """The rejected step furthest from start towards end, or start where its neighbour is not rejected."""
    toward = 1 if end > start else -1
    if start == end or not is_rejected(start + toward):
        return start
    near, far = 1, abs(end - start) + 1  # distances; rejected up to one of them, by monotonicity
    while far - near > 1:
        middle = (near + far) // 2
        if is_rejected(start + toward * middle):
            near = middle
        else:
            far = middle
    return start + toward * near


def check_quality(name: str, value: float) -> None:
    """Raise ValueError, naming the field, where value is no number in [0, 1]."""
    if not 0 <= value <= 1:  # also false for NaN
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
