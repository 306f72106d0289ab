"""The terms of an energy model as columns, and the least squares over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from common.energy.grid import Measurement

Array = NDArray[np.float64]
_Column = Callable[[Array, Array, Array], Array]

TERMS: Mapping[str, _Column] = {
    "output_joules": lambda n, m, batch: m,
    "output_shared_joules": lambda n, m, batch: m / batch,
    "request_joules": lambda n, m, batch: np.ones_like(m),
    "input_joules": lambda n, m, batch: n,
    "pair_joules": lambda n, m, batch: n * m,
    "output_squared_joules": lambda n, m, batch: m**2,
    "input_squared_joules": lambda n, m, batch: n**2,
    "output_root_joules": lambda n, m, batch: m / np.sqrt(batch),
    "request_shared_joules": lambda n, m, batch: 1 / batch,
}
"""What a coefficient of `SweetSpot` multiplies, for n input and m output tokens. The earlier a term stands, the more
it explains; where measurements cannot tell two apart, the earlier is kept."""
TIED = "pair_joules"
"""With t2 = 2 t4, the column of this stands for that of `output_squared_joules` as well: n m + m^2 / 2."""
_LEAST_SINE = 0.02
"""A column nearer than this to the span of those before it would have its coefficient from the noise."""


def design(measurements: Sequence[Measurement], terms: Sequence[str], *, tied: bool = False) -> Array:
    """Columns of the relative-error problem, each divided by the energy measured: a coefficient vector x makes
    (design @ x - 1) the relative errors.  # [measurements, terms]

    Unknown input tokens count as 0: their cost is then part of the request's.
    """
    n = np.array([measurement.input_tokens or 0.0 for measurement in measurements])
    m = np.array([measurement.output_tokens for measurement in measurements])
    batch = np.array([measurement.batch for measurement in measurements])
    joules = np.array([measurement.joules for measurement in measurements])
    columns = []
    for term in terms:
        column = TERMS[term](n, m, batch)
        columns.append((column + m**2 / 2 if tied and term == TIED else column) / joules)
    found: Array = np.stack(columns, axis=1)
    return found


def terms_in_play(measurements: Sequence[Measurement], candidates: Sequence[str], *, tied: bool = False) -> list[str]:
    """The candidates that these measurements can tell apart, at least one row more than terms.

    With one batch size, for example, no term that falls with the batch differs from one that does not; with lengths
    that hardly vary, what a request costs once is not to be told from what its tokens cost.
    """
    chosen: list[str] = []
    basis = np.zeros((len(measurements), 0))
    for term in candidates:
        if len(chosen) + 1 >= len(measurements):
            break
        (column,) = design(measurements, [term], tied=tied).T
        length = float(np.linalg.norm(column))
        if length == 0:
            continue
        column = column / length
        # Twice is enough for orthogonality to rounding (Kahan, in Parlett 1980, section 6-9).
        for _ in range(2):
            column = column - basis @ (basis.T @ column)
        sine = float(np.linalg.norm(column))
        if sine >= _LEAST_SINE:
            chosen.append(term)
            basis = np.column_stack([basis, column / sine])
    return chosen


def solve(matrix: Array, *, non_negative: bool = True) -> Array:
    """The x that minimises the mean of (matrix @ x - 1)^2.  # [terms]

    Columns are scaled to length 1 first: n^2 and 1 differ by seven orders of magnitude.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    lengths[lengths == 0] = 1.0
    ones = np.ones(len(matrix))
    if non_negative:
        scaled = nnls(matrix / lengths, ones, maxiter=100 * matrix.shape[1])[0]
    else:
        scaled = np.linalg.lstsq(matrix / lengths, ones, rcond=None)[0]
    return np.asarray(scaled / lengths, dtype=np.float64)
