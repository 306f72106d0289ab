"""Preferences freed of the judge's liking for length and for what it is shown first."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.preferences import Pair, Preferences, estimate

ALPACA_EVAL = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "alpaca_eval"
STRENGTHS = {"worse": -1.5, "equal": 0.0, "better": 0.8}
SLOPE = 1.2
"""Log-odds a 1,000 characters."""
POSITION = 0.6


def planted(seed: int, *, slope: float = SLOPE, position: float = POSITION, instructions: int = 700) -> list[Pair]:
    """Judgements by a judge who likes length and the first answer, of generators that differ in both."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(instructions):
        easiness = rng.normal(0, 1.0)
        for generator, strength in STRENGTHS.items():
            # The better a generator, the shorter its answers: raw and corrected tell different stories.
            chars_1 = int(rng.gamma(4, 300))
            chars_2 = max(1, int(rng.gamma(4, 300) - 500 * strength))
            first = int(rng.integers(1, 3))
            logit = strength + easiness + slope * (chars_2 - chars_1) / 1000 + position * (1 if first == 2 else -1)
            won = rng.random() < 1 / (1 + math.exp(-logit))
            pairs.append(Pair(str(number), "base", generator, chars_1, chars_2, float(won), first))
    return pairs


def truth(strength: float) -> float:
    """At equal length and balanced order, over the instructions' effects."""
    effects = np.random.default_rng(0).normal(0, 1.0, 100_000)
    levels = [1 / (1 + np.exp(-(strength + effects + side * POSITION))) for side in (-1, 1)]
    return float(np.mean(levels))


def by_generator(found: Preferences) -> dict[str, float]:
    return {one.generator_2: one.corrected.value for one in found.generators}


def test_a_planted_liking_for_length_and_for_the_first_is_recovered() -> None:
    found = estimate(planted(2), np.random.default_rng(2))
    assert found.length_slope is not None and found.position is not None
    assert found.length_slope.lower <= SLOPE <= found.length_slope.upper
    assert found.length_slope.upper - found.length_slope.lower < 0.6
    assert found.position.lower <= POSITION <= found.position.upper
    assert found.position.upper - found.position.lower < 0.4
    for one in found.generators:
        assert one.corrected.lower <= truth(STRENGTHS[one.generator_2]) <= one.corrected.upper
        assert one.corrected.upper - one.corrected.lower < 0.15
        assert one.pairs == 700
        assert one.raw.lower <= one.raw.value <= one.raw.upper


def test_what_the_judge_likes_hides_who_is_better() -> None:
    found = estimate(planted(3), np.random.default_rng(4))
    raw = {one.generator_2: one.raw.value for one in found.generators}
    corrected = by_generator(found)
    assert raw["better"] < 0.6
    assert corrected["better"] > 0.62
    assert corrected["worse"] < 0.3 < raw["worse"]


def test_a_judge_without_likings_is_left_as_it_is() -> None:
    found = estimate(planted(5, slope=0.0, position=0.0), np.random.default_rng(6))
    assert found.length_slope is not None and found.position is not None
    assert found.length_slope.lower <= 0 <= found.length_slope.upper
    assert found.position.lower <= 0 <= found.position.upper
    for one in found.generators:
        assert one.corrected.value == pytest.approx(one.raw.value, abs=0.03)


def test_intervals_hold_what_was_planted_as_often_as_they_say() -> None:
    held = []
    for seed in range(20):
        found = estimate(planted(100 + seed, instructions=200), np.random.default_rng(seed))
        assert found.length_slope is not None and found.position is not None
        held += [found.length_slope.lower <= SLOPE <= found.length_slope.upper]
        held += [found.position.lower <= POSITION <= found.position.upper]
        for one in found.generators:
            held += [one.corrected.lower <= truth(STRENGTHS[one.generator_2]) <= one.corrected.upper]
    # 95 % of 100, less three standard deviations: the interval is asymptotic, and penalties draw to 0.
    assert np.mean(held) >= 0.885


def test_order_that_is_not_known_of_every_pair_is_left_out() -> None:
    pairs = planted(7, position=0.0, instructions=100)
    unknown = Pair("more", "base", "equal", 100, 100, 0.5)
    assert estimate([*pairs, unknown], np.random.default_rng(0)).position is None
    always = [Pair(p.instruction, p.generator_1, p.generator_2, p.chars_1, p.chars_2, p.preference, 1) for p in pairs]
    assert estimate(always, np.random.default_rng(0)).position is None


def test_answers_of_equal_length_say_nothing_of_length() -> None:
    pairs = [Pair(str(number), "a", "b", 50, 50, number % 2) for number in range(40)]
    found = estimate(pairs, np.random.default_rng(0))
    assert found.length_slope is None
    assert found.generators[0].corrected.value == pytest.approx(0.5, abs=0.01)


def test_a_generator_is_even_with_itself() -> None:
    itself = [Pair(str(number), "base", "base", 300, 900, 1.0) for number in range(50)]
    pairs = planted(9, instructions=100)
    found = estimate([*itself, *pairs], np.random.default_rng(0))
    assert found.length_slope == estimate(pairs, np.random.default_rng(0)).length_slope
    assert (found.generators[-1].generator_2, found.generators[-1].corrected.value) == ("base", 0.5)
    assert found.generators[-1].raw.value == 1.0
    alone = estimate(itself, np.random.default_rng(0))
    assert (alone.length_slope, len(alone.generators)) == (None, 1)


