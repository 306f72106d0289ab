"""The number that an answer comes to."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.graders.numeric import numeric

prose = st.text(alphabet="abcdefgh ABCDEF.!?\n()éü", max_size=80)
markers = st.sampled_from(
    ["Answer:", "answer :", "The final ANSWER:", "Answer: 12, no.\nAnswer:", "答え：", "Respuesta:"]
)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("72", "72"),
        ("Natalia sold 48 + 24 = 72 clips in all.", "72"),
        ("48 / 2 = 24\n48 + 24 = 72\n#### 72", "72"),
        ("48 to begin with #### 72 clips", "48 + 24 = 72\n#### 72"),
        ("That makes $1,234.50.", "1234.5"),
        ("1,000,000", "1000000"),
        ("It falls by 5, so -5.", "-5"),
        ("The balance is -$1,200", "-1200"),
        ("The balance is $-1,200", "-1200"),
        ("\u22127 degrees", "-7"),
        ("45%", "45"),
        ("18.0", "18"),
        ("about .5 litres", "0.5"),
        ("**Answer:** 9\n", "9"),
        ("Answer: 8. Wait. Answer: 9", "9"),
        ("10-3 = 7", "7"),
        ("between 3-4", "4"),
        ("6 grams of CO2", "6"),
        ("\\boxed{72}", "72"),
        ("So Darma could eat 480 peanuts in 6 minutes.", "480"),
        ("Peter needs 132 pounds of food for 3 days.", "132"),
        ("Mike will practise 60 hours (3 hours/day x 20 days).", "60"),
        ("6 x 10 = 60 hours per 5 weeks", "60"),
        ("That makes 12. I hope that it helps!", "12"),
        ("It takes (5).", "5"),
        ("In 1969", "1969"),
        ("The area is 72 m²", "72"),
        ("It takes 2½ hours", "2.5"),
        ("€1,234.50", "1234.5"),
        ("合計は７２個です。", "72"),
        ("答えは：７２", "72"),
        ("答え：72個（一日に8個）", "72"),
        ("الإجابة: ٧٢", "72"),
        ("١٬٢٣٤٫٥", "1234.5"),
        ("72\0", "72"),
    ],
)
def test_numeric_reads_the_number_that_a_reader_would(answer: str, reference: str) -> None:
    assert numeric(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("71", "72"),
        ("72 of 100", "72"),
        ("-72", "72"),
        ("7,2", "72"),
        ("0.45", "45%"),
        ("seventy-two", "72"),
        ("", "72"),
        ("72\nAnswer:", "72"),
        ("Answer: 72\nAnswer: 71", "72"),
        ("72 #### 71", "72"),
        ("1234.567", "1234.56"),
        ("CO72", "72"),
    ],
)
def test_numeric_refuses_another_number_or_none(answer: str, reference: str) -> None:
    assert numeric(answer, reference) == 0.0


amounts = st.decimals(-1_000_000, 1_000_000, places=2)


@given(amounts, amounts)
def test_numeric_compares_values_in_any_notation(said: Decimal, expected: Decimal) -> None:
    assert numeric(f"It comes to {said:,}.", f"#### {expected}") == float(said == expected)
    assert numeric(f"{expected:,}.", f"${expected}") == 1.0
    assert numeric(f"${expected}", f"{expected:,}000%") == 1.0


@given(prose, markers, st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_grades_a_verbose_and_a_bare_answer_alike(steps: str, marker: str, said: int, expected: int) -> None:
    assert numeric(f"{steps} 3 + 4 = 7\n{marker} {said}", str(expected)) == numeric(str(said), str(expected))


@given(amounts, st.integers(1, 99), st.integers(1, 99))
def test_what_the_result_is_measured_by_does_not_count(expected: Decimal, days: int, hours: int) -> None:
    said = (
        f"It costs {expected + 1}, no: so she pays {expected:,} in {days} days ({hours} hours a day).\n\nAnything else?"
    )
    assert numeric(said, str(expected)) == 1.0


@pytest.mark.parametrize("reference", ["", " \n", "seventy", "####", "CO2", "\0"])
def test_a_reference_without_a_number_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="reference must hold a number, got "):
        numeric("72", reference)
