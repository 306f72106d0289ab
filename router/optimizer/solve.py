"""The directive optimizer: a linear programme a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

_SLACK = 1e-9
"""By how much a least value that was found may be missed when it is made a constraint."""
_LEAST_SHARE = 1e-7
"""What is below is the solver's rounding."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A level that may be served: its carbon a request and the quality that it surely keeps (L0 keeps all)."""

    directive: str
    grams: float
    quality: float
    late: float = 0.0
    """Share of its answers that come later than they should."""


def solve(
    candidates: Sequence[Candidate], floor: float, most_late: float | None = None
) -> tuple[tuple[str, float], ...]:
    """Shares x that minimise sum(grams x) subject to sum(quality x) >= floor, sum(x) = 1, x >= 0 (SPROUT's LP, its
    quality taken at the lower confidence bound instead of the sample mean, and a task at a time), and to
    sum(late x) <= most_late where that is given. Where no mix that keeps the floor is as early, the earliest are taken,
    and of those the one of least carbon.

    Args:
        candidates: At least L0, whose quality is the baseline's and clears any floor of a valid policy.
        floor: In the unit of `quality`.
        most_late: In the unit of `late`.

    Returns:
        (directive, share), only shares above zero, in the candidates' order.

    Raises:
        ValueError: No mix reaches the floor.
    """
    grams = np.array([candidate.grams for candidate in candidates])  # [candidates]
    rows, limits = [[-candidate.quality for candidate in candidates]], [-floor]
    if most_late is not None:
        late = np.array([candidate.late for candidate in candidates])
        earliest = _minimise(late, rows, limits)
        if earliest is not None:
            rows.append(late.tolist())
            limits.append(max(most_late, float(late @ earliest) + _SLACK))
    shares = _minimise(grams, rows, limits)
    if shares is None:
        best = max(candidate.quality for candidate in candidates)
        raise ValueError(f"floor {floor} cannot be reached: the best level keeps {best}")
    return tuple(
        (candidate.directive, float(share))
        for candidate, share in zip(candidates, shares, strict=True)
        if share > _LEAST_SHARE
    )


def _minimise(
    costs: npt.NDArray[np.float64], rows: Sequence[Sequence[float]], limits: Sequence[float]
) -> npt.NDArray[np.float64] | None:
    """The shares of least cost with rows @ shares <= limits; None where there are none."""
    result = linprog(
        c=costs,
        A_ub=rows,
        b_ub=limits,
        A_eq=np.ones((1, len(costs))),
        b_eq=[1.0],
        bounds=(0.0, 1.0),
        method="highs",
    )
    return np.asarray(result.x) if result.success and result.x is not None else None
