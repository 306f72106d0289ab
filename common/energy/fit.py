"""The energy model fitted to measurements, and the two models that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from common.energy.design import TERMS, TIED, Array, design, solve, terms_in_play
from common.energy.grid import Measurement
from common.energy.sweet_spot import SweetSpot


class Form(StrEnum):
    """Which terms of a request's energy a model has, for n input and m output tokens."""

    LINEAR = "linear"
    """1, n, m."""
    NM = "nm"
    """n, m, n m: Wilkins et al., arXiv 2407.04014."""
    SWEET_SPOT = "sweet_spot"
    """1, n, n^2, m, n m, m^2, and with several batch sizes what falls with the batch; none below 0."""


_CANDIDATES: Mapping[Form, tuple[str, ...]] = {
    Form.LINEAR: ("output_joules", "input_joules", "request_joules"),
    Form.NM: ("output_joules", "input_joules", "pair_joules"),
    Form.SWEET_SPOT: tuple(TERMS),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """A model of a request's energy, and how far it is off. All errors are relative, so that those of the request's
    energy are those of the energy per output token.
    """

    form: Form
    tied: bool
    coefficients: Mapping[str, float]
    """By field of `SweetSpot`; a term that the measurements could not tell from others is absent."""
    mape: float
    """Mean absolute percentage error on the measurements, in percent."""
    leave_one_out_mape: float
    """Of every measurement by a fit to the others, in percent; the terms stay those of the whole."""
    residuals: tuple[float, ...]
    """(estimate - measured) / measured, in the order of `measurements`."""
    measurements: tuple[Measurement, ...]

    @property
    def model(self) -> SweetSpot:
        """Raises ValueError where a coefficient is negative, as the comparison models' may be."""
        return SweetSpot(**self.coefficients)


def fit(measurements: Sequence[Measurement], *, tied: bool = False, form: Form = Form.SWEET_SPOT) -> Fit:
    """Minimises the mean of ((estimate - measured) / measured)^2, for every form the same.

    SweetSpot's coefficients are held at 0 or above (NNLS): unconstrained, t1 or t3 often comes out below 0, and with
    it the energy of some lengths. The comparison models go without the constraint, which can only help them.

    Args:
        measurements: at least two; either all know their input tokens or none does.
        tied: t2 = 2 t4, as follows where an output token's attention to an input token costs what that to another
            output token does. SweetSpot's form alone.
        form: of the model.

    Raises ValueError where there are fewer than two measurements, or input tokens are known of some only.
    """
    if len(measurements) < 2:
        raise ValueError(f"a fit needs at least 2 measurements, got {len(measurements)}")
    if len({measurement.input_tokens is None for measurement in measurements}) > 1:
        raise ValueError("input_tokens must be known of every measurement or of none")
    tied = tied and form is Form.SWEET_SPOT
    candidates = [term for term in _CANDIDATES[form] if not (tied and term == "output_squared_joules")]
    terms = terms_in_play(measurements, candidates, tied=tied)
    matrix = design(measurements, terms, tied=tied)
    non_negative = form is Form.SWEET_SPOT
    found = solve(matrix, non_negative=non_negative)
    residuals = matrix @ found - 1
    return Fit(
        form=form,
        tied=tied,
        coefficients=as_coefficients(terms, found, tied=tied),
        mape=_percent(residuals),
        leave_one_out_mape=_percent(_left_out(matrix, non_negative=non_negative)),
        residuals=tuple(residuals.tolist()),
        measurements=tuple(measurements),
    )


def mape(fit: Fit, measurements: Sequence[Measurement]) -> float:
    """Mean absolute percentage error of a fit of any form on measurements, in percent. Raises ValueError without any.

    Coefficients of the comparison models may be negative, which SweetSpot's may not.
    """
    if not measurements:
        raise ValueError("an error needs at least 1 measurement, got 0")
    # The tied column stands for that of output_squared_joules too, whose coefficient is beside it here.
    matrix = design(measurements, list(fit.coefficients))
    return _percent(matrix @ np.array(list(fit.coefficients.values())) - 1)


def as_coefficients(terms: Sequence[str], found: Array, *, tied: bool) -> dict[str, float]:
    """Fitted values by field of `SweetSpot`."""
    coefficients = dict(zip(terms, found.tolist(), strict=True))
    if tied and TIED in coefficients:
        coefficients["output_squared_joules"] = coefficients[TIED] / 2
    return coefficients


def _left_out(matrix: Array, *, non_negative: bool) -> Array:
    """Every row's relative error by the fit without it.  # [measurements]"""
    rows = np.arange(len(matrix))
    return np.array(
        [matrix[row] @ solve(matrix[rows != row], non_negative=non_negative) - 1 for row in rows], dtype=np.float64
    )


def _percent(errors: Array) -> float:
    return float(100 * np.mean(np.abs(errors)))
