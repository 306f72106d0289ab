"""A directive's effect on lengths: what was planted is found, and what is claimed of it holds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.diagnosis.effect import MIN_REQUESTS, Effect, draw_parameters, fit_effect, mean_tokens, misfit
from tests.router.diagnosis.planted import TASKS, serve


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_planted_law_is_found(name: str) -> None:
    task = TASKS[name]
    part = serve(name, task, 20_000, np.random.default_rng(1))
    effect = fit_effect(name, "brief", part.before.tolist(), part.after.tolist(), 18.0)
    lengths = np.array([task.tokens / 2, task.tokens, task.tokens * 2])
    assert mean_tokens(effect, lengths) == pytest.approx(task.mean(lengths), rel=0.08)
    assert effect.slope == pytest.approx(task.slope, abs=0.05)
    assert effect.dispersion == pytest.approx(task.dispersion, rel=0.15)


def test_sums_come_out_right_where_a_regression_of_logarithms_would_be_low() -> None:
    part = serve("facts", TASKS["facts"], 5_000, np.random.default_rng(2))
    effect = fit_effect("facts", "brief", part.before.tolist(), part.after.tolist(), 0.0)
    assert mean_tokens(effect, part.before).sum() == pytest.approx(part.after.sum(), rel=0.01)
    logs = np.polyfit(np.log(part.before), np.log(part.after), 1)
    assert np.exp(np.polyval(logs, np.log(part.before))).sum() < 0.8 * part.after.sum()


def test_parameters_are_as_sure_as_they_are_said_to_be() -> None:
    task, inside = TASKS["lookup"], []
    for seed in range(200):
        part = serve("lookup", task, 60, np.random.default_rng([3, seed]))
        effect = fit_effect("lookup", "brief", part.before.tolist(), part.after.tolist(), 0.0)
        drawn = mean_tokens(effect, np.array([120.0]), draw_parameters(effect, 800, np.random.default_rng(seed)))
        low, high = np.quantile(drawn, [0.05, 0.95])
        inside.append(low <= task.mean(np.array([120.0]))[0] <= high)
    assert 0.84 <= np.mean(inside) <= 0.97


def test_little_evidence_leaves_the_slope_to_what_is_common() -> None:
    same = fit_effect("t", "d", [100.0] * MIN_REQUESTS, [30.0] * MIN_REQUESTS, 0.0)
    assert same.slope == pytest.approx(0.5)
    assert same.covariance[2] == pytest.approx(0.25**2, rel=0.01)
    assert mean_tokens(same, np.array([100.0])) == pytest.approx([30.0])
    with pytest.raises(ValueError, match="at least 20 requests, got 19"):
        fit_effect("t", "d", [1.0] * 19, [1.0] * 19, 0.0)


def test_a_law_that_bends_is_noticed_and_one_that_does_not_is_not() -> None:
    generator = np.random.default_rng(4)
    before = generator.lognormal(5, 1, 4_000)
    straight = 0.4 * before**0.8 * generator.gamma(2, 0.5, 4_000)
    bent = np.where(before < 150, before, 150 * (before / 150) ** 0.1) * generator.gamma(2, 0.5, 4_000)
    assert misfit([(before.tolist(), bent.tolist())]) == pytest.approx(0.16, rel=0.8)
    assert (misfit([(before.tolist(), straight.tolist())]) or 0.0) < 0.01
    assert misfit([(before[:50].tolist(), bent[:50].tolist())]) is None


EFFECTS = st.builds(
    Effect,
    task=st.just("t"),
    directive=st.just("d"),
    requests=st.integers(MIN_REQUESTS, 1_000),
    center=st.floats(2, 7),
    intercept=st.floats(0, 6),
    slope=st.floats(0, 1.2),
    covariance=st.tuples(st.floats(0, 0.1), st.just(0.0), st.floats(0, 0.1)),
    dispersion=st.floats(0.1, 2),
    shortest_tokens=st.floats(5, 50),
    longest_tokens=st.just(1_000.0),
    extra_input_tokens=st.floats(0, 50),
)


@given(EFFECTS, st.lists(st.integers(0, 5_000), min_size=2, max_size=20, unique=True))
@hypothesis_settings(deadline=None, max_examples=100)
def test_means_are_lengths_that_rise_with_the_answers_and_lengthen_none_unshown(
    effect: Effect, lengths: list[int]
) -> None:
    tokens = np.array(sorted(lengths), float)
    means = mean_tokens(effect, tokens)
    assert np.isfinite(means).all()
    assert (means >= 0).all()
    assert (means[tokens == 0] == 0).all()
    edge = math.exp(effect.intercept + effect.slope * (math.log(effect.shortest_tokens) - effect.center))
    kept = max(1.0, edge / effect.shortest_tokens)
    short = tokens < effect.shortest_tokens
    assert (means[short] <= kept * tokens[short] + 1e-9).all()
    within = means[tokens >= effect.shortest_tokens]
    assert (np.diff(within) >= -1e-9).all()
    drawn = draw_parameters(replace(effect, covariance=(0.0, 0.0, 0.0)), 3, np.random.default_rng(0))
    assert mean_tokens(effect, tokens, drawn) == pytest.approx(np.tile(means, (3, 1)), rel=1e-3, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 5_000), st.floats(0, 5_000)), min_size=MIN_REQUESTS, max_size=60))
@hypothesis_settings(deadline=None, max_examples=100)
def test_any_evidence_gives_a_finite_effect(pairs: list[tuple[float, float]]) -> None:
    effect = fit_effect("t", "d", [a for a, _ in pairs], [b for _, b in pairs], 0.0)
    numbers = (effect.center, effect.intercept, effect.slope, effect.dispersion, *effect.covariance)
    assert all(math.isfinite(number) for number in numbers)
    assert effect.dispersion > 0
    assert effect.covariance[0] >= 0
    assert effect.covariance[2] >= 0
    assert np.isfinite(draw_parameters(effect, 5, np.random.default_rng(0))).all()
