"""The directive optimizer: a linear programme a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog


@dataclass(frozen=True, slots=True)
class Candidate:
    """A level that may be served: its carbon a request and the quality that it surely keeps (L0 keeps all)."""

    directive: str
    grams: float
    quality: float


def solve(candidates: Sequence[Candidate], floor: float) -> tuple[tuple[str, float], ...]:
    """Shares x that minimise sum(grams x) subject to sum(quality x) >= floor, sum(x) = 1, x >= 0 (SPROUT's LP, its
    quality taken at the lower confidence bound instead of the sample mean, and a task at a time).

    Args:
        candidates: At least L0, whose quality is the baseline's and clears any floor of a valid policy.
        floor: In the unit of `quality`.

    Returns:
        (directive, share), only shares above zero, in the candidates' order.

    Raises:
        ValueError: No mix reaches the floor.
    """
    result = linprog(
        c=[candidate.grams for candidate in candidates],
        A_ub=[[-candidate.quality for candidate in candidates]],
        b_ub=[-floor],
        A_eq=np.ones((1, len(candidates))),
        b_eq=[1.0],
        bounds=(0.0, 1.0),
        method="highs",
    )
    if not result.success or result.x is None:
        best = max(candidate.quality for candidate in candidates)
        raise ValueError(f"floor {floor} cannot be reached: the best level keeps {best} ({result.message})")
    return tuple(
        (candidate.directive, float(share))
        for candidate, share in zip(candidates, result.x, strict=True)
        if share > 1e-9
    )
