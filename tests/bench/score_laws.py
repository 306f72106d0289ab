"""Laws of paired scores (directive, L0) for simulations: finite supports, chances linear in the share that is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """P(pair k) = at_zero[k] + share * slope[k], all [pairs], for the shares for which these are chances."""

    quality: Floats
    baseline: Floats
    at_zero: Floats
    slope: Floats

    def chances(self, share: float | Floats) -> Floats:
        """[..., pairs]"""
        return np.maximum(self.at_zero + np.asarray(share)[..., None] * self.slope, 0.0)

    def moments(self, share: float, floor: float) -> tuple[float, float]:
        """Mean and variance of quality - floor * baseline."""
        gain, chance = self.quality - floor * self.baseline, self.chances(share)
        mean = float(gain @ chance)
        return mean, float(gain**2 @ chance) - mean**2


def right_or_wrong(solved: float, gained: float) -> Law:
    """L0 solves a share of the prompts, the directive `gained` of those that L0 does not; the rest follows."""
    odds = gained * (1 - solved) / solved
    return Law(
        np.array([1.0, 0, 1, 0]),
        np.array([1.0, 1, 0, 0]),
        np.array([-solved * odds, solved * (1 + odds), gained * (1 - solved), (1 - gained) * (1 - solved)]),
        np.array([solved, -solved, 0, 0]),
    )


def pairwise(ties: float) -> Law:
    """A judge's wins, ties and losses against L0's answer, which is worth one half."""
    return Law(
        np.array([1, 0.5, 0]),
        np.full(3, 0.5),
        np.array([-ties / 2, ties, 1 - ties / 2]),
        np.array([0.5, 0, -0.5]),
    )


def in_parts() -> Law:
    """Shares of required items: L0 has all (60 % of the prompts) or half; the directive has as much, or it loses a
    quarter or a half of them all: 0.375 of 0.8 on the mean."""
    part = np.array([0.6, 0.6, 0.6, 0.4, 0.4, 0.4])
    lost_at_zero = 0.8 / 0.375 * part * np.array([-1, 0.5, 0.5, -1, 0.5, 0.5])
    as_much = part * np.array([1, 0, 0, 1, 0, 0])
    return Law(
        np.array([1, 0.75, 0.5, 0.5, 0.25, 0]),
        np.array([1, 1, 1, 0.5, 0.5, 0.5]),
        as_much + lost_at_zero,
        -lost_at_zero,
    )


LAWS = {
    "L0 always right": right_or_wrong(1.0, 0.0),
    "L0 right on 90 %": right_or_wrong(0.9, 0.1),
    "items in parts": in_parts(),
    "ScienceQA": right_or_wrong(0.687, 0.233),
    "TriviaQA": right_or_wrong(0.593, 0.227),
    "pairs, 60 % ties": pairwise(0.6),
}
"""ScienceQA and TriviaQA: how often L0 is right, and L1 where L0 is not, as measured on SPROUT's
Llama-2 13B answers."""
