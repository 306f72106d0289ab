"""Energy and quality together: a long answer's loss by being shortened is learnt from its expected length."""

import numpy as np
import pytest

from router.directives.choice import best_actions
from router.directives.expectation import teach
from router.directives.text_features import features_of, table_of


def test_quality_is_told_by_expected_length() -> None:
    rng = np.random.default_rng(6)
    verb = rng.integers(0, 6, 500)
    table = table_of([features_of(f"{'abcdef'[of]}word about {rng.integers(0, 80)}") for of in verb])
    joules = np.stack([200.0 * 2.0**verb, 100.0 + 0 * verb], axis=1) * rng.lognormal(0, 0.2, (500, 2))
    keeps = rng.random(500) < np.clip(1.1 - 0.2 * verb, 0, 1)
    taught = teach(table, joules, np.stack([np.ones(500), keeps], axis=1).astype(float))
    assert np.corrcoef(taught.quality[:, 1], keeps)[0, 1] > 0.5
    expected_joules, expected_quality = taught.expectation.of(table)
    one_joules, one_quality = taught.expectation.of_one(features_of("cword about 7"))
    joules_of, quality_of = taught.expectation.of(table_of([features_of("cword about 7")]))
    assert one_joules == pytest.approx(joules_of[0])
    assert one_quality == pytest.approx(quality_of[0])
    assert expected_joules.shape == expected_quality.shape == (500, 2)
    means = [expected_quality[verb == of, 1].mean() for of in range(6)]
    assert means == sorted(means, reverse=True)


def test_a_choice_is_the_least_energy_less_the_worth_of_quality() -> None:
    joules = np.array([[1000.0, 300.0], [1000.0, 300.0], [400.0, 300.0]])
    quality = np.array([[0.6, 0.5], [0.6, 0.2], [0.6, 0.5]])
    assert best_actions(joules, quality, 0.0).tolist() == [1, 1, 1]
    assert best_actions(joules, quality, 2_000.0).tolist() == [1, 0, 0]
    assert best_actions(joules, quality, np.array([[8_000.0], [0.0], [500.0]])).tolist() == [0, 1, 1]
    assert best_actions(np.ones((1, 3)), np.ones((1, 3)), 5.0).tolist() == [0]


def test_what_words_do_not_tell_leaves_the_means() -> None:
    rng = np.random.default_rng(7)
    table = table_of([features_of(f"word {rng.integers(0, 400)} and {rng.integers(0, 400)}") for _ in range(300)])
    quality = (rng.random((300, 2)) < [0.5, 0.3]).astype(float)
    taught = teach(table, np.full((300, 2), 10.0), quality)
    assert taught.quality == pytest.approx(np.tile(quality.mean(axis=0), (300, 1)), abs=0.2)
