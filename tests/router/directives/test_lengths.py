"""What actions are expected to cost."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from router.directives.lengths import fit_lengths
from router.directives.text_features import features_of, table_of
from tests.router.directives.recorded import joules, needs_data, rows

WORDS = ("list", "explain", "name", "describe", "compare")


def planted(number: int = 400) -> tuple[list[str], np.ndarray]:
    """Costs by the prompt's verb, with noise whose spread grows with them."""
    rng = np.random.default_rng(5)
    verb = rng.integers(0, len(WORDS), number)
    texts = [f"{WORDS[of]} item {rng.integers(0, 50)}" for of in verb]
    base = 100.0 * 2.0**verb * rng.lognormal(0, 0.4, number)
    return texts, np.stack([base, 0.2 * base * rng.lognormal(0, 0.3, number)], axis=1)


def test_expected_costs_are_means_and_in_order() -> None:
    texts, costs = planted()
    table = table_of([features_of(text) for text in texts])
    model, held_out = fit_lengths(table, costs)
    expected = model.costs_of(held_out)
    assert expected.mean(axis=0) == pytest.approx(costs.mean(axis=0), rel=0.05)
    assert spearmanr(held_out[:, 0], costs[:, 0]).statistic > 0.85
    assert model.log_costs_one(features_of(texts[0])) == pytest.approx(model.log_costs(table.rows(np.array([0])))[0])


def test_expectations_stay_near_what_was_seen() -> None:
    texts, costs = planted()
    model, _ = fit_lengths(table_of([features_of(text) for text in texts]), costs)
    wild = model.costs(table_of([features_of("compare " * 5_000), features_of("?" * 100_000), features_of("")]))
    assert (wild > 0).all()
    assert (wild <= 20 * costs.max(axis=0)).all()


def test_costs_of_zero_are_no_fault() -> None:
    model, held_out = fit_lengths(table_of([features_of(text) for text in ("a", "b", "c")]), np.zeros((3, 2)))
    assert np.isfinite(held_out).all()
    assert model.costs(table_of([features_of("a")])) == pytest.approx(np.zeros((1, 2)), abs=1e-6)


@needs_data
@pytest.mark.parametrize(
    ("task", "least"),
    [("alpaca", 0.65), ("math", 0.42), ("mmlu", 0.47), ("naturalqa", 0.42), ("triviaqa", 0.3), ("scienceqa", 0.6)],
)
def test_the_order_of_published_energies_is_told_from_the_prompt(task: str, least: float) -> None:
    of = np.array([row["task"] == task for row in rows()])
    table = table_of([features_of(row["prompt"]) for row in rows() if row["task"] == task])
    _, held_out = fit_lengths(table, joules()[of])
    assert spearmanr(held_out[:, 0], joules()[of][:, 0]).statistic >= least
