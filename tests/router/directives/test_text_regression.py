"""Ridge regression on text: its held-out predictions are those of fits that never saw the prompt."""

import numpy as np
import pytest

from router.directives.text_features import FeatureTable, features_of, table_of
from router.directives.text_regression import fit

ANIMALS, TOOLS = ("dog", "cat", "horse", "cow"), ("hammer", "saw", "drill", "file")


def texts(number: int, rng: np.random.Generator) -> tuple[FeatureTable, np.ndarray]:
    """Half of them about animals, told by [prompts]."""
    about = rng.integers(0, 2, number)
    words = [rng.choice(ANIMALS if animal else TOOLS, 4) for animal in about]
    return table_of([features_of(" ".join(of)) for of in words]), about.astype(float)


def test_a_prediction_held_out_is_that_of_a_fit_without_the_prompt() -> None:
    rng = np.random.default_rng(1)
    table, about = texts(60, rng)
    targets = np.stack([about, rng.normal(size=60)], axis=1)
    found = fit(table, targets, strengths=[(1.0, 3.0)])
    for left_out in (0, 17, 59):
        others = np.delete(np.arange(60), left_out)
        alone = fit(table.rows(others), targets[others], strengths=[(1.0, 3.0)])
        expected = alone.regression.predict(table.rows(np.array([left_out])))[0]
        # The surface is standardised by all prompts: hence the tolerance.
        assert found.held_out[left_out] == pytest.approx(expected, abs=0.06)


def test_one_prompt_is_predicted_as_a_table_is() -> None:
    rng = np.random.default_rng(2)
    table, about = texts(40, rng)
    regression = fit(table, about[:, None]).regression
    for text in ("dog cat", "", "HAMMER and saw\n\n(A) drill", "x" * 5_000):
        of = features_of(text)
        assert regression.predict_one(of) == pytest.approx(regression.predict(table_of([of]))[0])


def test_what_words_tell_is_learnt_and_what_they_do_not_is_left_at_the_mean() -> None:
    rng = np.random.default_rng(3)
    table, about = texts(300, rng)
    told = fit(table, about[:, None])
    assert np.mean((told.held_out[:, 0] > 0.5) == about) > 0.97
    noise = rng.normal(size=(300, 1))
    untold = fit(table, noise)
    assert np.std(untold.held_out - noise.mean()) < 0.25 * np.std(noise)


def test_further_columns_count() -> None:
    rng = np.random.default_rng(4)
    table, _ = texts(200, rng)
    column = rng.normal(size=(200, 1))
    found = fit(table, 2 * column, more=column)
    assert np.corrcoef(found.held_out[:, 0], column[:, 0])[0, 1] > 0.9
    assert found.regression.predict(table, column) == pytest.approx(2 * column, abs=1.5)


def test_one_prompt_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        fit(table_of([features_of("alone")]), np.ones((1, 1)))
