"""The share of L0's quality by a judge's preferences at equal length and balanced order, with bounds.

A cell's corrected preference is the mean over its samples of what the judge would prefer, were both answers of one
length: as it was given where they are, or where one is empty; for the others as the model of `likings` has it,
(expit(strength + position) + expit(strength - position)) / 2, the strength being such that the model's mean is that of
the cell's preferences. The share is twice that, L0's own preference being 1/2.

The estimate is made with the penalty and in the form that cross-validation chose. Its bounds are those of the same
estimate with next to no penalty, which would draw it towards the raw preference while pairs are few, and in every form
that cross-validation does not rule out; they hold all of them. The standard error comes from the influence of every
sample, on the strength and through the slopes, of whatever cell it is (Huber's sandwich): what one sample says in both
orders and of several directives counts once. One more pair is reckoned with, as far from the estimate as can be, so
that a run of ties is no proof. Bounds may be looked at after every pair, by `asymptotic`, with the cell's own pairs for
its time; where other cells teach the slopes at another pace that is an approximation, and so it is beyond MOST_PAIRS,
of which the newest count.

Bounds follow the latest estimate, with no intersection over time as betting has it: what was learned since of the
judge's likings puts right what came before.
"""

from __future__ import annotations

import math
from collections import deque
from copy import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.quality.asymptotic import deviations
from common.quality.bound import Floor, FloorKind
from common.quality.confidence import SHARE_LIMIT
from common.quality.length_term import Floats, sigmoid
from common.quality.liking_fit import WEAK_PENALTY, Slopes
from common.quality.likings import MOST_PAIRS, Likings, longer_by
from common.quality.pairwise import BASELINE_QUALITY, Comparison

LEAST_PAIRS = 200
"""Of a cell, before which nothing is said: the bounds are asymptotic."""


@dataclass(frozen=True, slots=True)
class CorrectedShare:
    """Of L0's quality; the bounds are 0 and 2 where nothing is known."""

    share: float | None
    lower: float
    upper: float
    error: float
    """Standard error, as the bounds' distance has it."""
    pairs: int
    alpha: float

    def verdict(self, floor: Floor) -> Literal["open", "closed", "undecided"]:
        """What is known at a floor; an absolute one is of the preference itself."""
        if self.lower >= _share(floor):
            return "open"
        return "closed" if self.upper < _share(floor) else "undecided"

    def chance_to_clear(self, floor: Floor, more: int) -> float:
        """About how likely the lower bound is to reach the floor with so many more pairs like those so far."""
        total = self.pairs + more
        if self.share is None or not more:
            return float(self.verdict(floor) == "open")
        error = self.error * math.sqrt(self.pairs / total)
        needed = _share(floor) + deviations(total, LEAST_PAIRS, self.alpha) * error
        spread = self.error * math.sqrt(more / total)
        return 0.5 * math.erfc((needed - self.share) / (spread * math.sqrt(2)))


def _share(floor: Floor) -> float:
    return floor.quality if floor.kind is FloorKind.RELATIVE else floor.quality / BASELINE_QUALITY


NOT_YET_CORRECTED = CorrectedShare(None, 0.0, SHARE_LIMIT, math.inf, 0, 1.0)


