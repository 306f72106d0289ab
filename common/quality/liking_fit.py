"""Fit of a judge's preferences: a strength for each cell, and slopes of length and position that all cells share.

The logistic model of `likings`, by penalised quasi-likelihood: preferences need not be 0 or 1. The slopes' errors are
kept as the influence of every sample, so that whatever rests on them can tell its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.quality.length_term import Floats, length_term, sigmoid

WEAK_PENALTY = 1e-2
"""Keeps the strength of a cell that won or lost every pair finite."""
_ITERATIONS = 50

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Pairs of answers as arrays, [pairs]."""

    cell: Ints
    sample: Ints
    longer: Floats
    """d, in characters."""
    shown_first: Floats
    """Preference for the directive's answer when it was shown first."""
    shown_second: Floats

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        return Rows(
            self.cell[chosen],
            self.sample[chosen],
            self.longer[chosen],
            self.shown_first[chosen],
            self.shown_second[chosen],
        )


@dataclass(frozen=True, slots=True)
class Slopes:
    """Of length and position, and how they came about."""

    typical_characters: float
    scale: float
    value: Floats
    """[2]."""
    influence: Floats
    """Of each sample on the slopes' errors, [samples, 2]."""
    prior: Floats
    """What the penalty leaves open of the slopes' variance, [2, 2]: much, where no pairs tell them from strengths."""

    def length_term(self, longer: Floats) -> Floats:
        return length_term(longer, self.typical_characters, self.scale)


def numbered_anew(rows: Rows) -> tuple[Rows, int]:
    """Cells from 0 up, those alone that have pairs; and how many they are."""
    cells, number = np.unique(rows.cell, return_inverse=True)
    return Rows(number, rows.sample, rows.longer, rows.shown_first, rows.shown_second), len(cells)


def preferences(rows: Rows) -> Floats:
    """[orders, pairs]."""
    return np.stack([rows.shown_first, rows.shown_second])


def levels(strengths: Floats, term: Floats, slopes: Floats) -> Floats:
    """Logits, [orders, pairs]."""
    level = strengths + slopes[0] * term
    return np.stack([level + slopes[1], level - slopes[1]])


def log_likelihood(logits: Floats, given: Floats) -> Floats:
    return np.asarray(given * logits - np.logaddexp(0, logits))


@dataclass(frozen=True, slots=True)
class _Information:
    """Gradient and negative Hessian of the penalised log-likelihood, strengths and slopes apart."""

    residual: Floats
    """y - E[y], [orders, pairs]."""
    gradient: Floats
    """[cells]; `slope_gradient` is [2]."""
    slope_gradient: Floats
    own: Floats
    """Of the strengths, a diagonal, [cells]."""
    mixed: Floats
    """[cells, 2]."""
    slopes: Floats
    """Of the slopes once the strengths are eliminated, [2, 2]."""


def _information(rows: Rows, term: Floats, penalty: float, strengths: Floats, slopes: Floats) -> _Information:
    expected = sigmoid(levels(strengths[rows.cell], term, slopes))
    residual = preferences(rows) - expected
    weight = expected * (1 - expected)
    both, between = weight.sum(axis=0), weight[0] - weight[1]

    def of_cells(values: Floats) -> Floats:
        return np.bincount(rows.cell, weights=values, minlength=len(strengths)).astype(np.float64)

    own = of_cells(both) + WEAK_PENALTY
    mixed = np.column_stack([of_cells(term * both), of_cells(between)])
    cross = float(term @ between)
    slopes_alone = np.array([[term**2 @ both + penalty, cross], [cross, both.sum() + penalty]])
    return _Information(
        residual,
        of_cells(residual.sum(axis=0)) - WEAK_PENALTY * strengths,
        np.array([term @ residual.sum(axis=0), (residual[0] - residual[1]).sum()]) - penalty * slopes,
        own,
        mixed,
        slopes_alone - mixed.T @ (mixed / own[:, None]),
    )


def maximum(
    rows: Rows,
    term: Floats,
    penalty: float,
    cells: int,
    start: tuple[Floats, Floats] | None = None,
    tolerance: float = 1e-12,
) -> tuple[Floats, Floats]:
    """Strengths, [cells], and slopes, [2], by Newton's method, the step halved until it gains: the aim is concave."""
    given = preferences(rows)

    def objective(strengths: Floats, slopes: Floats) -> float:
        fit = log_likelihood(levels(strengths[rows.cell], term, slopes), given).sum()
        return float(fit - (WEAK_PENALTY * strengths @ strengths + penalty * slopes @ slopes) / 2)

    strengths, slopes = start or (np.zeros(cells), np.zeros(2))
    value = objective(strengths, slopes)
    for _ in range(_ITERATIONS):
        known = _information(rows, term, penalty, strengths, slopes)
        step = np.linalg.solve(known.slopes, known.slope_gradient - known.mixed.T @ (known.gradient / known.own))
        own_step = (known.gradient - known.mixed @ step) / known.own
        gain = known.gradient @ own_step + known.slope_gradient @ step
        if gain < tolerance * len(term):
            break
        share = 1.0
        while share > 1e-6:
            moved = strengths + share * own_step, slopes + share * step
            if (reached := objective(*moved)) >= value:
                break
            share /= 2
        else:
            break
        (strengths, slopes), value = moved, reached
    return strengths, slopes


def slopes_of(rows: Rows, typical_characters: float, scale: float, penalty: float, samples: int) -> Slopes:
    term = length_term(rows.longer, typical_characters, scale)
    rows, cells = numbered_anew(rows)
    strengths, slopes = maximum(rows, term, penalty, cells)
    known = _information(rows, term, penalty, strengths, slopes)
    total = known.residual.sum(axis=0)
    of_pair = np.column_stack([term * total, known.residual[0] - known.residual[1]])
    of_pair -= (known.mixed / known.own[:, None])[rows.cell] * total[:, None]
    inverse = np.linalg.inv(known.slopes)
    of_pair = of_pair @ inverse
    influence = np.zeros((samples, 2))
    np.add.at(influence, rows.sample, of_pair)
    return Slopes(typical_characters, scale, slopes, influence, penalty * inverse @ inverse)
