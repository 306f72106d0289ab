"""How far a judge agrees with people: Cohen's kappa, and the judge's rate as people would have it.

A pair is L0's answer and a directive's to one prompt. A person's preference for the directive's answer is 0, 1/2 or 1;
of several people's, the mean. A judge's is its quality where it compared the two with one another, and else 1, 1/2 or
0, as the answer's grade is above, at or below L0's (`judged_preference`). Users rate single answers, and judges grade
them. Wherever two opinions are compared, each is above, at or below 1/2: a win, a tie or a loss; up, undecided or down.

People see pairs drawn uniformly from those that were scored, as far as the text is still at hand.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, correlation, fmean

from common.quality.interval import Interval
from common.quality.prediction_powered import CorrectedRate, Labelled, Unlabelled, corrected_rate

CONFIDENCE = 0.95
MIN_PAIRS = 20
"""Fewer, and nothing is said beyond how many there are."""
KAPPA_METHOD = "Wilson's interval of the observed agreement, chance agreement taken as observed; asymptotic"

Opinions = tuple[float, float]
"""What two said of one thing, each in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Review:
    """A person's choice, beside the judge's score of the same pair."""

    judge: str
    task: str
    pair: Hashable
    """Tells the pair from all others."""
    rater: str
    preference: float
    """The person's, for the directive's answer: 0, 1/2 or 1."""
    judged: float
    """The judge's, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class JudgeTotals:
    """All pairs that a judge has scored of a task: their number, and sums of its preferences for the directive's answer
    and of their squares."""

    judge: str
    task: str
    scores: int
    preferences: float
    squares: float


@dataclass(frozen=True, slots=True)
class RatedScore:
    """A user's rating of an answer and a judge's score of it, both in [0, 1]."""

    judge: str
    task: str
    directive: str
    rating: float
    quality: float
    compared: bool
    """With L0's: then quality is the judge's preference for it."""


@dataclass(frozen=True, slots=True)
class PeopleAgreement:
    """A judge beside people, on one task. What rests on fewer than MIN_PAIRS pairs is None."""

    judge: str
    task: str
    pairs: int
    choices: int
    raters: int
    agreeing: float | None
    """Share of the pairs of which judge and people say the same."""
    kappa: Interval | None
    shared_pairs: int
    """That two or more people have compared."""
    kappa_of_raters: Interval | None
    """Of these with one another."""
    scored_pairs: int
    judge_rate: float
    """The judge's mean preference over all that it has scored."""
    corrected: CorrectedRate | None
    """The people's, over the same."""


@dataclass(frozen=True, slots=True)
class ThumbsAgreement:
    """A judge's scores beside users' ratings of the same answers, on one task.

    A grade is of one answer, as a rating is, and agrees with it or does not; a preference is beside L0's answer, and
    can only go up and down with it. What rests on fewer than MIN_PAIRS answers is None.
    """

    judge: str
    task: str
    directive: str
    """Empty: of all together."""
    ratings: int
    mean_rating: float
    mean_quality: float
    agreeing: float | None
    kappa: Interval | None
    """Of grades."""
    rank_correlation: float | None
    """Spearman's, of preferences."""


def judged_preference(quality: float, baseline_quality: float, *, compared: bool) -> float:
    """A judge's preference for the directive's answer, in [0, 1].

    Args:
        compared: whether the answers were compared with one another, and not graded one by one.
    """
    return quality if compared else _won(quality - baseline_quality)


def people_agreement(reviews: Iterable[Review], totals: Iterable[JudgeTotals]) -> tuple[PeopleAgreement, ...]:
    """By judge and task, in that order, where there is a review.

    Args:
        totals: with every pair that a review is of; a judge and task that has none is left out.
    """
    of_cell: dict[tuple[str, str], list[Review]] = {}
    for review in reviews:
        of_cell.setdefault((review.judge, review.task), []).append(review)
    scored = {(one.judge, one.task): one for one in totals}
    return tuple(_of_people(scored[cell], of_cell[cell]) for cell in sorted(of_cell) if cell in scored)


def thumbs_agreement(rated: Iterable[RatedScore]) -> tuple[ThumbsAgreement, ...]:
    """By judge, task and directive, in that order; before the directives of a task, all of them together."""
    of_cell: dict[tuple[str, str, str], list[RatedScore]] = {}
    for one in rated:
        for directive in ("", one.directive):
            of_cell.setdefault((one.judge, one.task, directive), []).append(one)
    return tuple(_of_thumbs(cell, of_cell[cell]) for cell in sorted(of_cell))


def disagrees(kappa: Interval | None, limit: float) -> bool | None:
    """Whether the disagreement, 1 - kappa, is above the limit at every kappa of the interval; None where it is not
    known."""
    return None if kappa is None else 1.0 - kappa.upper > limit


def agreeing(opinions: Sequence[Opinions]) -> float | None:
    """The share of which both say the same; None of fewer than MIN_PAIRS."""
    if len(opinions) < MIN_PAIRS:
        return None
    return fmean(_won(one - 0.5) == _won(other - 0.5) for one, other in opinions)


