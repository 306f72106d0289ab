"""What a judge likes whoever wrote it: length, and the place. Learned from all that it has compared.

A sample's two answers are shown in both orders. With y how far the directive's is preferred, d how many characters it
is longer, and o = +1 where it was shown first and -1 where it was second,

    logit E[y] = strength of the cell + slope l(d) + position o

with l(d) the term of `length_term`. Slope and position are the judge's, one for all cells: a directive that always
shortens has little contrast of its own to learn them from. It is the model of `preferences` without an effect of the
instruction: the mean over instructions is what bounds are about, and it is met whatever their effects are, also where a
judge says 0.8 instead of yes. What a sample has in common across orders and cells is left to the variance.

Pairs of ended epochs teach on, each epoch with a strength of its own: what the judge likes has not changed with them.
Pairs of equal length need no correction and teach nothing of length: they are left out. So are those with an empty
answer, which loses for being empty.
"""

from __future__ import annotations

import math
from collections import deque
from copy import copy
from dataclasses import dataclass

import numpy as np

from common.quality.length_term import FOLDS, LINEAR, PENALTIES, SCALES, Floats, length_term, plausible_scales, simplest
from common.quality.liking_fit import (
    Rows,
    Slopes,
    levels,
    log_likelihood,
    maximum,
    numbered_anew,
    preferences,
    slopes_of,
)
from common.quality.pairwise import Comparison

MOST_PAIRS = 20_000
"""A judge's newest are learned from, and of a cell the newest are corrected."""
GROWTH = 1.2
"""By how much a judge's pairs grow until penalty and scale are chosen anew."""
_CHOSEN_FROM = 100
"""Pairs from which on penalty and scale are chosen; before, they are the simplest."""
_SPARE_ROWS = MOST_PAIRS // 5


def longer_by(comparison: Comparison) -> float:
    """d; 0 where one of the answers is empty."""
    lengths = (comparison.characters, comparison.baseline_characters)
    return float(lengths[0] - lengths[1]) if all(lengths) else 0.0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A judge's likings: as cross-validation has them, and with next to no penalty, whose errors are known, in each
    form of the term that it does not rule out."""

    chosen: Slopes
    free: tuple[Slopes, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    penalty: float
    scale: float
    plausible_scales: tuple[float, ...]
    typical_characters: float


class Likings:
    """Of one judge; the same pairs, in the same order, always give the same."""

    def __init__(self) -> None:
        self._rows: deque[tuple[int, int, float, float, float]] = deque(maxlen=MOST_PAIRS + _SPARE_ROWS)
        self._number_of_sample: dict[str, int] = {}
        self._cells = 0
        self._taken = 0
        self._learned_from = 0
        self._chosen_at = 0
        self._choice = _Choice(PENALTIES[0], LINEAR, SCALES, 1.0)
        self._fitted_at = 0
        self._fitted: Fitted | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Likings:
        # Rows and fits never change: to copy each, as it would be done by default, takes long.
        other = copy(self)
        other._rows, other._number_of_sample = copy(self._rows), copy(self._number_of_sample)
        return other

    def new_cell(self) -> int:
        """A number for a cell whose pairs have a strength of their own."""
        self._cells += 1
        return self._cells - 1

    def number(self, sample_id: str) -> int:
        """A number for the sample, the same in every cell."""
        return self._number_of_sample.setdefault(sample_id, len(self._number_of_sample))

    @property
    def samples(self) -> int:
        return len(self._number_of_sample)

    @property
    def taken(self) -> int:
        """Pairs so far."""
        return self._taken

    def take(self, cell: int, sample: int, comparison: Comparison) -> None:
        """Take in a pair, of numbers that `new_cell` and `number` gave."""
        self._taken += 1
        if longer := longer_by(comparison):
            self._rows.append((cell, sample, longer, comparison.shown_first, comparison.shown_second))
            self._learned_from += 1

    def fitted(self) -> Fitted | None:
        """None while all pairs are of equal length."""
        if self._learned_from != self._fitted_at:
            self._fitted = self._fit()
            self._fitted_at = self._learned_from
        return self._fitted

    def _fit(self) -> Fitted:
        rows = _as_arrays(list(self._rows)[-MOST_PAIRS:])
        choice = self._chosen()

        def slopes(penalty: float, scale: float) -> Slopes:
            return slopes_of(rows, choice.typical_characters, scale, penalty, self.samples)

        return Fitted(
            slopes(choice.penalty, choice.scale),
            tuple(slopes(PENALTIES[-1], scale) for scale in choice.plausible_scales),
        )

    def _chosen(self) -> _Choice:
        """Penalty and scales, from the pairs up to the last of a fixed series of numbers: so they are the same
        however many pairs came at a time."""
        at = last_of_series(self._learned_from)
        if at != self._chosen_at:
            kept = list(self._rows)
            until = len(kept) - (self._learned_from - at)
            self._choice = _choose(_as_arrays(kept[max(0, until - MOST_PAIRS) : until]))
            self._chosen_at = at
        return self._choice


def last_of_series(pairs: int) -> int:
    """The last number of a fixed series up to this one, which grows by GROWTH, and by no more than the rows that are
    kept beyond MOST_PAIRS: when what is dear to reckon is reckoned anew."""
    at = min(_CHOSEN_FROM, pairs)
    while at < pairs:
        following = min(math.ceil(GROWTH * at), at + _SPARE_ROWS)
        if following > pairs:
            break
        at = following
    return at


def _as_arrays(rows: list[tuple[int, int, float, float, float]]) -> Rows:
    columns = np.array(rows, dtype=np.float64).T
    return Rows(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2], columns[3], columns[4])


def _choose(rows: Rows) -> _Choice:
    typical_characters = math.sqrt(float(np.mean(rows.longer**2)))
    if len(rows.longer) < _CHOSEN_FROM:
        return _Choice(PENALTIES[0], LINEAR, SCALES, typical_characters)
    rows, cells = numbered_anew(rows)
    _, instruction = np.unique(rows.sample, return_inverse=True)
    # By the order in which samples came, which tells nothing: nothing need be drawn.
    fold = rows.sample % FOLDS
    unseen_of: dict[tuple[float, float], Floats] = {}
    for penalty in PENALTIES:
        for scale in SCALES:
            term = length_term(rows.longer, typical_characters, scale)
            of_pair = np.zeros(len(term))
            near = maximum(rows, term, penalty, cells)
            for held_out in range(FOLDS):
                seen, unseen = fold != held_out, fold == held_out
                # The likelihood is flat about its maximum: it need not be met to the last digit.
                strengths, slopes = maximum(rows.where(seen), term[seen], penalty, cells, near, tolerance=1e-6)
                logits = levels(strengths[rows.cell[unseen]], term[unseen], slopes)
                of_pair[unseen] = log_likelihood(logits, preferences(rows.where(unseen))).sum(axis=0)
            unseen_of[penalty, scale] = np.bincount(instruction, weights=of_pair).astype(np.float64)
    return _Choice(*simplest(unseen_of), plausible_scales(unseen_of), typical_characters)
