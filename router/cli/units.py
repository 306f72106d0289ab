"""Amounts for people: three significant digits with the SI prefix that suits, and "unknown" where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pith.common.v1.energy_pb2 import Interval

UNKNOWN = "unknown"

_JOULES_PER_KWH = 3.6e6
_GRAM_PREFIXES = ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg"), (1e-9, "ng"))
# Above a tenth of a kilowatt-hour people compare with a meter or a bill, which know no megajoules.
_JOULE_PREFIXES = (
    (1000 * _JOULES_PER_KWH, "MWh"),
    (0.1 * _JOULES_PER_KWH, "kWh"),
    (1e3, "kJ"),
    (1.0, "J"),
    (1e-3, "mJ"),
    (1e-6, "µJ"),
)
_SCALES = {"MWh": 1000 * _JOULES_PER_KWH, "kWh": _JOULES_PER_KWH}


def grams(amount: float | None) -> str:
    """An amount of CO2e in grams, e.g. "3.2 mg"."""
    return _with_prefix(amount, _GRAM_PREFIXES)


def joules(amount: float | None) -> str:
    """An energy in joules, e.g. "1.25 kJ" or, from a tenth of one on, "0.4 kWh"."""
    return _with_prefix(amount, _JOULE_PREFIXES)


def percent(share: float | None) -> str:
    """A share of one, e.g. "97.5 %"."""
    return UNKNOWN if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def at_least(share: float | None) -> str:
    """A lower bound of a share, rounded down: one that misses a floor must not read as if it cleared it."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    return percent(math.floor(1000 * share + 1e-6) / 1000)


def count(number: int) -> str:
    """A whole number with its thousands apart, e.g. "12,800"."""
    return f"{number:,}"


def interval(found: Interval, amount: Callable[[float], str], of: str = "") -> str:
    """An estimate and how sure it is, e.g. "38.0 % (95 % interval 31.0 % to 44.0 %)"."""
    sure = f"{100 * found.confidence:g} % interval" if found.confidence else "interval"
    return f"{amount(found.value)}{of} ({sure} {amount(found.lower)} to {amount(found.upper)})"


def rate(number: float) -> str:
    """A number of something a second, to three significant digits, e.g. "12.3" or "1,234"."""
    return f"{number:,.0f}" if number >= 100 or number == 0 else f"{number:.3g}"


def span(seconds: float) -> str:
    """A length of time in its two largest units, e.g. "3 d 4 h"."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size or (parts and len(parts) < 2):
            parts.append(f"{left // size} {unit}")
            left %= size
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"


def _with_prefix(amount: float | None, prefixes: tuple[tuple[float, str], ...]) -> str:
    if amount is None or not math.isfinite(amount):
        return UNKNOWN
    # The unit is that of the rounded amount: 999.6 mg is 1 g, not 1000 mg.
    rounded = float(f"{amount:.3g}")
    least, unit = next((p for p in prefixes if abs(rounded) >= p[0]), prefixes[-1])
    if rounded == 0:
        least, unit = next(p for p in prefixes if p[0] == 1.0)
    scaled = float(f"{amount / _SCALES.get(unit, least):.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(scaled)))) if scaled else 0
    number = f"{scaled:,.{digits}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"
