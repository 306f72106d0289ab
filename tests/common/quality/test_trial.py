"""What a trial says: intervals that hold what they promise, and a recommendation that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common.quality.confidence import ShareSequence
from common.quality.trial import (
    CUT_METHOD,
    FORESEEABLE_SAMPLES,
    QUALITY_METHOD,
    Recommendation,
    TrialPair,
    TrialResult,
    TriedAnswer,
    ratio_of_means,
    student_t,
    summarise,
)

ALPHA = 0.05


def pair(
    number: int = 0,
    tokens: int = 40,
    quality: float = 1.0,
    baseline_quality: float = 1.0,
    joules: float | None = 4.0,
    text: str = "short",
) -> TrialPair:
    return TrialPair(
        f"s{number}",
        baseline=TriedAnswer("long", 100, baseline_quality, None if joules is None else 10.0),
        answer=TriedAnswer(text, tokens, quality, joules),
    )


def many(count: int, losses: int = 0, **fields: object) -> list[TrialPair]:
    """Of which the first few lose all quality; tokens scatter a little."""
    tokens = fields.pop("tokens", 40)
    assert isinstance(tokens, int)
    return [
        pair(n, tokens=tokens + n % 3, quality=0.0 if n < losses else 1.0, **fields)  # type: ignore[arg-type]
        for n in range(count)
    ]


def told(pairs: Sequence[TrialPair], floor: float = 0.95) -> TrialResult:
    return summarise(pairs, floor, ALPHA)


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 29, 199])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_students_t_is_that_of_the_tables(degrees: int, confidence: float) -> None:
    assert student_t(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-4)


@pytest.mark.parametrize("samples", [10, 30, 200])
def test_the_interval_of_a_ratio_covers_as_often_as_it_says(samples: int) -> None:
    """Answers' lengths: skewed, and those of one prompt alike."""
    generator, trials, held = np.random.default_rng(samples), 2_000, 0
    for _ in range(trials):
        prompt = generator.normal(0.0, 0.5, samples)
        of_l0 = np.exp(5.0 + prompt + generator.normal(0.0, 0.3, samples))
        own = 0.4 * np.exp(5.0 + prompt + generator.normal(0.0, 0.3, samples))
        interval = ratio_of_means(list(zip(own, of_l0, strict=True)))
        assert interval is not None and interval.confidence == 0.95
        held += interval.lower <= 0.4 <= interval.upper
    # 95 % but for the skew, which costs little, and for the simulation, whose standard deviation is 0.5 %.
    assert 0.93 < held / trials < 0.97


def test_the_interval_of_quality_covers_as_often_as_it_says() -> None:
    generator, trials, low, high = np.random.default_rng(5), 300, 0, 0
    for _ in range(trials):
        right = generator.random(60) < 0.8
        kept = right & (generator.random(60) < 0.9)
        pairs = [
            pair(n, quality=float(k), baseline_quality=float(r))
            for n, (k, r) in enumerate(zip(kept, right, strict=True))
        ]
        interval = told(pairs).quality_share
        assert interval is not None
        low += interval.lower > 0.9
        high += interval.upper < 0.9
    assert low / trials < ALPHA and high / trials < ALPHA


@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=2, max_size=50))
def test_the_interval_of_a_ratio_holds_it(pairs: list[tuple[int, int]]) -> None:
    interval = ratio_of_means(pairs)
    assert interval is not None
    assert interval.value == pytest.approx(sum(own for own, _ in pairs) / sum(of_l0 for _, of_l0 in pairs))
    assert 0 < interval.lower <= interval.value <= interval.upper


def test_what_no_ratio_can_be_had_of() -> None:
    assert ratio_of_means([(1, 2)]) is None
    assert ratio_of_means([(1, 0), (2, 0)]) is None
    nothing = ratio_of_means([(0, 1), (0, 2)])
    assert nothing is not None and (nothing.lower, nothing.value, nothing.upper) == (0, 0, 0)
    constant = ratio_of_means([(2, 4), (1, 2), (3, 6)])
    assert constant is not None and (constant.lower, constant.upper) == (0.5, 0.5)


def test_a_directive_that_saves_and_keeps_the_floor_is_adopted() -> None:
    result = told(many(80))
    assert result.recommendation is Recommendation.ADOPT
    assert (result.samples, result.quality, result.baseline_quality) == (80, 1.0, 1.0)
    assert (result.output_tokens, result.baseline_output_tokens) == (pytest.approx(41, abs=0.1), 100)
    assert result.token_share is not None and result.token_share.value == pytest.approx(0.41, abs=0.001)
    assert result.energy_share is not None and result.energy_share.value == pytest.approx(0.4)
    sequence = ShareSequence(ALPHA)
    for _ in range(80):
        sequence.update(1.0, 1.0)
    share = result.quality_share
    assert share is not None
    # The very bound that an evaluation of the same scores would report; above, there is no room left.
    assert (share.value, share.lower, share.upper) == (1.0, sequence.lower, 1.0)
    assert share.confidence == pytest.approx(0.9)
    assert "takes 41 % of L0's output tokens and keeps at least 95" in result.explanation
    assert "allow it in a policy" in result.explanation


