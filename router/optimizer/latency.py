"""How long answers take by (model, task, directive): histograms over what was served."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from common.quality.bound import Cell
from router.directives.levels import L0
from router.optimizer.costs import MAX_CELLS, MEMORY_REQUESTS, PRIOR_REQUESTS

SHORTEST_SECONDS: Final = 0.001
LONGEST_SECONDS: Final = 3_600.0
_BINS_PER_DOUBLING: Final = 4
_BINS: Final = math.ceil(_BINS_PER_DOUBLING * math.log2(LONGEST_SECONDS / SHORTEST_SECONDS)) + 1
"""Each a fifth wider than the one before; the last holds all that took longer than LONGEST_SECONDS."""


class _Histogram:
    """Weights of answer times, the older ones forgotten exponentially."""

    __slots__ = ("requests", "weights")

    def __init__(self) -> None:
        self.weights: npt.NDArray[np.float64] = np.zeros(_BINS)  # [bins]
        self.requests = 0

    def add(self, seconds: float) -> None:
        self.requests += 1
        self.weights *= 1.0 - 1.0 / MEMORY_REQUESTS
        self.weights[min(max(math.floor(_place(seconds)), 0), _BINS - 1)] += 1.0

    def above(self, seconds: float) -> float:
        """Share of the weight beyond `seconds`, evenly spread within a bin on the scale of logarithms."""
        place = _place(seconds)
        if place < 0:
            return 1.0
        index = min(math.floor(place), _BINS - 1)
        beyond = self.weights[index + 1 :].sum() + self.weights[index] * max(index + 1 - place, 0.0)
        # Sums of few weights and of all are rounded apart.
        return min(float(beyond / self.weights.sum()), 1.0)


def _place(seconds: float) -> float:
    return _BINS_PER_DOUBLING * math.log2(seconds / SHORTEST_SECONDS)


class LatencyBook:
    """Observed answer times, from a request's arrival to its last token."""

    def __init__(self) -> None:
        self._histograms: dict[Cell, _Histogram] = {}

    def observe(self, cell: Cell, seconds: float) -> None:
        """Takes an answer's time; one that is not above 0 says nothing."""
        if seconds > 0 and math.isfinite(seconds):
            histogram = self._histograms.pop(cell, None) or _Histogram()
            histogram.add(seconds)
            self._histograms[cell] = histogram
            if len(self._histograms) > MAX_CELLS:
                del self._histograms[next(iter(self._histograms))]

    def late_share(self, cell: Cell, seconds: float) -> float | None:
        """Share of answers that take longer than `seconds`; None where neither the cell nor L0's was observed.

        Drawn towards L0's share as if that were PRIOR_REQUESTS more requests: what was never served is taken to be as
        late as L0, and a few early answers promise little.
        """
        own = self._histograms.get(cell)
        base = self._histograms.get(Cell(cell.model, cell.task, L0.name))
        if base is None or own is base:
            return None if own is None else own.above(seconds)
        if own is None:
            return base.above(seconds)
        weight = own.requests / (own.requests + PRIOR_REQUESTS)
        return weight * own.above(seconds) + (1.0 - weight) * base.above(seconds)
