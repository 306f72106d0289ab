"""Amounts for people: three significant digits with the SI prefix that suits, and "unknown" where nothing is known."""

import math

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


def count(number: int) -> str:
    """A whole number with its thousands apart, e.g. "12,800"."""
    return f"{number:,}"


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