@pytest.mark.parametrize(("perfect", "upper"), [(30, 1.0), (29, 30 / 29), (24, None)])
def test_no_share_of_quality_is_beyond_what_is_possible(perfect: int, upper: float | None) -> None:
    """Of 30 samples, those that L0 answers perfectly and those that it fails at; the directive keeps all of it."""
    pairs = [pair(n, quality=float(n < perfect), baseline_quality=float(n < perfect)) for n in range(30)]
    sequence = ShareSequence(ALPHA)
    for one in pairs:
        sequence.update(one.answer.quality, one.baseline.quality)
    share = told(pairs).quality_share
    assert share is not None
    assert share.lower == sequence.lower
    if upper is not None:
        assert share.upper == pytest.approx(upper)
        assert share.method == f"{QUALITY_METHOD}; {CUT_METHOD}"
    else:
        assert (share.upper, share.method) == (sequence.upper, QUALITY_METHOD)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_interval_of_quality_holds_the_share_of_the_samples(scores: list[tuple[float, float]]) -> None:
    result = told([pair(n, quality=own, baseline_quality=of_l0) for n, (own, of_l0) in enumerate(scores)])
    if result.quality_share is not None:
        share = result.quality_share
        assert 0 <= share.lower <= share.upper
        assert share.upper <= max(share.value, 1 / result.baseline_quality)


def test_too_few_samples_say_how_many_would_decide() -> None:
    """By arithmetic on the pairs so far, which come out so when they do come."""
    result = told(many(30))
    assert result.recommendation is Recommendation.MORE_SAMPLES
    assert "About 73 samples like these would decide: try it again with so many." in result.explanation
    assert told(many(72)).recommendation is Recommendation.MORE_SAMPLES
    assert told(many(73)).recommendation is Recommendation.ADOPT


def test_what_a_trial_is_too_small_for_is_left_to_the_evaluator() -> None:
    pairs = [pair(n, quality=0.0 if n == 7 else 1.0) for n in range(40)]
    result = told(pairs)
    assert result.recommendation is Recommendation.MORE_SAMPLES
    assert "more than the 200 of a trial" in result.explanation
    assert "the evaluator decides as samples come in" in result.explanation
    at_the_floor = told([pair(n, quality=0.0 if n % 20 == 7 else 1.0) for n in range(40)])
    assert at_the_floor.recommendation is Recommendation.MORE_SAMPLES
    assert f"Even {FORESEEABLE_SAMPLES:,} samples like these would not decide" in at_the_floor.explanation


def test_quality_below_the_floor_is_rejected_whatever_it_saves() -> None:
    result = told(many(30, losses=20))
    assert result.recommendation is Recommendation.REJECT_QUALITY
    assert "below the floor of 95 %" in result.explanation
    assert told(many(30, losses=20, tokens=200)).recommendation is Recommendation.REJECT_QUALITY


def test_a_lower_floor_is_cleared_sooner() -> None:
    assert told(many(30), floor=0.8).recommendation is Recommendation.ADOPT
    assert told(many(30, losses=6), floor=0.95).recommendation is not Recommendation.ADOPT


@pytest.mark.parametrize("tokens", [100, 150])
def test_what_saves_nothing_is_rejected(tokens: int) -> None:
    result = told([pair(n, tokens=tokens) for n in range(80)])
    assert result.recommendation is Recommendation.REJECT_SAVING
    assert "nothing is saved" in result.explanation


def test_a_saving_that_may_be_chance_needs_more_samples() -> None:
    pairs = [pair(n, tokens=60 if n % 2 else 136) for n in range(80)]
    result = told(pairs)
    assert result.token_share is not None and result.token_share.value < 1 < result.token_share.upper
    assert result.recommendation is Recommendation.MORE_SAMPLES
    assert "which need not be a saving" in result.explanation
    assert "samples like these would decide" in result.explanation


def test_one_sample_tells_nothing_but_what_it_is() -> None:
    result = told([pair()])
    assert (result.token_share, result.energy_share) == (None, None)
    assert result.recommendation is Recommendation.MORE_SAMPLES
    assert result.explanation.startswith("It keeps at least 3 % of L0's quality; the floor is 95 %. About 73 samples")


def test_without_quality_of_l0_there_is_no_share_of_it() -> None:
    result = told(many(30, losses=30, baseline_quality=0.0))
    assert (result.quality_share, result.baseline_quality) == (None, 0.0)
    assert result.recommendation is Recommendation.MORE_SAMPLES
    assert "L0 scored nothing" in result.explanation


def test_energy_is_a_share_only_where_all_of_it_is_known() -> None:
    assert told([*many(5), pair(9, joules=None)]).energy_share is None


def test_the_pairs_shown_are_those_that_differ_most() -> None:
    pairs = [
        pair(1, tokens=99),
        pair(2, tokens=10),
        pair(3, quality=0.0),
        pair(4, quality=0.0, tokens=1, text="long"),
        pair(5, tokens=30, quality=0.5),
        pair(6, tokens=5),
    ]
    assert [one.sample_id for one in told(pairs).pairs] == ["s3", "s5", "s6"]


def test_no_pair_is_no_trial() -> None:
    with pytest.raises(ValueError, match="pairs must not be empty"):
        told([])


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40),
    st.floats(0.1, 1),
)
def test_every_trial_has_one_recommendation_that_its_figures_bear_out(
    given_pairs: list[tuple[int, float, float]], floor: float
) -> None:
    pairs = [pair(n, tokens=t, quality=q, baseline_quality=b) for n, (t, q, b) in enumerate(given_pairs)]
    result = told(pairs, floor)
    share, tokens = result.quality_share, result.token_share
    if result.recommendation is Recommendation.ADOPT:
        assert share is not None and tokens is not None
        assert share.lower >= floor and tokens.upper < 1
    if result.recommendation is Recommendation.REJECT_QUALITY:
        assert share is not None and share.upper < floor
    if result.recommendation is Recommendation.REJECT_SAVING:
        assert tokens is not None and tokens.value >= 1
    assert result.explanation.endswith(".") and not math.isnan(result.quality)