def cohens_kappa(opinions: Sequence[Opinions]) -> Interval | None:
    """Agreement beyond chance (Cohen 1960, "A coefficient of agreement for nominal scales", eq. 1).

    The interval is asymptotic: Wilson's (1927) of the observed agreement, mapped by the chance agreement as observed.
    Simulated, it covers at 20 pairs as at 200, also where all agree, which that of Fleiss, Cohen and Everitt (1969)
    does not; where kappa is well below 0, 92 % instead of 95 %.

    Returns:
        None of fewer than MIN_PAIRS, and where both always say the same one thing: chance alone would agree as well.
    """
    return _kappa([[opinion] for opinion in opinions])


def rank_correlation(opinions: Sequence[Opinions]) -> float | None:
    """Spearman's, equals sharing their mean rank; None of fewer than MIN_PAIRS, and where either is always the same."""
    if len(opinions) < MIN_PAIRS or any(len(set(side)) == 1 for side in zip(*opinions, strict=True)):
        return None
    return correlation(*map(_ranks, zip(*opinions, strict=True)))


def _of_thumbs(cell: tuple[str, str, str], rated: Sequence[RatedScore]) -> ThumbsAgreement:
    grades = [(one.rating, one.quality) for one in rated if not one.compared]
    preferences = [(one.rating, one.quality) for one in rated if one.compared]
    return ThumbsAgreement(
        *cell,
        ratings=len(rated),
        mean_rating=fmean(one.rating for one in rated),
        mean_quality=fmean(one.quality for one in rated),
        agreeing=agreeing(grades),
        kappa=cohens_kappa(grades),
        rank_correlation=rank_correlation(preferences),
    )


def _of_people(scored: JudgeTotals, reviews: Sequence[Review]) -> PeopleAgreement:
    of_pair: dict[Hashable, list[Review]] = {}
    for review in reviews:
        of_pair.setdefault(review.pair, []).append(review)
    labelled = [Labelled(fmean(r.preference for r in of), of[0].judged) for of in of_pair.values()]
    opinions = [(one.label, one.prediction) for one in labelled]
    shared = [[r.preference for r in of] for of in of_pair.values() if len(of) > 1]
    return PeopleAgreement(
        judge=scored.judge,
        task=scored.task,
        pairs=len(of_pair),
        choices=len(reviews),
        raters=len({review.rater for review in reviews}),
        agreeing=agreeing(opinions),
        kappa=cohens_kappa(opinions),
        shared_pairs=len(shared),
        kappa_of_raters=_kappa([_both_ways(preferences) for preferences in shared]),
        scored_pairs=scored.scores,
        judge_rate=scored.preferences / scored.scores,
        corrected=None if len(labelled) < MIN_PAIRS else corrected_rate(labelled, _unreviewed(scored, labelled)),
    )


def _unreviewed(scored: JudgeTotals, labelled: Sequence[Labelled]) -> Unlabelled:
    return Unlabelled(
        scored.scores - len(labelled),
        scored.preferences - math.fsum(one.prediction for one in labelled),
        scored.squares - math.fsum(one.prediction**2 for one in labelled),
    )


def _both_ways(preferences: Sequence[float]) -> list[Opinions]:
    """Of each two people, in both orders: nobody is the first of them, so chance agreement is that of all together."""
    return [way for one, other in combinations(preferences, 2) for way in ((one, other), (other, one))]


def _kappa(opinions_of_pairs: Sequence[Sequence[Opinions]]) -> Interval | None:
    """A pair counts once, however many opinions there are of it."""
    pairs = len(opinions_of_pairs)
    if pairs < MIN_PAIRS:
        return None
    observed = 0.0
    margins: tuple[dict[float, float], dict[float, float]] = ({}, {})
    for opinions in opinions_of_pairs:
        weight = 1.0 / (pairs * len(opinions))
        for both in opinions:
            classes = [_won(opinion - 0.5) for opinion in both]
            observed += weight * (classes[0] == classes[1])
            for margin, found in zip(margins, classes, strict=True):
                margin[found] = margin.get(found, 0.0) + weight
    chance = _chance(*margins)
    # But for rounding, this is the one class that both always name.
    if 1.0 - chance < 1e-9:
        return None
    lower, upper = _wilson(min(observed, 1.0), pairs)
    value, lower, upper = ((share - chance) / (1.0 - chance) for share in (observed, lower, upper))
    return Interval(value, max(lower, -1.0), upper, CONFIDENCE, KAPPA_METHOD)


def _chance(one: Mapping[float, float], other: Mapping[float, float]) -> float:
    return math.fsum(share * other.get(found, 0.0) for found, share in one.items())


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return tuple(max(0.0, min(1.0, (middle + side * half) / (1 + z * z / count))) for side in (-1, 1))  # type: ignore[return-value]


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equals share the mean of theirs."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


def _won(difference: float) -> float:
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))
