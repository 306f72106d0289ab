"""Detection of a drop of quality below a floor, with a guaranteed average run length.

The detector is a mixture of e-CUSUM detectors, one for each bet c (Shin, Ramdas and Rinaldo, "E-detectors:
a nonparametric framework for sequential change detection", NEJSDS 2024):

    M_t(c) = max(M_{t-1}(c), 1) (1 + c (floor b_t - q_t)),  M_0(c) = 0,  alarm at sum_c w_c M_t(c) >= 1 / alpha

While the floor is held, E[q - floor b | past] >= 0, each factor has a conditional mean of at most 1, hence
E[M_tau] <= E[tau] for any stopping time tau, and the mean number of scores to an alarm is at least
1 / alpha. No independence is needed, only scores in [0, 1]. After a drop at an unknown time, M(c) is at
least the capital of a bettor who began just then. The e-SR detector, with M + 1 in place of max(M, 1), has
the same guarantee and is earlier, but in the end raises an alarm on scores without any shortfall.
"""

from __future__ import annotations

import numpy as np

from common.quality.confidence import check_quality

# The first finds a collapse soonest, the others a drop of some points.
_BETS = np.array([0.99, 0.7, 0.4, 0.2, 0.1])  # [bets]
_WEIGHTS = np.array([0.4, 0.15, 0.15, 0.15, 0.15])  # [bets]


class DriftDetector:
    """Alarm when the share that q keeps of b has fallen below floor; with b = 1, when the mean of q has.

    floor: in (0, 1].
    alpha: reciprocal of the least mean number of scores between alarms while the floor is held, in (0, 1).
    """

    def __init__(self, floor: float, alpha: float) -> None:
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be in (0, 1], got {floor!r}")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
        self._floor = floor
        self._threshold = 1 / alpha
        self._evidence = np.zeros_like(_BETS)  # [bets]

    def update(self, quality: float, baseline_quality: float) -> bool:
        """Take in one pair of scores; whether it raises an alarm, after which the detector begins anew.

        Raises ValueError, naming the field, for a score outside [0, 1].
        """
        check_quality("quality", quality)
        check_quality("baseline_quality", baseline_quality)
        shortfall = self._floor * baseline_quality - quality
        self._evidence = np.maximum(self._evidence, 1) * (1 + _BETS * shortfall)
        alarm = bool(_WEIGHTS @ self._evidence >= self._threshold)
        if alarm:
            self._evidence = np.zeros_like(_BETS)
        return alarm
