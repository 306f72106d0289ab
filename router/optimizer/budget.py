"""A quality budget over a window: one price of quality, in carbon, so that it is spent where it saves most.

What classes may lose together over a window is one budget. Its Lagrange multiplier, the price in grams of a unit of
quality, is the same in all hours; an hour's price in joules is this divided by the hour's grams a joule. So quality is
spent in the dirtiest hours, on the classes and the requests that save most for it, by no other rule.

The price is the one of least carbon at which what was served so far and what is to come keep the floor. Nothing looks
ahead: the hours to come are the forecast's, and beyond these such as the grid has had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.optimizer.value_curve import AT_BASELINE, PRICES, STEPS_PER_OCTAVE, ValueCurve, place_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


TELLING_SAMPLES: Final = 400
"""Of a class: if its floor cannot be kept by so many with anything but the baseline, more will hardly change that."""


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """Requests to come in the window, those of the present hour among them.

    Attributes:
        grams_per_joule: Of kinds of hours, above 0, [hours].
        requests: Expected of each class in each kind of hour, [classes, hours].
    """

    grams_per_joule: Floats
    requests: Floats

    def of(self, classes: Sequence[int]) -> Ahead:
        return Ahead(self.grams_per_joule, self.requests[list(classes)])

    def places(self, grams: float) -> Ints:
        """In the curves, at a price of quality, [hours]."""
        if np.isinf(grams):
            return np.full(len(self.grams_per_joule), AT_BASELINE)
        return place_of(grams / self.grams_per_joule)


@dataclass(frozen=True, slots=True, eq=False)
class Elsewhere:
    """What requests that a budget answers for leave of it, or overdraw, that are taken for those of other classes."""

    margin: float = 0.0
    error: float = 0.0


NOTHING_ELSEWHERE = Elsewhere()


@dataclass(frozen=True, slots=True, eq=False)
class Price:
    """What a budget comes to.

    Attributes:
        grams: Of a unit of quality; infinite where only the baseline keeps the floor.
        keeps: Whether the floor is expected to be kept.
        errors: Of each class: by how much the window's margin may be off, one standard error, [classes].
    """

    grams: float
    keeps: bool
    errors: Floats

    def place(self, grams_per_joule: float) -> int:
        """In the curves, in an hour of such intensity."""
        return AT_BASELINE if np.isinf(self.grams) else int(place_of(self.grams / grams_per_joule))


def price_of_quality(
    curves: Sequence[ValueCurve],
    served: Floats,
    ahead: Ahead,
    deviations: float,
    elsewhere: Elsewhere = NOTHING_ELSEWHERE,
) -> Price:
    """The price of least carbon at which the window keeps its floor; where none does, that of the most quality.

    Args:
        curves: Of the classes that share the budget.
        served: Requests so far, by class and place in the curves, [classes, prices + 1].
        ahead: Of the same classes.
        deviations: Standard errors that the floor is to be kept by.
    """
    margin = np.stack([curve.margin for curve in curves])  # [classes, prices + 1]
    error = np.stack([curve.error for curve in curves])
    joules = np.stack([curve.joules for curve in curves])
    # In steps of the curves, all prices at which the price in joules of some hour lies on them.
    offsets = np.log2(ahead.grams_per_joule) * STEPS_PER_OCTAVE
    count = len(PRICES) + int(np.ceil(offsets.max() - offsets.min()))
    lowest = np.log2(PRICES[0]) * STEPS_PER_OCTAVE + offsets.min()
    grams = 2.0 ** ((lowest + np.arange(count)) / STEPS_PER_OCTAVE)
    grams = np.append(grams, np.inf)  # [candidates]
    places = place_of(grams[:, None] / ahead.grams_per_joule)  # [candidates, hours]
    places[-1] = AT_BASELINE
    left = (served * margin).sum(axis=1) + _over_hours(margin, places, ahead.requests)  # [candidates, classes]
    # All hours rest on the same samples, so that a class' errors add up; those of different classes are independent.
    off = (served * error).sum(axis=1) + _over_hours(error, places, ahead.requests)
    lead = left.sum(axis=1) + elsewhere.margin - deviations * np.sqrt((off**2).sum(axis=1) + elsewhere.error**2)
    cost = _over_hours(joules, places, ahead.requests * ahead.grams_per_joule).sum(axis=1)
    kept = lead >= 0
    best = int(np.where(kept, cost, np.inf).argmin()) if kept.any() else int(lead.argmax())
    return Price(float(grams[best]), bool(kept.any()), off[best])


def _over_hours(values: Floats, places: Ints, weights: Floats) -> Floats:
    """Sums over the hours of values at each hour's place, [candidates, classes]."""
    return np.asarray(np.einsum("ckh,ch->kc", values[:, places], weights))


def taken_for_others(
    task: int, confusion: Floats, labelled: int, requests: Floats, untouched: Floats, baseline: float, floor: float
) -> Elsewhere:
    """What a task's requests come to that are taken for others and served as these are.

    Nobody knows how they fare, so that what is shortened of them counts as lost.

    Args:
        task: Place among the classes.
        confusion: Share of the task's requests that is taken for each class, [classes].
        labelled: Prompts that this was told from.
        requests: Of each class over the window, [classes].
        untouched: Share of each class' requests that is left at the baseline, [classes].
        baseline: Mean quality of the task's requests at the baseline.
    """
    # Of few labelled prompts many may be taken for others by chance; half at least are taken for what they are.
    of_task = requests[task] / max(float(confusion[task]), 0.5)
    margins = of_task * baseline * (untouched - floor)  # were all of them taken for that class
    others = np.arange(len(confusion)) != task
    variance = confusion * (1 - confusion) / max(labelled, 1)
    return Elsewhere(float((confusion * margins)[others].sum()), float(np.sqrt((variance * margins**2)[others].sum())))


def worth_of_samples(price: Price, samples: Floats, deviations: float) -> Floats:
    """Grams that one more sample of each class saves over the window, [classes].

    The floor is kept by `deviations` x S, S^2 = sum of s_c^2. With n_c samples s_c falls as 1 / sqrt(n_c), so that one
    more narrows S by s_c^2 / (2 n_c S), and a unit of quality is worth the price. Where only the baseline keeps the
    floor, that has no price: classes of few samples are worth any, and the others none.
    """
    total = float(np.sqrt((price.errors**2).sum()))
    if np.isinf(price.grams):
        return np.where(samples < TELLING_SAMPLES, np.inf, 0.0)
    if total == 0:
        return np.zeros(len(samples))
    return np.asarray(price.grams * deviations * price.errors**2 / (2 * np.maximum(samples, 1) * total))
