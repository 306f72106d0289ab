"""One price of quality keeps a floor over a window, at the least carbon."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.optimizer.budget import (
    TELLING_SAMPLES,
    Ahead,
    Elsewhere,
    Price,
    price_of_quality,
    taken_for_others,
    worth_of_samples,
)
from router.optimizer.value_curve import AT_BASELINE, PRICES, ValueCurve, value_curve

NOTHING_SERVED = np.zeros((1, len(PRICES) + 1))


def curve(seed: int = 9, floor: float = 0.9, loss: float = 0.5, samples: int = 3_000) -> ValueCurve:
    rng = np.random.default_rng(seed)
    joules = np.stack([rng.gamma(2.0, 500.0, samples), np.full(samples, 100.0)], axis=1)
    quality = np.stack([np.full(samples, 0.8), rng.uniform(0.8 - 2 * loss * 0.8, 0.8, samples)], axis=1)
    return value_curve(joules, quality, joules, quality, floor)


def outcome(curves: list[ValueCurve], price: Price, ahead: Ahead) -> tuple[float, float]:
    """Margin and grams of the hours ahead at a price."""
    places = [price.place(float(grams)) for grams in ahead.grams_per_joule]
    margin = sum(float(of.margin[places] @ ahead.requests[row]) for row, of in enumerate(curves))
    grams = sum(
        float((of.joules[places] * ahead.grams_per_joule) @ ahead.requests[row]) for row, of in enumerate(curves)
    )
    return margin, grams


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(1e-6, 2e-4), min_size=2, max_size=12),
    st.floats(0.05, 0.6),
    st.floats(0.05, 0.6),
)
def test_no_other_price_keeps_the_floor_for_less_carbon(intensities: list[float], one: float, other: float) -> None:
    curves = [curve(1, loss=one, samples=300), curve(2, loss=other, samples=300)]
    ahead = Ahead(np.array(intensities), np.full((2, len(intensities)), 10.0))
    price = price_of_quality(curves, np.zeros((2, len(PRICES) + 1)), ahead, 0.0)
    margin, grams = outcome(curves, price, ahead)
    assert price.keeps
    assert margin >= -1e-9
    for another in np.geomspace(1e-5, 1e3, 60):
        their_margin, their_grams = outcome(curves, Price(float(another), True, np.zeros(2)), ahead)
        # Candidates lie an eighth of an octave apart.
        assert their_margin < 1e-9 or their_grams >= grams * 0.94


def test_quality_is_spent_in_the_dirtiest_hours_and_saves_more_than_spent_evenly() -> None:
    one = curve()
    ahead = Ahead(np.array([2e-5, 1e-4]), np.full((1, 2), 100.0))
    price = price_of_quality([one], NOTHING_SERVED, ahead, 0.0)
    clean, dirty = (one.shares[1, price.place(grams)] for grams in (2e-5, 1e-4))
    assert dirty > clean + 0.1
    _, grams = outcome([one], price, ahead)
    even = int(np.flatnonzero(one.margin[:AT_BASELINE] >= 0)[0])
    assert grams < float(one.joules[even] * ahead.grams_per_joule.sum() * 100.0) * 0.99


def test_what_was_saved_up_is_spent_and_what_was_overdrawn_is_made_up_for() -> None:
    one, ahead = curve(), Ahead(np.array([5e-5]), np.array([[100.0]]))
    fresh = price_of_quality([one], NOTHING_SERVED, ahead, 0.0)
    saved, overdrawn = NOTHING_SERVED.copy(), NOTHING_SERVED.copy()
    saved[0, AT_BASELINE] = 100.0
    overdrawn[0, 0] = 20.0
    assert price_of_quality([one], saved, ahead, 0.0).grams < fresh.grams
    assert price_of_quality([one], overdrawn, ahead, 0.0).grams > fresh.grams
    elsewhere = Elsewhere(margin=-3.0)
    assert price_of_quality([one], NOTHING_SERVED, ahead, 0.0, elsewhere).grams > fresh.grams


def test_what_is_not_sure_is_not_spent() -> None:
    few, many = curve(samples=60), curve(samples=3_000)
    ahead = Ahead(np.array([5e-5]), np.array([[100.0]]))
    for one in (few, many):
        bold, careful = (price_of_quality([one], NOTHING_SERVED, ahead, deviations) for deviations in (0.0, 2.0))
        assert careful.grams >= bold.grams
    known = price_of_quality([many], NOTHING_SERVED, ahead, 0.0)
    unsure = price_of_quality([many], NOTHING_SERVED, ahead, 1.0, Elsewhere(0.0, 4.0))
    assert unsure.grams > known.grams


def test_only_the_baseline_is_left_where_the_floor_cannot_be_kept() -> None:
    ahead = Ahead(np.array([5e-5, 1e-4]), np.full((1, 2), 100.0))
    price = price_of_quality([curve()], NOTHING_SERVED, ahead, 0.0, Elsewhere(margin=-1_000.0))
    assert np.isinf(price.grams)
    assert not price.keeps
    assert price.place(5e-5) == AT_BASELINE
    assert (ahead.places(price.grams) == AT_BASELINE).all()


def test_one_class_makes_up_for_another_within_a_budget() -> None:
    gains, loses = curve(3, loss=0.02), curve(4, loss=0.6)
    ahead = Ahead(np.array([5e-5]), np.full((2, 1), 100.0))
    together = price_of_quality([gains, loses], np.zeros((2, len(PRICES) + 1)), ahead, 0.0)
    alone = price_of_quality([loses], NOTHING_SERVED, ahead.of([1]), 0.0)
    assert together.grams < alone.grams


def test_a_task_answers_for_requests_that_are_taken_for_others() -> None:
    requests = np.array([900.0, 500.0, 70.0])
    found = taken_for_others(0, np.array([0.9, 0.1, 0.0]), 100, requests, np.array([1.0, 0.0, 1.0]), 0.5, 0.9)
    assert found.margin == pytest.approx(1_000 * 0.1 * 0.5 * -0.9)
    assert found.error == pytest.approx(np.sqrt(0.1 * 0.9 / 100) * 1_000 * 0.5 * 0.9)
    left = taken_for_others(0, np.array([0.9, 0.0, 0.1]), 100, requests, np.array([0.2, 0.0, 1.0]), 0.5, 0.9)
    assert left.margin == pytest.approx(1_000 * 0.1 * 0.5 * 0.1)
    none = taken_for_others(0, np.array([1.0, 0.0, 0.0]), 100, requests, np.zeros(3), 0.5, 0.9)
    assert (none.margin, none.error) == (0.0, 0.0)


def test_a_sample_is_worth_what_it_narrows_times_the_price() -> None:
    price = Price(2.0, True, np.array([30.0, 40.0]))
    samples = np.array([100.0, 400.0])
    found = worth_of_samples(price, samples, 0.5)

    def needed(more: np.ndarray) -> float:
        errors = price.errors * np.sqrt(samples / (samples + more))
        return 0.5 * float(np.sqrt((errors**2).sum()))

    for place in range(2):
        step = 1e-3 * np.eye(2)[place]
        gained = price.grams * (needed(0 * step) - needed(step)) / 1e-3
        assert found[place] == pytest.approx(gained, rel=1e-3)


def test_few_samples_are_worth_any_where_they_may_open_what_is_closed() -> None:
    closed = Price(float("inf"), True, np.array([1.0, 1.0]))
    found = worth_of_samples(closed, np.array([TELLING_SAMPLES - 1.0, TELLING_SAMPLES]), 0.5)
    assert found.tolist() == [np.inf, 0.0]
    assert worth_of_samples(Price(1.0, True, np.zeros(1)), np.ones(1), 0.5).tolist() == [0.0]
