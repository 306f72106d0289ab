from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from common.quality.confidence import SHARE_LIMIT, ShareSequence

Pair = tuple[float, float]
Draw = Callable[[np.random.Generator, list[Pair]], Pair]

scores = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
pairs = st.tuples(scores, scores)


def fed(stream: Iterable[Pair], alpha: float = 0.05, limit: float = SHARE_LIMIT) -> ShareSequence:
    sequence = ShareSequence(alpha, limit)
    for quality, baseline in stream:
        sequence.update(quality, baseline)
    return sequence


def losses_every(period: int, count: int) -> list[Pair]:
    return [(0.0 if (index + 1) % period == 0 else 1.0, 1.0) for index in range(count)]


def rare_losses(rng: np.random.Generator, past: list[Pair]) -> Pair:
    return float(rng.random() < 0.97), 1.0


def frequent_losses(rng: np.random.Generator, past: list[Pair]) -> Pair:
    return float(rng.random() < 0.3), 1.0


def mediocre_baseline(rng: np.random.Generator, past: list[Pair]) -> Pair:
    """The directive loses 10 % of what L0 solves and solves 5 % of the rest; L0 solves half."""
    if rng.random() < 0.5:
        return float(rng.random() < 0.9), 1.0
    return float(rng.random() < 0.05), 0.0


def graded_in_parts(rng: np.random.Generator, past: list[Pair]) -> Pair:
    """Scores between 0 and 1, q close to 0.8 b on every single prompt."""
    baseline = rng.uniform(0.3, 1.0)
    return float(baseline * rng.uniform(0.7, 0.9)), float(baseline)


def depends_on_the_past(rng: np.random.Generator, past: list[Pair]) -> Pair:
    """After a loss prompts are harder for both: pairs depend, but E[q | past] = 0.9 E[b | past]."""
    level = 0.3 if past and past[-1][0] == 0 else 1.0
    return float(rng.random() < 0.9 * level), float(rng.random() < level)


@pytest.mark.parametrize(
    ("draw", "share"),
    [
        (rare_losses, 0.97),
        (frequent_losses, 0.3),
        (mediocre_baseline, 0.95),
        (graded_in_parts, 0.8),
        (depends_on_the_past, 0.9),
    ],
)
def test_bounds_looked_at_after_every_pair_miss_the_share_no_more_often_than_alpha(draw: Draw, share: float) -> None:
    alpha, streams = 0.2, 100
    missed_below = missed_above = 0
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        sequence = ShareSequence(alpha)
        past: list[Pair] = []
        above = below = False
        for _ in range(120):
            past.append(draw(rng, past))
            sequence.update(*past[-1])
            above |= sequence.lower > share
            below |= sequence.upper < share
        missed_above += above
        missed_below += below
    tolerated = binom.ppf(0.999, streams, alpha)
    assert missed_above <= tolerated
    assert missed_below <= tolerated


def test_a_floor_that_a_changing_share_never_clears_is_rarely_called_cleared() -> None:
    """The share swings between 0.4 and 1 from pair to pair, never above 0.85 on the mean so far."""
    opened = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        swinging = ((float(rng.random() < (0.4 if index % 4 == 0 else 1.0)), 1.0) for index in range(120))
        opened += fed(swinging, alpha=0.2).lower >= 0.85
    assert opened <= binom.ppf(0.999, 100, 0.2)


@pytest.mark.parametrize(
    ("stream", "least", "most"),
    [
        (losses_every(1000, 60), 0.93, 1.07),
        (losses_every(1000, 73), 0.95, 1.06),
        (losses_every(1000, 100), 0.96, 1.04),
        (losses_every(100, 300), 0.955, 1.02),
        (losses_every(33, 1000), 0.945, 0.99),
        ([(1.0, 1.0), (0.0, 0.0)] * 150, 0.97, 1.03),
    ],
    ids=["60 pairs", "73 pairs", "100 pairs", "1 % lost of 300", "3 % lost of 1000", "L0 solves half of 300"],
)
def test_few_losses_give_a_tight_bound(stream: list[Pair], least: float, most: float) -> None:
    sequence = fed(stream)
    assert least <= sequence.lower <= sequence.upper <= most


def test_a_floor_out_of_reach_is_found_so_within_fifteen_pairs() -> None:
    within = [
        fed(frequent_losses(rng, []) for _ in range(15)).upper < 0.9 for rng in map(np.random.default_rng, range(100))
    ]
    assert sum(within) >= 85
    assert fed([(0.0, 1.0), (1.0, 1.0), (0.0, 1.0)] * 4).upper < 0.9


def test_nothing_is_known_at_first_nor_where_the_baseline_scores_nothing() -> None:
    for sequence in (fed([]), fed([(0.0, 0.0)] * 50)):
        assert (sequence.lower, sequence.upper, sequence.share) == (0.0, SHARE_LIMIT, None)
    assert fed([]).samples == 0


def test_a_directive_better_than_its_baseline_has_a_lower_bound_above_one() -> None:
    sequence = fed([(1.0, 1.0), (1.0, 0.0)] * 100)
    assert 1.5 < sequence.lower <= sequence.upper == SHARE_LIMIT
    assert sequence.share == 2.0
    beyond = fed([(1.0, 0.0)] * 20)
    assert (beyond.lower, beyond.upper, beyond.share) == (SHARE_LIMIT, SHARE_LIMIT, None)


def test_bounds_follow_from_the_evidence_at_once() -> None:
    """A pair without information lets nothing catch up that the pairs before should have done."""
    for count in range(1, 20):
        for pair in [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]:
            sequence = fed([pair] * count)
            before = sequence.lower, sequence.upper
            sequence.update(0.0, 0.0)
            assert (sequence.lower, sequence.upper) == before


