"""Verdicts on targets, and which answers at hand may be used."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from common.quality.bound import Cell, Floor, FloorKind, PairedScore
from common.quality.estimates import Estimates
from evaluator.samples import Answer, Sample, Target

CELL = Cell("demo@abc", "listing", "L2")
RELATIVE, ABSOLUTE = FloorKind.RELATIVE, FloorKind.ABSOLUTE


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


def test_answers_of_another_revision_are_not_used_but_l0_has_none() -> None:
    old, baseline = Answer("L2", 1, "7", 2), Answer("L0", 5, "Steps ... 7", 40)
    sample = Sample("s", "demo@abc", "listing", "7", "numeric", datetime(2026, 1, 1, tzinfo=UTC), (old, baseline), b"")
    assert sample.answer("L2", 1) is old
    assert sample.answer("L2", 2) is None
    assert sample.answer("L0", 1) is baseline
