"""How long answers take by (model, task, directive): histograms over what was served."""

from __future__ import annotations

import math
from collections.abc import Iterable
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

    __slots__ = ("requests", "total", "weights")

    def __init__(self) -> None:
        self.weights: npt.NDArray[np.float64] = np.zeros(_BINS)  # [bins]
        self.total = 0.0  # of the weights: a sum over the bins would be most of what a plan takes
        self.requests = 0

    def add(self, seconds: float) -> None:
        self.requests += 1
        kept = 1.0 - 1.0 / MEMORY_REQUESTS
        self.weights *= kept
        self.total = self.total * kept + 1.0
        self.weights[min(max(math.floor(_place(seconds)), 0), _BINS - 1)] += 1.0

    def above(self, seconds: float) -> float:
        """Share of the weight beyond `seconds`, evenly spread within a bin on the scale of logarithms."""
        place = _place(seconds)
        if place < 0:
            return 1.0
        index = min(math.floor(place), _BINS - 1)
        beyond = self.weights[index + 1 :].sum() + self.weights[index] * max(index + 1 - place, 0.0)
        # Sums of few weights and of all are rounded apart.
        return min(float(beyond) / self.total, 1.0)


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

    def late_shares(self, model: str, task: str, directives: Iterable[str], seconds: float) -> dict[str, float]:
        """By directive, share of answers that take longer than `seconds`; without those of which neither the cell nor
        L0's was observed.

        Drawn towards L0's share as if that were PRIOR_REQUESTS more requests: what was never served is taken to be as
        late as L0, and a few early answers promise little.
        """
        base = self._histograms.get(Cell(model, task, L0.name))
        l0 = None if base is None else base.above(seconds)
        shares = {}
        for name in directives:
            own = self._histograms.get(Cell(model, task, name)) if name != L0.name else None
            if own is None:
                if l0 is not None:
                    shares[name] = l0
            elif l0 is None:
                shares[name] = own.above(seconds)
            else:
                weight = own.requests / (own.requests + PRIOR_REQUESTS)
                shares[name] = weight * own.above(seconds) + (1.0 - weight) * l0
        return shares
