"""Amounts for people."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cli.units import at_least, count, grams, joules, percent, rate, span

FACTORS = {"ng": 1e-9, "µg": 1e-6, "mg": 1e-3, "g": 1.0, "kg": 1e3, "t": 1e6}
JOULES = {"µJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3, "kWh": 3.6e6, "MWh": 3.6e9}


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unknown"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
        (0.0, "0 g"),
        (0.0032, "3.2 mg"),
        (4.56789e-5, "45.7 µg"),
        (0.9996, "1 g"),
        (0.9994, "999 mg"),
        (1234.5, "1.23 kg"),
        (-0.25, "-250 mg"),
        (7.5e9, "7,500 t"),
        (2e-12, "0.002 ng"),
    ],
)
def test_grams(amount: float | None, text: str) -> None:
    assert grams(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unknown"),
        (0.0, "0 J"),
        (0.0125, "12.5 mJ"),
        (999.6, "1 kJ"),
        (250_000.0, "250 kJ"),
        (360_000.0, "0.1 kWh"),
        (5.4e6, "1.5 kWh"),
        (7.2e9, "2 MWh"),
    ],
)
def test_joules(amount: float | None, text: str) -> None:
    assert joules(amount) == text


@given(st.floats(min_value=1e-8, max_value=1e9))
def test_text_is_within_rounding_of_the_amount(amount: float) -> None:
    for text, factors in ((grams(amount), FACTORS), (joules(amount), JOULES)):
        number, unit = text.replace(",", "").split()
        assert float(number) * factors[unit] == pytest.approx(amount, rel=0.0051)


def test_shares_and_counts() -> None:
    assert percent(0.9754) == "97.5 %"
    assert percent(None) == percent(math.nan) == at_least(None) == at_least(math.nan) == "unknown"
    assert [at_least(share) for share in (0.9796, 0.954, 0.98, 0.0, 1.0)] == [
        *("97.9 %", "95.4 %", "98.0 %", "0.0 %", "100.0 %")
    ]
    assert count(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 400, "400 d"),
        (-5, "0 s"),
    ],
)
def test_spans_have_their_two_largest_units(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (1234.5, "1,234")])
def test_rates_have_three_digits(number: float, words: str) -> None:
    assert rate(number) == words
