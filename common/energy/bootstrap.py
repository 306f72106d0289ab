"""How sure a fitted energy model is, by refits to resampled errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from common.energy.design import Array, design, solve
from common.energy.fit import Fit, Form, as_coefficients
from common.energy.sweet_spot import SweetSpot
from common.quality.interval import Interval

RESAMPLES = 1000
_METHOD = "residual bootstrap, percentiles"
_LEAST_RATIO = 1e-3
"""Of a measured to an estimated energy: both are above 0."""


class Bootstrap:
    """Refits of a SweetSpot fit to its estimates with its own relative errors drawn anew.

    Errors and not rows are drawn: a grid's cells are chosen, and without a corner that was not drawn the quadratic
    terms would hang loose. What is assumed is that a relative error may befall any cell. Errors are divided by
    sqrt(1 - leverage), as fitting has shrunk them (Davison and Hinkley 1997, chapter 6), and not centred: relative
    least squares stays below the mean by about their variance, and refits to errors with mean 0 would go there twice.
    Of a coefficient at 0 only the upper end says something.

    Args:
        fit: of form SWEET_SPOT.
        generator: draws the errors.
        resamples: how many refits.

    Raises ValueError for another form.
    """

    def __init__(self, fit: Fit, generator: np.random.Generator, *, resamples: int = RESAMPLES) -> None:
        if fit.form is not Form.SWEET_SPOT:
            raise ValueError(f"intervals are for form {Form.SWEET_SPOT}, got {fit.form}")
        self._fit = fit
        terms = [term for term in fit.coefficients if not (fit.tied and term == "output_squared_joules")]
        matrix = design(fit.measurements, terms, tied=fit.tied)
        found = np.array([fit.coefficients[term] for term in terms])
        # In units of what was measured.
        estimates = np.maximum(matrix @ found, _LEAST_RATIO)
        errors = (1 / estimates - 1) / np.sqrt(1 - _leverages(matrix[:, found > 0]))
        drawn = np.maximum(1 + generator.choice(errors, size=(resamples, len(errors))), _LEAST_RATIO)
        self._models = tuple(
            SweetSpot(**as_coefficients(terms, solve(matrix / (estimates * ratios)[:, None]), tied=fit.tied))
            for ratios in drawn
        )

    def figure(self, of: Callable[[SweetSpot], float], confidence: float = 0.95) -> Interval:
        """Of anything that follows from the coefficients, such as m*(n). Its ends may be infinite."""
        return _interval(of(self._fit.model), np.array([of(model) for model in self._models]), confidence)

    def coefficient(self, name: str, confidence: float = 0.95) -> Interval:
        """Of a coefficient, by field of `SweetSpot`."""
        return self.figure(lambda model: float(getattr(model, name)), confidence)

    def sweet_spot_tokens(self, input_tokens: float, batch: float = 1.0, confidence: float = 0.95) -> Interval:
        """Of m*(n)."""
        return self.figure(lambda model: model.sweet_spot_tokens(input_tokens, batch), confidence)


def _leverages(matrix: Array) -> Array:
    """How far each measurement draws the fit to itself; at most 0.95.  # [measurements]"""
    basis = np.linalg.qr(matrix)[0]
    leverages: Array = np.minimum(np.sum(basis**2, axis=1), 0.95)
    return leverages


def _interval(value: float, resampled: Array, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    # Interpolation between two infinite values would be no number.
    lower, upper = np.quantile(resampled, (tail, 1 - tail), method="inverted_cdf")
    return Interval(value, float(lower), float(upper), confidence, _METHOD)
