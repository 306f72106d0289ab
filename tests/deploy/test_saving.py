"""The interval of a saving that was seen on one day of requests, each of them served twice."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.saving import RESAMPLES, paired_saving


def test_the_interval_covers_what_other_days_of_such_requests_would_save() -> None:
    """Skewed requests, which save between nothing and all but a tenth: the population's saving is known."""
    random = np.random.default_rng(1)
    baseline = random.lognormal(0.0, 0.8, 200_000)
    on = baseline * random.uniform(0.1, 1.0, baseline.size)
    truth = 1 - (on.sum() + 0.02 * baseline.sum()) / baseline.sum()
    runs, count = 300, 200
    inside = 0
    for seed in range(runs):
        drawn = random.integers(baseline.size, size=count)
        spent = 0.02 * count * float(baseline.mean())
        found = paired_saving(baseline[drawn].tolist(), on[drawn].tolist(), spent, seed=seed)
        assert found.lower < found.value < found.upper
        inside += found.lower <= truth <= found.upper
    assert 0.92 <= inside / runs <= 0.98


def test_pairs_stay_together_and_seeds_decide() -> None:
    baseline = np.random.default_rng(2).lognormal(0.0, 1.5, 300)
    same = paired_saving(baseline.tolist(), (0.4 * baseline).tolist())
    assert (same.lower, same.value, same.upper) == pytest.approx((0.6, 0.6, 0.6))
    other = np.random.default_rng(3).permutation(baseline)
    apart = paired_saving(baseline.tolist(), other.tolist(), seed=4)
    assert apart == paired_saving(baseline.tolist(), other.tolist(), seed=4)
    assert apart != paired_saving(baseline.tolist(), other.tolist(), seed=5)
    assert apart.upper - apart.lower > 0.2


def test_what_was_spent_beside_is_deducted_and_the_method_is_named() -> None:
    found = paired_saving([1.0, 3.0], [1.0, 1.0], 1.0)
    assert found.value == pytest.approx(1 - 3 / 4)
    assert "paired bootstrap over requests" in found.method and f"{RESAMPLES:,}" in found.method
    assert found.confidence == 0.95


@pytest.mark.parametrize(("baseline", "on"), [([0.0], [0.0]), ([], []), ([1.0, 2.0], [1.0])])
def test_where_there_is_nothing_to_compare_it_says_so(baseline: list[float], on: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_saving(baseline, on)