def test_who_wins_every_pair_gets_a_number_all_the_same() -> None:
    pairs = [Pair(str(number), "a", "b", 100 + number, 200, 1.0) for number in range(30)]
    found = estimate(pairs, np.random.default_rng(0))
    assert 0.5 < found.generators[0].corrected.value <= 1
    assert math.isfinite(found.generators[0].corrected.lower)


def test_one_pair_is_enough_for_an_answer_that_says_nothing() -> None:
    (one,) = estimate([Pair("x", "a", "b", 10, 20, 1.0)], np.random.default_rng(0)).generators
    assert one.pairs == 1
    assert one.raw.upper - one.raw.lower > 0.5


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("xyz"),
            st.sampled_from("ab"),
            st.integers(0, 5_000),
            st.integers(0, 5_000),
            st.sampled_from([0.0, 0.25, 0.5, 1.0]),
            st.sampled_from([1, 2]),
        ),
        min_size=1,
        max_size=30,
    )
)
@settings(deadline=None, max_examples=25)
def test_whatever_the_pairs_every_figure_is_in_its_range(
    rows: Sequence[tuple[str, str, int, int, float, int]],
) -> None:
    found = estimate([Pair(x, "base", *rest) for x, *rest in rows], np.random.default_rng(0))  # type: ignore[arg-type]
    for one in found.generators:
        for interval in (one.raw, one.corrected):
            assert 0 <= interval.lower <= interval.upper <= 1
            assert -1e-12 <= interval.value <= 1 + 1e-12
    assert sum(one.pairs for one in found.generators) == len(rows)


def test_swapping_the_answers_swaps_the_preference() -> None:
    pairs = planted(8, instructions=200)
    swapped = [
        Pair(p.instruction, p.generator_2, p.generator_1, p.chars_2, p.chars_1, 1 - p.preference, 3 - (p.first or 0))
        for p in pairs
    ]
    there = estimate(pairs, np.random.default_rng(0))
    back = estimate(swapped, np.random.default_rng(0))
    assert there.length_slope is not None and back.length_slope is not None
    assert back.length_slope.value == pytest.approx(there.length_slope.value, rel=1e-3)
    for one, other in zip(there.generators, back.generators, strict=True):
        assert other.corrected.value == pytest.approx(1 - one.corrected.value, abs=1e-3)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"preference": 1.2}, "preference must be in"),
        ({"preference": math.nan}, "preference must be in"),
        ({"chars_1": -1}, "chars_1 must be 0 to"),
        ({"chars_2": 10**9}, "chars_2 must be 0 to"),
        ({"first": 3}, "first must be 1 or 2, got 3"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(fault: dict[str, float], said: str) -> None:
    fields = {"instruction": "x", "generator_1": "a", "generator_2": "b", "chars_1": 1, "chars_2": 1, "preference": 0.5}
    with pytest.raises(ValueError, match=said):
        Pair(**{**fields, **fault})  # type: ignore[arg-type]


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs must not be empty"):
        estimate([], np.random.default_rng(0))


@pytest.mark.parametrize("judge", ["weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_gpt4"])
def test_recorded_judges_freed_of_length_rank_models_as_the_length_controlled_leaderboard(judge: str) -> None:
    """And a model told to be concise or verbose keeps its place better."""
    if not ALPACA_EVAL.exists():
        pytest.skip("needs alpaca_eval from PITH_DATA_DIR")
    with gzip.open(ALPACA_EVAL / "preferences.json.gz") as file:
        recorded = json.load(file)["data"][judge]
    with (ALPACA_EVAL / f"{judge}_leaderboard.csv").open(encoding="utf-8") as lines:
        leaderboard = {row[""]: float(row["length_controlled_winrate"] or "nan") for row in csv.DictReader(lines)}
    found = estimate(
        [
            # 0 is how the record has a tie.
            Pair(str(instruction), generator_1, generator_2, chars_1, chars_2, (preference or 1.5) - 1)
            for generator_2, rows in recorded.items()
            for instruction, generator_1, chars_1, chars_2, preference in rows
            if preference is not None
        ],
        np.random.default_rng(0),
    )
    corrected = by_generator(found)
    assert rank_correlation([corrected[name] for name in corrected], [leaderboard[name] for name in corrected]) >= 0.9
    if judge == "alpaca_eval_gpt4":
        return  # It judged no variants.
    raw = {one.generator_2: one.raw.value for one in found.generators}
    ratios = []
    for model in ("gpt-3.5-turbo-1106", "claude-2.1", "alpaca-7b"):
        variants = [name for name in corrected if name in (model, f"{model}_concise", f"{model}_verbose")]
        assert len(variants) >= 2
        ratios.append(spread([corrected[name] for name in variants]) / spread([raw[name] for name in variants]))
    assert np.mean(ratios) <= 0.5


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def spread(shares: Sequence[float]) -> float:
    """As a share of their mean: who seldom wins cannot move by many points."""
    return float(np.std(shares) / np.mean(shares))
