"""The batch that requests have: over busy time, the older the less it counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.fleet.batch import SMOOTHING_SECONDS, BusyBatch, mean_batch

loads = st.lists(st.tuples(st.integers(0, 64), st.floats(0.001, 1.0)), min_size=1, max_size=20)


def batch_of(*loads: tuple[int, float]) -> tuple[BusyBatch, float]:
    """Each (running, seconds) after the other; the last goes on."""
    batch, now = BusyBatch(), 1_000.0
    for running, seconds in loads:
        batch.report(running, now)
        now += seconds
    return batch, now


def mean(*loads: tuple[int, float]) -> float | None:
    batch, now = batch_of(*loads)
    return mean_batch([batch], now)


def test_nothing_is_known_before_a_request_runs() -> None:
    assert mean() is None
    assert mean((0, 100.0)) is None
    assert mean_batch([], 5.0) is None


def test_a_steady_load_is_its_own_mean_from_the_first_moment() -> None:
    assert mean((6, 1e-6)) == pytest.approx(6)
    assert mean((6, 1e6)) == pytest.approx(6)


def test_idle_time_is_not_in_it() -> None:
    assert mean((4, 10.0), (0, 300.0), (4, 10.0), (0, 300.0)) == pytest.approx(4)


def test_it_is_a_mean_over_time_and_not_over_reports() -> None:
    assert mean((1, 0.09), (10, 0.01)) == pytest.approx(1.9, rel=1e-3)


def test_the_present_counts_more() -> None:
    recent = mean((16, 3_600.0), (1, SMOOTHING_SECONDS))
    assert recent == pytest.approx(1 + 15 * math.exp(-1) * (1 - math.exp(-6)) / (1 - math.exp(-7)), rel=1e-6)
    long_ago = mean((16, 3_600.0), (0, 60.0), (1, 20 * SMOOTHING_SECONDS))
    assert long_ago == pytest.approx(1, abs=1e-6)


@given(loads)
@settings(deadline=None)
def test_shared_energy_priced_at_it_is_what_was_shared(loads: list[tuple[int, float]]) -> None:
    """Within a time so short that nothing is forgotten: each busy second costs 1 J and makes a token a request."""
    busy = math.fsum(seconds for running, seconds in loads if running)
    tokens = math.fsum(running * seconds for running, seconds in loads)
    found = mean(*loads)
    assert (found is None) == (busy == 0)
    if found is not None:
        # The oldest of it is forgotten by a share of at most 20 s in SMOOTHING_SECONDS.
        assert tokens * (1 / found) == pytest.approx(busy, rel=20 / SMOOTHING_SECONDS)


def test_engines_count_by_their_busy_time() -> None:
    now = 1_010.0
    full, hardly = BusyBatch(), BusyBatch()
    full.report(8, 1_000.0)
    hardly.report(2, 1_000.0)
    hardly.report(0, 1_001.0)
    assert mean_batch([full, hardly], now) == pytest.approx((8 * 10 + 2 * 1) / 11, rel=0.01)


def test_a_long_silence_ends_in_the_unknown_and_not_in_a_division_by_zero() -> None:
    batch, now = batch_of((5, 10.0), (0, 1.0))
    assert mean_batch([batch], now + 1e7) is None
    assert mean_batch([batch], now - 50.0) is not None, "a clock that went back"
