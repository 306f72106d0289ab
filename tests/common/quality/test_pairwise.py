"""The quality of compared answers: the mean preference over both orders."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.pairwise import BASELINE_QUALITY, Comparison

SHARES = st.floats(0, 1)


@given(SHARES, SHARES)
def test_both_orders_count_alike_and_a_place_alone_wins_nothing(first: float, second: float) -> None:
    compared = Comparison(1, 2, first, second)
    assert compared.quality == Comparison(2, 1, second, first).quality
    assert abs(compared.quality - (first + second) / 2) <= 0.005 + 1e-12
    assert Comparison(1, 2, first, 1 - first).quality == BASELINE_QUALITY


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"shown_first": math.nan}, "shown_first must be in"),
        ({"shown_second": 1.01}, "shown_second must be in"),
        ({"characters": -1}, "characters must be 0 to 10,000,000, got -1"),
        ({"baseline_characters": 10_000_001}, "baseline_characters must be"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], fault: str) -> None:
    sound = {"characters": 1, "baseline_characters": 1, "shown_first": 0.5, "shown_second": 0.5}
    with pytest.raises(ValueError, match=fault):
        Comparison(**{**sound, **changes})
