from __future__ import annotations

import numpy as np
import pytest

from common.quality.confidence import ShareSequence
from common.quality.sample_size import Assumption, simulate, worthwhile_pairs


def test_without_losses_it_is_the_number_that_the_bound_takes() -> None:
    found = simulate(Assumption(1.0), 0.95, 0.05, np.random.default_rng(0), streams=20)
    assert (found.mean, found.quantiles, found.cleared) == (73, (73, 73, 73), 1.0)
    sequence = ShareSequence(0.05)
    sequence.update(1.0, 1.0)
    assert sequence.samples_to_exclude(0.95, most=1000) == 73


def test_more_is_needed_nearer_to_the_floor_and_with_noisier_scores() -> None:
    def mean(share: float, baseline: float = 1.0, gained: float = 0.0) -> float:
        found = simulate(Assumption(share, baseline, gained), 0.95, 0.05, np.random.default_rng(1), streams=100)
        assert found.mean is not None
        return found.mean

    assert mean(1.0) < mean(0.99) < mean(0.98) < mean(0.975)
    assert mean(0.98) < mean(0.98, 0.9, 0.1)


def test_what_does_not_clear_the_floor_in_time_has_no_mean() -> None:
    found = simulate(Assumption(0.96), 0.95, 0.05, np.random.default_rng(2), streams=50, most=200)
    assert found.cleared < 1
    assert found.mean is None
    assert found.quantiles[-1] is None


def test_chances_give_the_share() -> None:
    both, lost, gained, neither = Assumption(0.97, 0.6, 0.2).chances()
    assert both + lost + gained + neither == pytest.approx(1)
    assert (both + gained) / 0.6 == pytest.approx(0.97)


@pytest.mark.parametrize(
    ("share", "baseline", "gained", "field"),
    [(1.1, 1.0, 0.0, "share"), (0.1, 0.5, 0.5, "share"), (0.9, 0.0, 0.0, "baseline"), (0.9, 0.5, 1.5, "gained")],
)
def test_what_cannot_be_is_refused_by_name(share: float, baseline: float, gained: float, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Assumption(share, baseline, gained)


@pytest.mark.parametrize(("floor", "alpha"), [(0.0, 0.05), (1.2, 0.05), (0.9, 0.0), (0.9, 1.0)])
def test_floors_and_alphas_out_of_range_are_refused(floor: float, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"floor|alpha"):
        simulate(Assumption(1.0), floor, alpha, np.random.default_rng(0))


@pytest.mark.parametrize(("requests", "pairs"), [(0, 0), (-1.0, 0), (0.5, 0), (1, 1), (1e3, 99), (1e6, 9_999), (27, 9)])
def test_the_pairs_that_pay_are_of_the_order_of_requests_to_two_thirds(requests: float, pairs: int) -> None:
    assert abs(worthwhile_pairs(requests) - pairs) <= 1


@pytest.mark.parametrize("requests", [1e3, 1e5, 1e7])
def test_the_pairs_that_pay_cost_the_least_in_all(requests: float) -> None:
    """A pair costs one, and a request what its bound lies below the share: 2 / sqrt(n)."""

    def cost(pairs: float) -> float:
        return float(pairs + 2 * requests / np.sqrt(pairs))

    pairs = worthwhile_pairs(requests)
    assert cost(pairs) < min(cost(0.9 * pairs), cost(1.1 * pairs))
