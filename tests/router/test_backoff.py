"""The pause doubles up to its limit, with jitter."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from router.backoff import backoff_seconds


@given(st.integers(1, 10**9), st.integers())
def test_it_is_between_half_and_all_of_the_doubled_pause(failures: int, seed: int) -> None:
    whole = 5.0 if failures > 10 else min(5.0, 0.1 * 2 ** (failures - 1))
    assert whole / 2 <= backoff_seconds(failures, 0.1, 5.0, random.Random(seed)) <= whole


def test_it_differs_from_draw_to_draw() -> None:
    rng = random.Random(1)
    drawn = [backoff_seconds(1, 1.0, 5.0, rng) for _ in range(100)]
    assert min(drawn) < 0.6 and max(drawn) > 0.9
