"""What a request costs on one device with one model, as `python -m engine calibrate` has found it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted energy model with what it was fitted to.

    Raises ValueError, naming the field, for a source of ATTRIBUTED, a time without a zone, a count below 1, or an error
    that is negative or not finite.
    """

    model: SweetSpot
    source: EnergySource
    """Of the energies fitted to: MEASURED by a counter read for a cell alone, or MODELLED."""
    model_digest: str
    device: str
    """As the engine's ModelInfo names it."""
    measured_at: datetime
    cells: int
    """Combinations of lengths and batch that the fit has seen."""
    held_out_mape: float | None
    """Mean absolute percentage error, in percent, on cells that the fit has not seen and whose neighbours it has; None
    where the grid was too small to hold any out."""
    corner_mape: float | None
    """The same on the cells of the longest input and output, beyond all that the fit has seen."""
    max_batch: int
    max_input_tokens: int
    max_output_tokens: int
    """The largest batch and lengths that the fit has seen: beyond, it extrapolates."""

    def __post_init__(self) -> None:
        if self.source is EnergySource.ATTRIBUTED:
            raise ValueError("source must be MEASURED or MODELLED, got ATTRIBUTED")
        for name in ("model_digest", "device"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if self.measured_at.tzinfo is None:
            raise ValueError(f"measured_at must have a time zone, got {self.measured_at.isoformat()}")
        try:
            self.measured_at.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"measured_at must be in the years 1 to 9999 of UTC, got {self.measured_at}") from None
        for name in ("cells", "max_batch", "max_input_tokens", "max_output_tokens"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name in ("held_out_mape", "corner_mape"):
            error = getattr(self, name)
            if error is not None and not (math.isfinite(error) and error >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {error!r}")

    def to_json(self) -> str:
        values = asdict(self) | {"source": self.source.value, "measured_at": self.measured_at.isoformat()}
        return json.dumps({"format": _FORMAT} | values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Raises ValueError, in one line that names the field, for what `to_json` would not have written."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise ValueError(f"is not JSON: {fault}") from None
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"is no calibration of format {_FORMAT}")
        coefficients = values.get("model")
        if not isinstance(coefficients, dict):
            raise ValueError(f"model must be a table of coefficients, got {coefficients!r}")
        for name in ("held_out_mape", "corner_mape"):
            if name not in values:
                raise ValueError(f"{name} is missing")
        return cls(
            model=SweetSpot(**{field.name: _number(coefficients, field.name) for field in fields(SweetSpot)}),
            source=_source(values),
            model_digest=_text(values, "model_digest"),
            device=_text(values, "device"),
            measured_at=_time(values),
            cells=_count(values, "cells"),
            held_out_mape=None if values["held_out_mape"] is None else _number(values, "held_out_mape"),
            corner_mape=None if values["corner_mape"] is None else _number(values, "corner_mape"),
            max_batch=_count(values, "max_batch"),
            max_input_tokens=_count(values, "max_input_tokens"),
            max_output_tokens=_count(values, "max_output_tokens"),
        )


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a whole number that is too large") from None


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if type(value) is not int or value >= 1 << 32:
        raise ValueError(f"{name} must be a whole number below 2^32, got {value!r}")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value


def _source(values: Mapping[str, Any]) -> EnergySource:
    text = _text(values, "source")
    if text not in set(EnergySource):
        raise ValueError(f"source must be one of {', '.join(EnergySource)}, got {text!r}")
    return EnergySource(text)


def _time(values: Mapping[str, Any]) -> datetime:
    text = _text(values, "measured_at")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"measured_at must be a time as ISO 8601 writes it, got {text!r}") from None