def test_against_a_baseline_of_one_the_share_is_the_mean() -> None:
    sequence = fed([(value, 1.0) for value in (0.25, 0.75)] * 100, limit=1.0)
    assert sequence.share == 0.5
    assert 0.4 < sequence.lower < 0.5 < sequence.upper < 0.6


def test_a_share_that_changes_contradicts_itself_and_lowers_the_bound() -> None:
    sequence = fed([(1.0, 1.0)] * 100)
    assert not sequence.contradicted
    for _ in range(60):
        sequence.update(0.0, 1.0)
    assert sequence.contradicted
    assert sequence.lower == sequence.upper < 0.8


@settings(max_examples=40, deadline=None)
@given(st.lists(pairs, max_size=40), st.sampled_from([0.01, 0.05, 0.3]))
def test_bounds_only_tighten_and_stay_in_order(stream: list[Pair], alpha: float) -> None:
    sequence = ShareSequence(alpha)
    before = sequence.lower, sequence.upper
    for count, (quality, baseline) in enumerate(stream, start=1):
        sequence.update(quality, baseline)
        assert 0 <= sequence.lower <= sequence.upper <= SHARE_LIMIT
        assert sequence.upper <= before[1]
        assert sequence.contradicted or sequence.lower >= before[0]
        assert sequence.samples == count
        before = sequence.lower, sequence.upper


@settings(max_examples=30, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=30))
def test_less_room_for_error_gives_wider_bounds(stream: list[Pair]) -> None:
    strict, lax = fed(stream, alpha=0.01), fed(stream, alpha=0.2)
    assert strict.upper >= lax.upper
    assert lax.contradicted or strict.lower <= lax.lower


@settings(max_examples=30, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=30), st.floats(0.1, 1))
def test_a_better_directive_never_has_worse_bounds(stream: list[Pair], factor: float) -> None:
    better, worse = fed(stream), fed([(quality * factor, baseline) for quality, baseline in stream])
    assert worse.upper <= better.upper
    assert better.contradicted or worse.lower <= better.lower


@settings(max_examples=30, deadline=None)
@given(st.lists(pairs, max_size=20), st.integers(1, 20))
def test_prompts_that_both_fail_change_nothing(stream: list[Pair], failures: int) -> None:
    with_failures, without = fed([*[(0.0, 0.0)] * failures, *stream]), fed(stream)
    assert with_failures.lower == pytest.approx(without.lower, abs=0.0005)
    assert with_failures.upper == pytest.approx(without.upper, abs=0.0005)
    assert with_failures.share == without.share


@settings(max_examples=40, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=12), st.integers(1, 40))
def test_how_many_samples_would_exclude_a_share_is_what_it_takes(stream: list[Pair], share_step: int) -> None:
    """More of the same, in whole rounds: excluded after the round that the forecast falls into, and in none before."""
    share = share_step / 40  # a step of the bounds
    needed = fed(stream).samples_to_exclude(share, most=60 * len(stream))
    grown = ShareSequence(0.05)
    for samples in range(1, 60 * len(stream) + 1):
        grown.update(*stream[(samples - 1) % len(stream)])
        if samples % len(stream) == 0:
            excluded = grown.samples_to_exclude(share, most=samples) is not None
            assert excluded == (needed is not None and needed <= samples)
            if excluded:
                assert grown.lower >= share or grown.upper <= share


def test_how_many_samples_of_nothing_would_tell() -> None:
    assert ShareSequence(0.05).samples_to_exclude(0.95, most=1000) is None
    assert fed([(1.0, 1.0)]).samples_to_exclude(0.95, most=72) is None
    assert fed([(1.0, 1.0)]).samples_to_exclude(0.95, most=73) == 73


def test_a_floor_is_likely_to_be_cleared_where_scores_say_so() -> None:
    assert 0.1 < ShareSequence(0.05).chance_to_clear(0.95, 2000) < 0.9
    assert fed([(1.0, 1.0)] * 60).chance_to_clear(0.95, 200) > 0.9
    assert fed(losses_every(2, 60)).chance_to_clear(0.95, 2000) < 0.001
    near = fed(losses_every(20, 400))  # at the floor
    assert near.chance_to_clear(0.95, 100) < near.chance_to_clear(0.95, 10_000) < 0.5


def test_the_chance_to_clear_a_floor_is_about_how_often_it_is_cleared() -> None:
    rng = np.random.default_rng(8)
    cleared = []
    for share in rng.beta(76, 4, 40):  # as after 80 scores with four losses, nothing else being known
        stream = [(float(quality), 1.0) for quality in rng.random(400) < share]
        cleared.append(fed([*losses_every(20, 80), *stream]).lower >= 0.95)
    assert fed(losses_every(20, 80)).chance_to_clear(0.95, 400) == pytest.approx(np.mean(cleared), abs=0.2)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_score_out_of_range_is_refused_and_leaves_no_trace(value: float) -> None:
    sequence = fed([(1.0, 1.0)] * 20)
    before = sequence.lower, sequence.upper, sequence.share, sequence.samples
    with pytest.raises(ValueError, match=r"^quality must be in"):
        sequence.update(value, 1.0)
    with pytest.raises(ValueError, match=r"^baseline_quality must be in"):
        sequence.update(1.0, value)
    assert (sequence.lower, sequence.upper, sequence.share, sequence.samples) == before


@pytest.mark.parametrize(("alpha", "limit"), [(0.0, 1.0), (1.0, 1.0), (0.05, 0.0), (0.05, 2.5)])
def test_parameters_out_of_range_are_refused(alpha: float, limit: float) -> None:
    with pytest.raises(ValueError, match=r"alpha|limit"):
        ShareSequence(alpha, limit)
