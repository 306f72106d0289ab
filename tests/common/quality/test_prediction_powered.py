"""The mean of what people would say: right whatever the judge is like, and its interval covers, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.prediction_powered import CorrectedRate, Labelled, Unlabelled, corrected_rate

LEVELS = np.array([0.0, 0.5, 1.0])


def joint(right: float, people: list[float], otherwise: list[float]) -> np.ndarray:
    """Probability of (person, judge): the judge says what the person does, or else something of its own."""
    return np.array(
        [[p * (right * (i == j) + (1 - right) * otherwise[j]) for j in range(3)] for i, p in enumerate(people)]
    )


LAWS = {
    "right": joint(1.0, [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]),
    "nearly right": joint(0.985, [0.2, 0.5, 0.3], [0.2, 0.3, 0.5]),
    "mostly ties": joint(0.95, [0.05, 0.9, 0.05], [0.2, 0.3, 0.5]),
    "good": joint(0.8, [0.3, 0.2, 0.5], [0.2, 0.3, 0.5]),
    "biased": joint(0.5, [0.4, 0.2, 0.4], [0.0, 0.3, 0.7]),
    "of no use": joint(0.0, [0.3, 0.3, 0.4], [0.2, 0.3, 0.5]),
}


def simulated(name: str, labelled: int, unlabelled: int, runs: int = 400) -> tuple[float, float, list[CorrectedRate]]:
    """The true mean, the judge's, and what each run found."""
    law = LAWS[name]
    rng = np.random.default_rng(11)
    found = []
    for _ in range(runs):
        drawn = rng.choice(9, size=labelled + unlabelled, p=law.ravel() / law.sum())
        people, judge = LEVELS[drawn // 3], LEVELS[drawn % 3]
        rest = judge[labelled:]
        found.append(
            corrected_rate(
                [Labelled(float(p), float(j)) for p, j in zip(people[:labelled], judge[:labelled], strict=True)],
                Unlabelled(unlabelled, float(rest.sum()), float((rest**2).sum())),
            )
        )
    return float(law.sum(1) @ LEVELS), float(law.sum(0) @ LEVELS), found


@pytest.mark.parametrize("labelled", [20, 100])
@pytest.mark.parametrize("name", sorted(LAWS))
def test_the_interval_covers_and_the_estimate_is_unbiased(name: str, labelled: int) -> None:
    true, _, found = simulated(name, labelled, 600)
    covered = np.mean([one.rate.lower <= true <= one.rate.upper for one in found])
    # Three standard errors below 95 % of 400 runs.
    assert covered >= 0.917
    error = np.array([one.rate.value - true for one in found])
    assert abs(error.mean()) < 0.01 + 4 * error.std() / np.sqrt(len(found))


def test_a_biased_judge_is_put_right_and_a_good_one_helps() -> None:
    true, judge, found = simulated("biased", 100, 2_000)
    assert judge - true > 0.15
    assert abs(np.mean([one.rate.value for one in found]) - true) < 0.01
    _, _, found = simulated("right", 100, 2_000)
    people_alone = 2 * 1.96 * 0.35 / np.sqrt(100)
    assert np.mean([one.rate.upper - one.rate.lower for one in found]) < 0.55 * people_alone
    assert np.mean([one.weight for one in found]) > 0.8
    _, _, found = simulated("of no use", 100, 2_000)
    assert np.mean([one.weight for one in found]) < 0.1


def test_where_all_has_been_labelled_it_is_the_labels_mean() -> None:
    found = corrected_rate([Labelled(1.0, 0.0)] * 15 + [Labelled(0.0, 1.0)] * 5, Unlabelled(0, 0.0, 0.0))
    assert (found.rate.value, found.weight) == (0.75, 0.0)
    assert found.rate.lower < 0.6 < 0.9 < found.rate.upper


def test_a_judge_that_was_right_so_far_is_not_taken_to_be_always_right() -> None:
    found = corrected_rate([Labelled(0.5, 0.5)] * 20, Unlabelled(10_000, 5_000.0, 2_500.0))
    assert found.rate.value == 0.5
    assert found.rate.upper - found.rate.lower > 0.1
    assert "asymptotic" in found.rate.method


def test_by_hand() -> None:
    """Labels 0, 1, 0, 1, all predicted rightly, the two imaginary ones, and ten more predictions of mean 0.8."""
    labelled = [Labelled(float(n % 2), float(n % 2)) for n in range(4)]
    found = corrected_rate(labelled, Unlabelled(10, 8.0, 8.0))
    # Covariance (4 x 1/4 - 2 x 1/4) / 6 = 1/12; of 16 predictions 11 are 1; 4 labelled to 10 that are not.
    weight = (1 / 12) / (11 / 16 - (11 / 16) ** 2) / 1.4
    assert found.weight == pytest.approx(weight)
    assert found.rate.value == pytest.approx(0.5 + weight * (0.8 - 0.5))


unit = st.floats(0, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(unit, unit), min_size=2, max_size=40), st.lists(unit, max_size=40))
def test_it_stays_within_what_can_be(pairs: list[tuple[float, float]], rest: list[float]) -> None:
    labelled = [Labelled(*pair) for pair in pairs]
    found = corrected_rate(labelled, Unlabelled(len(rest), sum(rest), sum(value * value for value in rest)))
    assert 0 <= found.rate.lower <= found.rate.value <= found.rate.upper <= 1
    assert 0 <= found.weight <= 1
