"""Detection of a drop of quality, with a guaranteed average run length.

The detector is a mixture of e-CUSUM detectors, one for each bet c (Shin, Ramdas and Rinaldo, "E-detectors:
a nonparametric framework for sequential change detection", NEJSDS 2024):

    M_t(c) = max(M_{t-1}(c), 1) (1 + c (level_t b_t - q_t)),  M_0(c) = 0,  alarm at sum_c w_c M_t(c) >= 1 / alpha

level_t is what the scores before t have established, such as the lower bound of a confidence sequence, and at
least the floor. While it is held, E[q - level b | past] >= 0, each factor has a conditional mean of at most 1,
hence E[M_tau] <= E[tau] for any stopping time tau, and the mean number of scores to an alarm is at least
1 / alpha. No independence is needed, only scores in [0, 1]. After a drop at an unknown time, M(c) is at
least the capital of a bettor who began just then. A level close to the share makes a drop stand out by all of
its size, not only by what lies below the floor.

So that a change which stays above the floor raises no alarm, there is a second condition: the same detector
with the floor for its level must lean that way, sum_c w_c M_t(c; floor) >= 5. It can only delay an alarm, so the
guarantee holds; and as M_t(c; level) >= M_t(c; floor), an alarm is never later than that of the floor alone, up to
MANY_SCORES. Beyond, the threshold grows, which brings no alarm forward either.
The e-SR detector, with M + 1 in place of max(M, 1), has
the same guarantee and is earlier, but in the end raises an alarm on scores without any shortfall.
"""

from __future__ import annotations

import numpy as np

from common.quality.confidence import check_quality

# The first finds a collapse soonest, the others a drop of some points.
BETS = np.array([0.99, 0.7, 0.4, 0.2, 0.1])  # [bets]
WEIGHTS = np.array([0.4, 0.15, 0.15, 0.15, 0.15])  # [bets]


MANY_SCORES = 1_000
EVIDENCE_A_SCORE = 1.0
"""An alarm throws away all scores so far, so that of many it must be surer: each beyond MANY_SCORES adds so much to the
threshold. Else thousands of scores of an unchanged cell would end in a false one."""
LEANING = 5.0
"""Evidence of a share below the floor itself, in e-values, without which a drop is none that closes anything."""


class DriftDetector:
    """Alarm when the share that q keeps of b has fallen, and below floor; with b = 1, when the mean of q has.

    floor: in (0, 1].
    alpha: reciprocal of the least mean number of scores between alarms while the level is held, in (0, 1).
    """

    def __init__(self, floor: float, alpha: float) -> None:
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be in (0, 1], got {floor!r}")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
        self._floor = floor
        self._threshold = 1 / alpha
        self._evidence = np.zeros((2, len(BETS)))  # [level and floor, bets]

    def update(self, quality: float, baseline_quality: float, level: float = 0.0, scores: int = 0) -> bool:
        """Take in one pair of scores; whether it raises an alarm, after which the detector begins anew.

        level: the share that the scores before this one have established; the floor where it is below.
        scores: that an alarm throws away.
        Raises ValueError, naming the field, for a score outside [0, 1].
        """
        check_quality("quality", quality)
        check_quality("baseline_quality", baseline_quality)
        threshold = max(self._threshold, EVIDENCE_A_SCORE * (scores - MANY_SCORES))
        held = np.array([[max(level, self._floor)], [self._floor]])
        evidence = np.maximum(self._evidence, 1) * (1 + BETS * (held * baseline_quality - quality))
        # One bet that is this far suffices alone. Beyond, a proven change would take ever longer to be forgotten.
        self._evidence = np.minimum(evidence, threshold / WEIGHTS)
        of_level, of_floor = self._evidence @ WEIGHTS
        alarm = bool(of_level >= threshold and of_floor >= LEANING)
        if alarm:
            self._evidence = np.zeros_like(self._evidence)
        return alarm
