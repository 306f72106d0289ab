"""Verdicts on targets, and which answers at hand may be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from common.quality.bound import BoundMethod, Cell, Floor, FloorKind, PairedScore, QualityBound
from common.quality.estimates import Estimates
from common.quality.pairwise import BASELINE_QUALITY, Comparison
from evaluator.samples import Answer, Sample, Target

CELL = Cell("demo@abc", "listing", "L2")
RELATIVE, ABSOLUTE = FloorKind.RELATIVE, FloorKind.ABSOLUTE
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("floors", "verdict"),
    [
        # L2 is as good as L0, which is right on half of the questions.
        ([Floor(0.9, RELATIVE)], "open"),
        ([Floor(0.9, ABSOLUTE)], "closed"),
        ([Floor(0.5, ABSOLUTE)], "undecided"),
        ([Floor(0.9, RELATIVE), Floor(0.9, ABSOLUTE)], "open"),
        ([Floor(0.8, ABSOLUTE), Floor(0.9, ABSOLUTE)], "closed"),
        ([Floor(0.9, RELATIVE), Floor(0.5, ABSOLUTE)], "undecided"),
        ([Floor(0.9, RELATIVE), Floor(0.2, ABSOLUTE)], "open"),
        ([], "undecided"),
    ],
)
def test_a_verdict_stands_once_every_floor_has_one(floors: list[Floor], verdict: str) -> None:
    target = Target(CELL, tuple(floors), "numeric", revision=1, waiting=0, relative_carbon=None)
    estimates = Estimates(lambda cell: floors)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    estimates.observe_all(
        PairedScore(CELL, f"{i:03d}", float(i % 2), float(i % 2), "grader:numeric", "1", now) for i in range(160)
    )
    assert target.verdict(estimates) == verdict


def test_of_tenants_the_bounds_are_told_that_tell_something() -> None:
    floors = (Floor(0.9, RELATIVE),)
    target = Target(CELL, floors, "numeric", revision=1, waiting=0, relative_carbon=None)
    estimates = Estimates(lambda cell: floors)

    def score(index: int, tenant: str, quality: float, directive_revision: str = "1") -> PairedScore:
        now = datetime(2026, 1, 1, 1, index // 60, index % 60, tzinfo=UTC)
        return PairedScore(CELL, f"{index:04d}", quality, 1.0, "grader:numeric", directive_revision, now, tenant=tenant)

    def told(scores: list[PairedScore]) -> list[str]:
        starts = estimates.observe_all(scores)
        return [bound.cell.tenant for bound in target.bounds(estimates, scores, starts)]

    tenants = ("good", "bad", "good", "good", "good")
    assert told([score(index, tenants[index % 5], float(index % 5 != 1)) for index in range(20)]) == [""]
    assert told([score(index, tenants[index % 5], float(index % 5 != 1)) for index in range(20, 200)]) == [
        "",
        "good",
        "bad",
    ]
    assert told([score(index, "bad", 0.0) for index in range(200, 210)]) == ["", "bad"], "only whose scores are new"
    assert told([score(index, "new", 1.0) for index in range(210, 220)]) == [""]
    drop = [score(index, "good", 0.0) for index in range(220, 250)]
    assert [start.cell.tenant for start in estimates.observe_all(drop)] == ["good"]
    assert told([]) == [""]
    # A drop in the last report: its withdrawal says it all.
    estimates.observe_all(score(index, "good", 1.0) for index in range(300, 490))
    assert told([score(index, "good", 1.0) for index in range(490, 500)]) == ["", "good"]
    assert told([score(index, "good", 0.0) for index in range(500, 530)]) == [""]
    assert told([score(600, "good", 1.0, "2")]) == [], "of another text than the target's"


def test_of_tenants_a_corrected_bound_that_tells_nothing_more_takes_the_place_of_what_told() -> None:
    floors = (Floor(0.95, RELATIVE),)
    target = Target(CELL, floors, "pairwise", revision=1, waiting=0, relative_carbon=None)
    estimates = Estimates(lambda cell: floors)
    in_force: dict[str, QualityBound] = {}

    def report(first: int, comparisons: Sequence[Comparison]) -> None:
        scores = [
            PairedScore(
                *(CELL, f"{number:04d}", comparison.quality, BASELINE_QUALITY, "pairwise:j", "1"),
                *(START + timedelta(minutes=number), comparison, ("acme", "beta")[number % 2]),
            )
            for number, comparison in enumerate(comparisons, start=first)
        ]
        starts = estimates.observe_all(scores)
        assert starts == ()
        in_force.update((bound.cell.tenant, bound) for bound in target.bounds(estimates, scores, starts))

    # All of one length: nothing is to be corrected.
    report(0, [Comparison(300, 300, 0.5, 0.5)] * 500)
    assert in_force["acme"].method is BoundMethod.BETTING and in_force["acme"].lower >= 0.95
    # From now on they differ, and the judge is seen to like what is long: how much, is open to doubt.
    report(500, [Comparison(500, 300, 1.0, 1.0)] * 16)
    own = estimates.bound(replace(CELL, tenant="acme"))
    assert own is not None and own.lower < 0.95
    assert in_force["acme"] == own


def test_answers_of_another_revision_are_not_used_but_l0_has_none() -> None:
    old, baseline = Answer("L2", 1, "7", 2), Answer("L0", 5, "Steps ... 7", 40)
    sample = Sample("s", "demo@abc", "listing", "7", "numeric", datetime(2026, 1, 1, tzinfo=UTC), (old, baseline), b"")
    assert sample.answer("L2", 1) is old
    assert sample.answer("L2", 2) is None
    assert sample.answer("L0", 1) is baseline
