"""From joules and device time to grams of CO2 equivalent.

Software Carbon Intensity (ISO/IEC 21031:2024): SCI = (E x I + M) per R, here with R = one served request.
E x I is the operational part, with E multiplied by the PUE of the building; M is the share of the device's
embodied carbon, by time, as in SPROUT (EMNLP 2024): C = CI x E + CO2_embodied / T_life x T.
It is a rate of what was emitted: neither offsets nor certificates bought elsewhere are in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from common.carbon.intensity import Intensity
from common.energy.reading import Energy, EnergySource

JOULES_PER_KWH = 3.6e6
SECONDS_PER_YEAR = 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class CarbonSettings:
    """What the operator declares about building and device.

    pue: power usage effectiveness, energy of the building over energy of its machines, at least 1.
    embodied_grams_total: gCO2eq of making the device.
    lifetime_years: years of 365 days over which that is written off.

    Raises ValueError that names the field and its limit.
    """

    pue: float
    embodied_grams_total: float
    lifetime_years: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.pue) or self.pue < 1:
            raise ValueError(f"pue must be finite and at least 1, got {self.pue!r}")
        if not math.isfinite(self.embodied_grams_total) or self.embodied_grams_total < 0:
            raise ValueError(f"embodied_grams_total must be finite and at least 0, got {self.embodied_grams_total!r}")
        if not math.isfinite(self.lifetime_years) or self.lifetime_years <= 0:
            raise ValueError(f"lifetime_years must be finite and above 0, got {self.lifetime_years!r}")

    @property
    def lifetime_seconds(self) -> float:
        return self.lifetime_years * SECONDS_PER_YEAR


@dataclass(frozen=True, slots=True)
class Footprint:
    """Carbon of a piece of work in gCO2eq, with the intensity and the kind of energy figure behind it."""

    operational_grams: float
    embodied_grams: float
    intensity: Intensity
    energy_source: EnergySource
    pue: float
    """Of the building, by which the operational part was counted."""

    @property
    def total_grams(self) -> float:
        return self.operational_grams + self.embodied_grams


def operational_grams(energy_joules: float, g_per_kwh: float, pue: float) -> float:
    """gCO2eq of the electricity: E x PUE x I."""
    return energy_joules / JOULES_PER_KWH * pue * g_per_kwh


def embodied_grams(seconds: float, embodied_grams_total: float, lifetime_seconds: float, share: float = 1.0) -> float:
    """gCO2eq of the device's making for `seconds` of its life, of which `share` (0 to 1) of it was used."""
    return embodied_grams_total * seconds / lifetime_seconds * share


def footprint(
    energy: Energy | None, busy_seconds: float, intensity: Intensity, settings: CarbonSettings
) -> Footprint | None:
    """Carbon of work that used `energy` and `busy_seconds` of the device; None where energy is unknown.

    busy_seconds is the device's time attributed to the work, not the work's time on the clock: sequences
    that share a step share its seconds, so that the device is written off once.

    Raises ValueError where busy_seconds is negative or not finite.
    """
    if not math.isfinite(busy_seconds) or busy_seconds < 0:
        raise ValueError(f"busy_seconds must be finite and at least 0, got {busy_seconds!r}")
    if energy is None:
        return None
    return Footprint(
        operational_grams=operational_grams(energy.joules, intensity.g_per_kwh, settings.pue),
        embodied_grams=embodied_grams(busy_seconds, settings.embodied_grams_total, settings.lifetime_seconds),
        intensity=intensity,
        energy_source=energy.source,
        pue=settings.pue,
    )


class Counted(Protocol):
    """A part of what a rate of emission counts, such as all requests, their evaluation, or an idle device. The grams of
    all parts are under one signal."""

    @property
    def building_joules(self) -> float:
        """Energy times PUE."""
        ...

    @property
    def operational_grams(self) -> float: ...

    @property
    def embodied_grams(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Sci:
    """Rate of emission by ISO/IEC 21031: (E x I + M) per R, each of them apart."""

    energy_kwh: float
    """E, the building's overhead included."""
    intensity_g_per_kwh: float
    """I: mean over the energy."""
    embodied_grams: float
    """M."""
    requests: int
    """R, above 0."""
    output_tokens: int

    @property
    def total_grams(self) -> float:
        """E x I + M."""
        return self.energy_kwh * self.intensity_g_per_kwh + self.embodied_grams

    @property
    def grams_per_request(self) -> float:
        return self.total_grams / self.requests

    @property
    def grams_per_thousand_output_tokens(self) -> float | None:
        """None where there was no output."""
        return 1000 * self.total_grams / self.output_tokens if self.output_tokens else None


def sci(parts: Iterable[Counted], requests: int, output_tokens: int) -> Sci | None:
    """The rate at which serving emits: SCI = (E x I + M) per R (ISO/IEC 21031:2024).

        E = sum of the parts' energy x PUE / 3.6e6 [kWh]
        I = sum of energy x PUE x intensity / E [g/kWh], what each joule emitted at its own time and place
        M = sum of the parts' embodied carbon [g]

    Args:
        parts: All that is spent to serve; what is unknown of a part is in none of its sums.
        requests: R, those that were served to somebody and whose energy is among the parts.
        output_tokens: Of these requests.

    Returns:
        None without a request or without energy, where neither rate nor mean intensity is defined.
    """
    parts = tuple(parts)
    energy_kwh = math.fsum(part.building_joules for part in parts) / JOULES_PER_KWH
    if requests < 1 or energy_kwh <= 0:
        return None
    return Sci(
        energy_kwh=energy_kwh,
        intensity_g_per_kwh=math.fsum(part.operational_grams for part in parts) / energy_kwh,
        embodied_grams=math.fsum(part.embodied_grams for part in parts),
        requests=requests,
        output_tokens=output_tokens,
    )
