"""Intervals of a fit: that they hold the truth as often as they say."""

import math
from dataclasses import replace

import numpy as np
import pytest

from common.energy.bootstrap import Bootstrap
from common.energy.fit import Form, fit
from common.energy.sweet_spot import SweetSpot
from tests.common.energy.planted import BATCHES, SHARING, TRUTH, measured

NOISE = 0.08


def bootstrap(seed: int = 0, resamples: int = 400, truth: SweetSpot = TRUTH) -> Bootstrap:
    rows = measured(truth, noise=NOISE, seed=seed)
    return Bootstrap(fit(rows), np.random.default_rng(seed), resamples=resamples)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """80 % intervals over 150 grids; three standard errors are 10 points."""
    covered = []
    for seed in range(150):
        found = bootstrap(seed, resamples=200)
        intervals = {
            "output_joules": (TRUTH.output_joules, found.coefficient("output_joules", 0.8)),
            "output_squared": (TRUTH.output_squared_joules, found.coefficient("output_squared_joules", 0.8)),
            "request": (TRUTH.request_joules, found.coefficient("request_joules", 0.8)),
            "sweet spot": (TRUTH.sweet_spot_tokens(500), found.sweet_spot_tokens(500, confidence=0.8)),
        }
        covered.append([found.lower <= truth <= found.upper for truth, found in intervals.values()])
    shares = np.mean(covered, axis=0)
    assert np.all(shares >= 0.7)
    assert np.all(shares <= 0.9)


def test_interval_says_how_sure_it_is_and_how_it_was_made() -> None:
    rows = measured(TRUTH, noise=NOISE)
    found = Bootstrap(fit(rows), np.random.default_rng(0)).coefficient("output_joules", 0.9)
    assert found.value == fit(rows).coefficients["output_joules"]
    assert found.lower < found.value < found.upper
    assert (found.confidence, found.method) == (0.9, "residual bootstrap, percentiles")


def test_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    rows = measured(TRUTH, noise=NOISE)
    first, same, other = (
        Bootstrap(fit(rows), np.random.default_rng(seed), resamples=50).coefficient("output_joules")
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_surer_is_wider() -> None:
    found = bootstrap()
    narrow, wide = found.sweet_spot_tokens(500, confidence=0.5), found.sweet_spot_tokens(500, confidence=0.99)
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_exact_measurements_leave_nothing_unsure() -> None:
    rows = measured(SHARING, batches=BATCHES)
    found = Bootstrap(fit(rows), np.random.default_rng(0), resamples=20).coefficient("output_shared_joules")
    assert found.upper - found.lower < 1e-5 * found.value


def test_sweet_spot_may_be_without_bound() -> None:
    truth = replace(TRUTH, output_squared_joules=1e-9)
    found = bootstrap(truth=truth).sweet_spot_tokens(500)
    assert found.upper == math.inf
    assert not math.isnan(found.lower)


def test_tied_fit_stays_tied_in_every_refit() -> None:
    rows = measured(TRUTH, noise=NOISE)
    found = Bootstrap(fit(rows, tied=True), np.random.default_rng(0), resamples=50)
    ratio = found.figure(lambda model: model.pair_joules / model.output_squared_joules)
    assert (ratio.lower, ratio.upper) == (pytest.approx(2), pytest.approx(2))


def test_comparison_models_have_no_intervals() -> None:
    with pytest.raises(ValueError, match="form sweet_spot, got linear"):
        Bootstrap(fit(measured(TRUTH), form=Form.LINEAR), np.random.default_rng(0))