class CellPairs:
    """The pairs of one cell that one judge has compared."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._rows: deque[tuple[int, float, float, float]] = deque(maxlen=MOST_PAIRS)
        self._pairs = 0

    def __len__(self) -> int:
        return self._pairs

    def __deepcopy__(self, memo: dict[int, object]) -> CellPairs:
        # Rows never change: to copy each, as it would be done by default, takes long.
        other = copy(self)
        other._rows = copy(self._rows)
        return other

    def take(self, sample_id: str, comparison: Comparison, likings: Likings, *, teaches: bool) -> None:
        """Take in a pair.

        Args:
            likings: the judge's.
            teaches: whether they are learned from it too: once of each pair, though it counts for a tenant as well.
        """
        sample = likings.number(sample_id)
        self._rows.append((sample, longer_by(comparison), comparison.shown_first, comparison.shown_second))
        self._pairs += 1
        if teaches:
            if self._number is None:
                self._number = likings.new_cell()
            likings.take(self._number, sample, comparison)

    def corrected(self, likings: Likings, alpha: float) -> CorrectedShare | None:
        """None without pairs, and while nothing that the judge compared differs in length: nothing is to be corrected.

        Args:
            alpha: error probability of each bound.
        """
        fitted = likings.fitted()
        if fitted is None or not self._rows:
            return None
        estimate, _ = self._estimate(fitted.chosen, likings.samples)
        away = deviations(self._pairs, LEAST_PAIRS, alpha)
        free = [self._estimate(slopes, likings.samples) for slopes in fitted.free]
        lower = min(estimate, *(centre - away * error for centre, error in free))
        upper = max(estimate, *(centre + away * error for centre, error in free))
        known = self._pairs >= LEAST_PAIRS
        return CorrectedShare(
            share=2 * estimate,
            lower=max(0.0, 2 * lower) if known else 0.0,
            upper=min(SHARE_LIMIT, 2 * upper) if known else SHARE_LIMIT,
            error=(upper - lower) / away,
            pairs=self._pairs,
            alpha=alpha,
        )

    def _estimate(self, slopes: Slopes, samples: int) -> tuple[float, float]:
        """The corrected preference and its standard error."""
        sample, longer, *preferences = np.array(self._rows, dtype=np.float64).T
        sample = sample.astype(np.int64)
        given = np.stack(preferences)  # [orders, pairs]
        count = len(longer)
        modelled = longer != 0
        share_modelled = modelled.mean()
        at_equal_length, through_strength, through_slopes = _at_equal_length(
            given[:, modelled], slopes.length_term(longer[modelled]), slopes.value
        )
        each = given.mean(axis=0)
        each[modelled] = at_equal_length
        value = float(each.mean())
        own = (each - value) / count
        own[modelled] += share_modelled * through_strength
        influence = share_modelled * slopes.influence @ through_slopes  # [samples]
        influence = np.pad(influence, (0, samples - len(influence)))
        influence += np.bincount(sample, weights=own, minlength=samples)
        variance = (
            influence @ influence * count / max(count - 1, 1)
            + share_modelled**2 * through_slopes @ slopes.prior @ through_slopes
            + (max(value, 1 - value) / count) ** 2
        )
        return value, math.sqrt(variance)


def _at_equal_length(given: Floats, term: Floats, slopes: Floats) -> tuple[float, Floats, Floats]:
    """The modelled preference; what each pair adds to its error through the strength, [pairs], and its derivative by
    the slopes, [2]."""
    sides = np.array([[1.0], [-1.0]])
    offset = slopes[0] * term + slopes[1] * sides  # [orders, pairs]
    strength = 0.0
    # The mean rises with the strength: Newton's step, kept from leaping where the mean is flat.
    for _ in range(50):
        expected = sigmoid(strength + offset)
        information = float((expected * (1 - expected)).sum()) + WEAK_PENALTY
        step = (float((given - expected).sum()) - WEAK_PENALTY * strength) / information
        strength += max(-2.0, min(2.0, step))
        if abs(step) < 1e-10:
            break
    expected = sigmoid(strength + offset)
    weight = expected * (1 - expected)
    information = float(weight.sum()) + WEAK_PENALTY
    level = sigmoid(strength + slopes[1] * sides)  # [orders, 1]
    by_strength, by_position = float((level * (1 - level)).mean()), float((level * (1 - level) * sides).mean())
    of_slopes = np.array([float((weight * term).sum()), float((weight * sides).sum())]) / information
    return (
        float(level.mean()),
        by_strength / information * (given - expected).sum(axis=0),
        np.array([0.0, by_position]) - by_strength * of_slopes,
    )
