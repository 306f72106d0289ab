"""What a class of requests gives and costs at each price of quality, told by samples whose every action was judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.directives.choice import best_actions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEPS_PER_OCTAVE: Final = 8
LOWEST_OCTAVE: Final = 4
HIGHEST_OCTAVE: Final = 20
"""Prices from 16 J to 1 MJ for a unit of quality: below, energy alone decides; above, quality alone."""
PRICES: Final = 2.0 ** (
    np.arange(LOWEST_OCTAVE * STEPS_PER_OCTAVE, HIGHEST_OCTAVE * STEPS_PER_OCTAVE + 1) / STEPS_PER_OCTAVE
)
"""Joules that a unit of quality is worth, ascending, [prices]."""
AT_BASELINE: Final = len(PRICES)
"""The place behind the prices: every request at the baseline."""


def place_of(joules: Floats | float) -> Ints:
    """The place in PRICES nearest to a price, or at the end that it is beyond."""
    octaves = np.log2(np.clip(joules, 1e-300, 1e300))
    places = np.rint((octaves - LOWEST_OCTAVE) * STEPS_PER_OCTAVE)
    return np.asarray(np.clip(places, 0, len(PRICES) - 1), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ValueCurve:
    """Per request of the class; by place in PRICES, and behind them at the baseline: [prices + 1].

    Attributes:
        margin: Quality less floor x baseline's quality: what is left to spend, negative where it is overdrawn.
        error: Standard error of `margin`.
        joules: Mean energy.
        shares: Of the actions, [actions, prices + 1].
        baseline: Mean quality at the baseline.
        samples: That it was made from.
    """

    margin: Floats
    error: Floats
    joules: Floats
    shares: Floats
    baseline: float
    samples: int


def value_curve(
    predicted_joules: Floats, predicted_quality: Floats, joules: Floats, quality: Floats, floor: float
) -> ValueCurve:
    """Applies the decision rule at each price to samples, and takes what truly came of it.

    The rule's predictions must not have seen the sample that they are for. The margin at a price is then the mean
    inside the very group that is shortened at that price, not that of the class. It is made monotone: a higher price
    buys no less quality, but for chance.

    Args:
        predicted_joules, predicted_quality: What the rule goes by, [samples, actions].
        joules, quality: What each action did cost and give, [samples, actions]; action 0 is the baseline.
        floor: Share of the baseline's quality.
    Raises:
        ValueError: No sample.
    """
    samples, actions = joules.shape
    if samples == 0:
        raise ValueError("samples must be at least 1, got 0")
    rows = np.arange(samples)
    margins = quality - floor * quality[:, :1]
    chosen = np.stack([best_actions(predicted_joules, predicted_quality, price) for price in PRICES])
    chosen = np.concatenate([chosen, np.zeros((1, samples), dtype=np.int64)])  # [prices + 1, samples]
    got = margins[rows, chosen]
    margin = got.mean(axis=1)
    margin[:AT_BASELINE] = ascending(margin[:AT_BASELINE])
    return ValueCurve(
        margin=margin,
        error=got.std(axis=1) / np.sqrt(samples),
        joules=joules[rows, chosen].mean(axis=1),
        shares=np.stack([(chosen == action).mean(axis=1) for action in range(actions)]),
        baseline=float(quality[:, 0].mean()),
        samples=samples,
    )


def ascending(values: Floats) -> Floats:
    """The nearest values, by squares, that never descend (pool adjacent violators)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, count = means.pop(), counts.pop()
            total = counts[-1] + count
            means[-1] = (means[-1] * counts[-1] + mean * count) / total
            counts[-1] = total
    return np.repeat(means, counts)
