from __future__ import annotations

import numpy as np
import pytest

from common.quality.asymptotic import deviations


def test_a_mean_strays_as_seldom_as_it_says_however_often_one_looks() -> None:
    rng = np.random.default_rng(1)
    start, samples, runs = 100, 5_000, 2_000
    count = np.arange(1, samples + 1)
    away = np.array([deviations(int(at), start, 0.05) for at in count])
    strayed = []
    for _ in range(runs):
        values = rng.random(samples) < 0.3
        mean = values.cumsum() / count
        error = np.sqrt(mean * (1 - mean) / count)
        strayed.append(bool((mean - away * error > 0.3)[start:].any()))
    assert np.mean(strayed) <= 0.05
    # Not by being useless: without regard to looks it would be 1.64.
    assert away.min() < 3.1


def test_the_bound_is_tightest_about_where_it_begins_and_widens_slowly() -> None:
    assert deviations(50, 200, 0.05) == deviations(200, 200, 0.05)
    assert deviations(200, 200, 0.05) < deviations(200_000, 200, 0.05) < 1.3 * deviations(200, 200, 0.05)
    assert deviations(500, 200, 0.01) > deviations(500, 200, 0.05)


@pytest.mark.parametrize("samples", [200, 2_000])
def test_it_is_the_published_boundary(samples: int) -> None:
    """Robbins' one-sided normal mixture crosses 1 / alpha no later than at the bound."""
    start, alpha = 200, 0.05
    log = -2 * np.log(alpha)
    variance = (log + np.log(log) + 1) / (start * np.log(start))
    score = deviations(samples, start, alpha) * np.sqrt(samples)
    # 2 E exp(l S - l^2 t / 2) over l normal of that variance, where positive; S is of unit variance.
    grid = np.linspace(0, 8 * np.sqrt(variance), 200_001)
    density = 2 * np.exp(-(grid**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    capital = np.trapezoid(density * np.exp(grid * score - grid**2 * samples / 2), grid)
    assert 1 / alpha <= capital < 1.3 / alpha
