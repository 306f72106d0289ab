"""What a class gives and costs at each price of quality."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.optimizer.value_curve import AT_BASELINE, PRICES, ascending, place_of, value_curve


def planted(samples: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Joules and quality, [samples, 2]: the longer an answer, the more it loses by being shortened."""
    rng = np.random.default_rng(8)
    joules = np.stack([rng.gamma(2.0, 500.0, samples), np.full(samples, 100.0)], axis=1)
    loss = np.clip(joules[:, 0] / 4_000, 0, 0.9)
    return joules, np.stack([np.ones(samples), 1.0 - loss], axis=1)


def test_dearer_quality_costs_more_energy_and_leaves_more_quality() -> None:
    joules, quality = planted()
    curve = value_curve(joules, quality, joules, quality, 0.9)
    assert (np.diff(curve.margin[:AT_BASELINE]) >= 0).all()
    assert (np.diff(curve.joules) >= -1e-9).all()
    assert curve.shares.sum(axis=0) == pytest.approx(np.ones(len(PRICES) + 1))
    assert curve.margin[AT_BASELINE] == pytest.approx(0.1)
    assert curve.joules[AT_BASELINE] == pytest.approx(joules[:, 0].mean())
    assert curve.shares[:, AT_BASELINE].tolist() == [1.0, 0.0]
    assert curve.joules[0] == pytest.approx(np.minimum(joules[:, 0], 100.0).mean(), rel=0.02)


def test_the_margin_is_that_of_what_truly_came_of_the_rule() -> None:
    joules, quality = planted()
    # The rule believes that all lose alike: the long ones, which it shortens first, lose more than that.
    believed = np.tile(quality.mean(axis=0), (len(joules), 1))
    curve = value_curve(joules, believed, joules, quality, 0.9)
    place = int(np.flatnonzero((curve.shares[1] > 0.1) & (curve.shares[1] < 0.5))[0])
    shortened = joules[:, 0] > np.quantile(joules[:, 0], 1 - curve.shares[1, place])
    true = np.where(shortened, quality[:, 1], 1.0).mean() - 0.9
    assert curve.margin[place] == pytest.approx(true, abs=0.01)
    blind = 1.0 - curve.shares[1, place] * (1 - quality[:, 1].mean()) - 0.9
    assert curve.margin[place] < blind - 0.02


def test_chance_does_not_make_dearer_quality_less() -> None:
    rng = np.random.default_rng(10)
    joules, _ = planted(150)
    quality = (rng.random((150, 2)) < [0.6, 0.5]).astype(float)
    believed = rng.normal([0.6, 0.5], 0.1, (150, 2))
    curve = value_curve(joules, believed, joules, quality, 0.9)
    assert (np.diff(curve.margin[:AT_BASELINE]) >= -1e-12).all()


def test_errors_shrink_with_samples() -> None:
    joules, quality = planted()
    few, many = (value_curve(joules[:n], quality[:n], joules[:n], quality[:n], 0.9) for n in (200, 2_000))
    assert few.error[40] > 2 * many.error[40]
    assert (few.samples, many.samples) == (200, 2_000)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        value_curve(joules[:0], quality[:0], joules[:0], quality[:0], 0.9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_ascending_is_monotone_keeps_the_mean_and_leaves_what_ascends(values: list[float]) -> None:
    found = ascending(np.array(values))
    assert (np.diff(found) >= -1e-9).all()
    assert found.mean() == pytest.approx(np.mean(values), abs=1e-6)
    assert ascending(np.sort(values)) == pytest.approx(np.sort(values))
    # The nearest of all ascending sequences: no other of the same blocks, such as the mean, is nearer.
    assert ((found - values) ** 2).sum() <= ((np.mean(values) - np.array(values)) ** 2).sum() + 1e-6


@given(st.floats(0, 1e12))
def test_a_price_has_the_nearest_place(joules: float) -> None:
    place = int(place_of(joules))
    assert 0 <= place < len(PRICES)
    if PRICES[0] <= joules <= PRICES[-1]:
        assert abs(np.log2(PRICES[place] / joules)) <= 0.5 / 8 + 1e-9
