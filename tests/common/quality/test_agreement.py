"""Agreement of judges with people: kappa against tables worked out by hand, its interval by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.agreement import (
    MIN_PAIRS,
    JudgeTotals,
    RatedScore,
    Review,
    cohens_kappa,
    disagrees,
    judged_preference,
    people_agreement,
    rank_correlation,
    thumbs_agreement,
)
from common.quality.interval import Interval

LEVELS = (0.0, 0.5, 1.0)
JUDGE, TASK = "grader:exact@1", "qa"

Opinions = list[tuple[float, float]]


def opinions(table: Sequence[Sequence[int]]) -> Opinions:
    """Row: what the one says (loss, tie, win); column: the other."""
    return [
        both
        for row, column in product(range(3), range(3))
        for both in [(LEVELS[row], LEVELS[column])] * table[row][column]
    ]


def review(number: int, preference: float, judged: float, rater: str = "ann", **fields: str) -> Review:
    return Review(fields.get("judge", JUDGE), fields.get("task", TASK), number, rater, preference, judged)


def totals(reviews: Sequence[Review], more: Sequence[float] = ()) -> JudgeTotals:
    judged = [*{review.pair: review.judged for review in reviews}.values(), *more]
    return JudgeTotals(JUDGE, TASK, len(judged), sum(judged), sum(value * value for value in judged))


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Observed 35/50; by chance 25/50 x 30/50 + 25/50 x 20/50 = 1/2 (two classes).
        ([[20, 0, 5], [0, 0, 0], [10, 0, 15]], 0.4),
        # Observed 60/100; by chance (40 x 50 + 30 x 30 + 30 x 20) / 10,000 = 0.35.
        ([[30, 5, 5], [10, 15, 5], [10, 10, 10]], (0.55 - 0.35) / 0.65),
        # The margins say all: rows 1/2, 1/2; columns 1/2, 1/2, and every cell is their product.
        ([[10, 10, 0], [10, 10, 0], [0, 0, 0]], 0.0),
        ([[10, 0, 0], [0, 10, 0], [0, 0, 10]], 1.0),
        # Always the opposite, with equal margins.
        ([[0, 0, 10], [0, 0, 0], [10, 0, 0]], -1.0),
    ],
)
def test_kappa_of_a_table_worked_out_by_hand(table: list[list[int]], kappa: float) -> None:
    found = cohens_kappa(opinions(table))
    assert found is not None
    assert found.value == pytest.approx(kappa)
    assert -1 <= found.lower <= found.value <= found.upper + 1e-12 <= 1 + 1e-9
    assert found.confidence == 0.95 and "asymptotic" in found.method


def test_agreement_in_all_of_few_pairs_is_not_certain() -> None:
    found = cohens_kappa(opinions([[10, 0, 0], [0, 0, 0], [0, 0, 10]]))
    assert found is not None and (found.value, found.upper) == pytest.approx((1.0, 1.0))
    # Wilson's lower end for 20 of 20 is 0.839; chance is 1/2.
    assert found.lower == pytest.approx(0.678, abs=0.001)


@pytest.mark.parametrize(
    "table",
    [
        [[MIN_PAIRS - 1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[9, 0, 0], [0, 0, 0], [0, 0, 10]],
        [[0, 0, 0], [0, 200, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ],
)
def test_of_too_few_or_of_one_class_nothing_is_said(table: list[list[int]]) -> None:
    assert cohens_kappa(opinions(table)) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LEVELS), st.floats(0, 1)), min_size=MIN_PAIRS, max_size=60), st.randoms())
def test_kappa_does_not_depend_on_who_is_the_first_or_on_the_order(both: Opinions, random: object) -> None:
    found = cohens_kappa(both)
    swapped = cohens_kappa([(other, one) for one, other in reversed(both)])
    assert (found is None) == (swapped is None)
    if found is not None and swapped is not None:
        assert (found.value, found.lower, found.upper) == pytest.approx((swapped.value, swapped.lower, swapped.upper))
        assert -1 - 1e-9 <= found.lower <= found.upper <= 1 + 1e-9


@pytest.mark.parametrize(
    ("name", "joint"),
    [
        ("near perfect", [[0.30, 0.01, 0.00], [0.01, 0.35, 0.01], [0.00, 0.01, 0.31]]),
        ("moderate", [[0.25, 0.05, 0.05], [0.05, 0.25, 0.05], [0.03, 0.07, 0.20]]),
        ("none", [[0.09, 0.12, 0.09], [0.12, 0.16, 0.12], [0.09, 0.12, 0.09]]),
        ("many ties", [[0.05, 0.01, 0.00], [0.01, 0.86, 0.01], [0.00, 0.01, 0.05]]),
    ],
)
@pytest.mark.parametrize("pairs", [20, 60, 200])
def test_the_interval_of_kappa_covers(name: str, joint: list[list[float]], pairs: int) -> None:
    law = np.array(joint)
    law /= law.sum()
    chance = float(law.sum(0) @ law.sum(1))
    true = (float(np.trace(law)) - chance) / (1 - chance)
    rng = np.random.default_rng(7)
    covered = said = 0
    for drawn in rng.multinomial(pairs, law.ravel(), size=1_000):
        found = cohens_kappa(opinions(drawn.reshape(3, 3).tolist()))
        if found is not None:
            said += 1
            covered += found.lower <= true <= found.upper
    # Three standard errors below 95 % of 1,000 runs.
    assert said > 900 and covered / said >= 0.93


def test_people_stand_beside_the_judge_by_judge_and_task() -> None:
    reviews = [review(n, 1.0 if n % 2 else 0.0, 1.0 if n % 2 else 0.0) for n in range(30)]
    reviews += [review(n, 0.5, 0.5, task="other") for n in range(3)]
    reviews += [review(0, 0.5, 0.5, judge="unknown")]
    (found,) = people_agreement(reviews, [totals(reviews[:30], more=[1.0, 1.0, 0.0, 1.0, 0.0] * 14)])
    assert (found.judge, found.task, found.pairs, found.choices, found.raters) == (JUDGE, TASK, 30, 30, 1)
    assert found.agreeing == 1.0 and found.kappa is not None and found.kappa.value == pytest.approx(1.0)
    assert (found.scored_pairs, found.judge_rate) == (100, 0.57)
    # The judge was right of all that people looked at.
    assert found.corrected is not None and found.corrected.rate.value == pytest.approx(0.57, abs=0.03)
    assert (found.shared_pairs, found.kappa_of_raters) == (0, None)


def test_a_judge_that_flatters_a_directive_is_put_right() -> None:
    rng = np.random.default_rng(3)
    reviews, others = [], []
    for number in range(1_000):
        person = float(rng.choice(LEVELS, p=[0.4, 0.3, 0.3]))
        judged = 1.0 if rng.random() < 0.3 else person
        if number < 200:
            reviews.append(review(number, person, judged))
        else:
            others.append(judged)
    (found,) = people_agreement(reviews, [totals(reviews, others)])
    assert found.judge_rate > 0.58
    assert found.corrected is not None
    rate = found.corrected.rate
    assert rate.lower <= 0.45 <= rate.upper < found.judge_rate


def test_of_few_reviews_only_their_number_is_said() -> None:
    reviews = [review(n, 1.0, 1.0) for n in range(MIN_PAIRS - 1)]
    (found,) = people_agreement(reviews, [totals(reviews)])
    assert found.pairs == MIN_PAIRS - 1
    assert (found.agreeing, found.kappa, found.corrected, found.kappa_of_raters) == (None, None, None, None)
    assert people_agreement([], []) == ()


def test_several_people_on_one_pair_count_as_one_and_are_held_against_one_another() -> None:
    """Ann says what the judge says; bob says it of half of them and the opposite of the rest: together a tie there."""
    reviews = []
    for number in range(40):
        judged = float(number % 2)
        reviews.append(review(number, judged, judged))
        reviews.append(review(number, judged if number < 20 else 1 - judged, judged, rater="bob"))
    (found,) = people_agreement(reviews, [totals(reviews)])
    assert (found.pairs, found.choices, found.raters, found.shared_pairs) == (40, 80, 2, 40)
    assert found.agreeing == pytest.approx(0.5)
    assert found.kappa_of_raters is not None and found.kappa_of_raters.value == pytest.approx(0.0)


def test_every_pair_counts_once_however_many_people_saw_it() -> None:
    """Of pairs seen by three, the three couples are a third each."""
    reviews = [review(n, float(n % 2), 1.0, rater=r) for n in range(20) for r in ("ann", "bob", "eve")]
    reviews += [review(n, p, 1.0, rater=r) for n in range(20, 40) for r, p in (("ann", 0.0), ("bob", 1.0))]
    (found,) = people_agreement(reviews, [totals(reviews)])
    # Half of the pairs are agreed on, and each answer is half of all.
    assert found.kappa_of_raters is not None and found.kappa_of_raters.value == pytest.approx(0.0)


def test_thumbs_stand_beside_grades_by_directive_and_all_together() -> None:
    rated = [RatedScore(JUDGE, TASK, "L0", float(n % 2), float(n % 2), False) for n in range(20)]
    rated += [RatedScore(JUDGE, TASK, "L1", float(n % 2), 1 - float(n % 2), False) for n in range(20)]
    rated += [RatedScore("other", TASK, "L1", 1.0, 0.75, False)]
    found = {(one.judge, one.directive): one for one in thumbs_agreement(rated)}
    assert list(found) == [(JUDGE, ""), (JUDGE, "L0"), (JUDGE, "L1"), ("other", ""), ("other", "L1")]
    kappas = {key: one.kappa.value for key, one in found.items() if one.kappa is not None}
    assert kappas == pytest.approx({(JUDGE, ""): 0.0, (JUDGE, "L0"): 1.0, (JUDGE, "L1"): -1.0})
    alone = found["other", "L1"]
    assert (alone.ratings, alone.mean_rating, alone.mean_quality, alone.agreeing) == (1, 1.0, 0.75, None)


def test_preferences_only_go_up_and_down_with_thumbs() -> None:
    """Users are content with all; the more so the better the judge likes the answer."""
    rated = [RatedScore("pairwise:m", TASK, "L1", 0.6 + n / 100, 0.5 + n / 50, True) for n in range(25)]
    together, _ = thumbs_agreement(rated)
    assert (together.agreeing, together.kappa) == (None, None)
    assert together.rank_correlation == pytest.approx(1.0)
    few, _ = thumbs_agreement(rated[: MIN_PAIRS - 1])
    assert few.rank_correlation is None


def test_rank_correlation_by_hand() -> None:
    """Ranks 5.5 and 15.5 ten times each, beside 1 to 20: variances 500 and 665, covariance 500."""
    thumbs = [0.0] * 10 + [1.0] * 10
    assert rank_correlation(list(zip(thumbs, range(20), strict=True))) == pytest.approx(500 / math.sqrt(500 * 665))
    assert rank_correlation([(1.0, float(n)) for n in range(20)]) is None


def test_disagreement_is_above_a_limit_only_beyond_doubt() -> None:
    assert disagrees(None, 0.8) is None
    assert disagrees(Interval(0.1, -0.2, 0.3, 0.95, ""), 0.8) is False
    assert disagrees(Interval(0.1, -0.2, 0.19, 0.95, ""), 0.8) is True


@pytest.mark.parametrize(
    ("quality", "baseline", "compared", "preference"),
    [
        (1.0, 0.5, True, 1.0),
        (0.3, 0.5, True, 0.3),
        (0.3, 0.3, False, 0.5),
        (0.3, 0.2, False, 1.0),
        (0.0, 1.0, False, 0),
    ],
)
def test_a_judges_preference(quality: float, baseline: float, compared: bool, preference: float) -> None:
    assert judged_preference(quality, baseline, compared=compared) == preference
