"""An amount of energy and how it is known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class EnergySource(StrEnum):
    """How an energy is known, from the strongest claim to the weakest."""

    MEASURED = "MEASURED"
    """A counter read for this alone."""
    ATTRIBUTED = "ATTRIBUTED"
    """Its share of a measured step."""
    MODELLED = "MODELLED"
    """Computed from the model's shape and assumed prices."""

    def weaker(self, other: EnergySource) -> EnergySource:
        """The weaker of two claims, which is all that their sum can claim."""
        order = list(EnergySource)
        return max(self, other, key=order.index)


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy in joules with its source. Unknown energy is None in place of this object, never 0 joules.

    Raises ValueError where joules is negative or not finite.
    """

    joules: float
    source: EnergySource

    def __post_init__(self) -> None:
        if not math.isfinite(self.joules) or self.joules < 0:
            raise ValueError(f"joules must be finite and at least 0, got {self.joules!r}")

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.joules + other.joules, self.source.weaker(other.source))


def total_energy(parts: Iterable[Energy | None]) -> Energy | None:
    """Sum of parts under the weakest of their sources.

    None as soon as one part is unknown, since a total that silently leaves a part out understates it, and
    None without any part, since no source could vouch for the 0.
    """
    total: Energy | None = None
    for part in parts:
        if part is None:
            return None
        total = part if total is None else total + part
    return total
