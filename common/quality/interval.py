"""An estimate and what holds it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and what holds it with the stated confidence."""

    value: float
    lower: float
    upper: float
    confidence: float
    """E.g. 0.95."""
    method: str
    """How it was made, in words."""
