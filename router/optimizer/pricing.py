"""What a request costs by its lengths: an engine's calibrated model of energy, at the batch that requests have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, NamedTuple

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot

MAX_COEFFICIENT_JOULES: Final = 1e9
"""More than a device of 10 kW uses in a day: an engine that reports more is wrong, and products stay finite."""


class Lengths(NamedTuple):
    """Means, over requests, of the terms in which E(n, m, B) is linear; n input and m output tokens of a request.

    E is quadratic, so its mean is not E of the mean lengths: with the means of the squares and of the product it is
    exact. What a prefix cache held is not computed again: with c of the n tokens cached, the prefill's terms are n - c
    and n^2 - c^2, while the outputs attend to all n.
    """

    input_tokens: float
    """Mean n - c."""
    input_squared: float
    """Mean n^2 - c^2."""
    output_tokens: float
    """Mean m."""
    output_squared: float
    """Mean m^2."""
    pairs: float
    """Mean n m."""

    @classmethod
    def of(cls, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> Lengths:
        """Of one request."""
        n, c, m = float(prompt_tokens), float(min(cached_tokens, prompt_tokens)), float(output_tokens)
        return cls(n - c, n**2 - c**2, m, m**2, n * m)

    def toward(self, other: Lengths, weight: float) -> Lengths:
        """The means, with `other` taken in at that weight."""
        return Lengths(
            self.input_tokens + weight * (other.input_tokens - self.input_tokens),
            self.input_squared + weight * (other.input_squared - self.input_squared),
            self.output_tokens + weight * (other.output_tokens - self.output_tokens),
            self.output_squared + weight * (other.output_squared - self.output_squared),
            self.pairs + weight * (other.pairs - self.pairs),
        )

    def answered_with(self, share: float) -> Lengths:
        """As if each of these requests had been answered with `share` of its output tokens."""
        return Lengths(
            self.input_tokens,
            self.input_squared,
            share * self.output_tokens,
            share**2 * self.output_squared,
            share * self.pairs,
        )


def check_coefficients(model: SweetSpot) -> None:
    """Raises ValueError, naming the field, for what no measurements can have come to."""
    coefficients = {field.name: getattr(model, field.name) for field in fields(model)}
    for name, value in coefficients.items():
        if value > MAX_COEFFICIENT_JOULES:
            raise ValueError(f"{name} must be at most {MAX_COEFFICIENT_JOULES:g}, got {value!r}")
    if not any(coefficients.values()):
        raise ValueError("every coefficient is 0: a request would cost nothing")


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """What a request costs at an engine by its lengths, as the engine reports it of its calibration.

    Raises ValueError, naming the field, for what no calibration can have come to.
    """

    sweet_spot: SweetSpot
    source: EnergySource
    """How the energies that it was fitted to are known."""
    measured_at: datetime
    held_out_mape: float | None
    """Mean absolute percentage error, in percent, on what the fit did not see; None where nothing was held out."""
    max_batch: int
    """Beyond it, and beyond the lengths below, the model extrapolates."""
    max_input_tokens: int
    max_output_tokens: int

    def __post_init__(self) -> None:
        check_coefficients(self.sweet_spot)
        if self.held_out_mape is not None and not (math.isfinite(self.held_out_mape) and self.held_out_mape >= 0):
            raise ValueError(f"held_out_mape must be finite and at least 0, got {self.held_out_mape!r}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {self.max_batch}")


@dataclass(frozen=True, slots=True)
class Price:
    """An energy model at one batch, by which all directives of a decision are priced alike."""

    model: EnergyModel
    running: float | None = None
    """Requests that its engines run at once at present; None where none was seen to run."""

    @property
    def batch(self) -> float:
        """That requests are priced at: never beyond what was measured, and 1 where nothing is known."""
        return min(max(self.running or 1.0, 1.0), float(self.model.max_batch))

    def joules(self, lengths: Lengths) -> float:
        """Mean energy of requests of such lengths."""
        return self.model.sweet_spot.mean_joules(
            lengths.input_tokens,
            lengths.input_squared,
            lengths.output_tokens,
            lengths.output_squared,
            lengths.pairs,
            self.batch,
        )

    def words(self, lengths: Lengths) -> str:
        """What the price rests on, e.g. "priced at a batch of 3.4 by the calibration of 2026-11-20 (attributed
        energies, held-out error 2.1 %)"."""
        model = self.model
        error = ", error unknown" if model.held_out_mape is None else f", held-out error {model.held_out_mape:.1f} %"
        beyond = [
            f"{what} of {mean:.4g} on average where it measured up to {most:,}"
            for what, mean, most in (
                ("inputs", lengths.input_tokens, model.max_input_tokens),
                ("outputs", lengths.output_tokens, model.max_output_tokens),
            )
            if mean > most > 0
        ]
        return (
            f"priced at a batch of {self._batch_words()} by the calibration of {model.measured_at.date()} "
            f"({model.source.lower()} energies{error})" + "".join(f", extrapolated to {what}" for what in beyond)
        )

    def _batch_words(self) -> str:
        if self.running is None:
            return "1, as no request was seen to run,"
        if self.running > self.model.max_batch:
            return f"{self.batch:.3g}, the largest measured, where {self.running:.3g} run,"
        return f"{self.batch:.3g}"
