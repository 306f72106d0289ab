"""What an evaluator may ask for and report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TypeVar

from pith.router.v1 import feedback_pb2

from common.errors import Violations
from common.limits import MAX_ID_CHARACTERS
from common.quality.pairwise import MAX_COMPARED_CHARACTERS
from router import convert
from router.directives.levels import L0
from router.limits import MAX_REVISION, check_directives, check_name, check_text

Key = TypeVar("Key", bound=Hashable)

MAX_DRAWN = 200
MAX_LEASE_SECONDS = 24 * 3600
MAX_SCORED_SAMPLES = 1_000
MAX_BOUNDS = 1_000
MAX_SAMPLES = 10**12
CLOCK_SKEW = timedelta(minutes=5)
"""How far ahead of the router's clock an evaluator's may be. A bound from the future would stay fresh for too long."""


def check_draw(request: feedback_pb2.DrawSamplesRequest, known: Collection[str]) -> None:
    """`known` are the names of all directives. Raises PithError INVALID_ARGUMENT that names every field at fault."""
    faults = Violations()
    if request.directives or request.model:
        _check_id(faults, "model", request.model)
    _check_id(faults, "evaluator", request.evaluator)
    check_text(faults, "task", request.task, MAX_ID_CHARACTERS)
    check_directives(faults, "directives", request.directives, {*known} - {L0.name})
    faults.require(1 <= request.count <= MAX_DRAWN, "count", f"is {request.count:,}; must be 1 to {MAX_DRAWN}")
    if request.HasField("lease"):
        seconds = request.lease.seconds + request.lease.nanos / 1e9
        faults.require(
            0 < seconds <= MAX_LEASE_SECONDS, "lease", f"is {seconds:g} s; must be above 0 and at most a day"
        )
    if request.HasField("served_after"):
        try:
            convert.moment(request.served_after)
        except ValueError:
            faults.add("served_after", "is out of range; must be between the years 1 and 9999")
    faults.raise_if_any()


def check_report(request: feedback_pb2.ReportQualityRequest, now: datetime) -> None:
    """Raises PithError INVALID_ARGUMENT that names every field at fault."""
    faults = Violations()
    _check_id(faults, "evaluator", request.evaluator)
    for field, most in (("scores", MAX_SCORED_SAMPLES), ("bounds", MAX_BOUNDS), ("withdrawals", MAX_BOUNDS)):
        size = len(getattr(request, field))
        faults.require(size <= most, field, f"has {size:,} entries; at most {most:,}")
    faults.raise_if_any()
    for index, entry in enumerate(request.scores):
        _check_scores(faults, f"scores[{index}]", entry)
    for index, bound in enumerate(request.bounds):
        _check_bound(faults, f"bounds[{index}]", bound, now)
    for index, withdrawal in enumerate(request.withdrawals):
        _check_withdrawal(faults, f"withdrawals[{index}]", withdrawal)
    check_text(faults, "code_revision", request.code_revision, MAX_ID_CHARACTERS)
    for sample_id in _repeated(entry.sample_id for entry in request.scores):
        faults.add("scores", f"holds sample {sample_id!r} more than once")
    reported = [bound.cell for bound in request.bounds]
    for cell in _repeated((cell.model, cell.task, cell.directive, cell.tenant) for cell in reported):
        faults.add("bounds", f"holds more than one of cell ({', '.join(filter(None, cell))})")
    faults.raise_if_any()


def _check_scores(faults: Violations, at: str, entry: feedback_pb2.SampleScores) -> None:
    _check_id(faults, f"{at}.sample_id", entry.sample_id)
    for index, score in enumerate(entry.scores):
        _check_judged(faults, f"{at}.scores[{index}]", score.directive, score.directive_revision)
        _check_id(faults, f"{at}.scores[{index}].judge", score.judge)
        for field in ("quality", "baseline_quality"):
            value = getattr(score, field)
            faults.require(0 <= value <= 1, f"{at}.scores[{index}].{field}", f"is {value:g}; must be in [0, 1]")
        if score.HasField("comparison"):
            _check_comparison(faults, f"{at}.scores[{index}].comparison", score.comparison)
    for index, answer in enumerate(entry.answers):
        _check_judged(faults, f"{at}.answers[{index}]", answer.directive, answer.directive_revision)
    for name, revision in _repeated((score.directive, score.directive_revision) for score in entry.scores):
        faults.add(f"{at}.scores", f"holds more than one of {name} at revision {revision}")


def _check_comparison(faults: Violations, at: str, comparison: feedback_pb2.Comparison) -> None:
    for field in ("shown_first", "shown_second"):
        value = getattr(comparison, field)
        faults.require(0 <= value <= 1, f"{at}.{field}", f"is {value:g}; must be in [0, 1]")
    for field in ("characters", "baseline_characters"):
        characters = getattr(comparison, field)
        faults.require(
            characters <= MAX_COMPARED_CHARACTERS,
            f"{at}.{field}",
            f"is {characters:,}; at most {MAX_COMPARED_CHARACTERS:,}",
        )


def _check_bound(faults: Violations, at: str, bound: feedback_pb2.QualityBound, now: datetime) -> None:
    _check_cell(faults, f"{at}.cell", bound.cell)
    _check_revision(faults, at, bound.directive_revision)
    _check_id(faults, f"{at}.judge", bound.judge)
    for field in ("lower", "upper", "share", "raw.lower", "raw.upper", "raw.share"):
        value = attrgetter(field)(bound)
        faults.require(
            math.isfinite(value) and value >= 0, f"{at}.{field}", f"is {value:g}; must be finite and at least 0"
        )
    faults.require(not bound.lower > bound.upper, f"{at}.lower", f"is {bound.lower:g}, above upper {bound.upper:g}")
    faults.require(
        0 <= bound.absolute_lower <= 1, f"{at}.absolute_lower", f"is {bound.absolute_lower:g}; must be in [0, 1]"
    )
    # Otherwise it says the opposite of absolute_lower, or nothing: NaN would close no directive and open none.
    faults.require(
        not bound.HasField("absolute_upper") or bound.absolute_lower <= bound.absolute_upper <= 1,
        f"{at}.absolute_upper",
        f"is {bound.absolute_upper:g}; must be in [absolute_lower, 1]",
    )
    faults.require(
        1 <= bound.samples <= MAX_SAMPLES, f"{at}.samples", f"is {bound.samples:,}; must be 1 to {MAX_SAMPLES:,}"
    )
    try:
        updated_at = convert.moment(bound.updated_at) if bound.HasField("updated_at") else None
    except ValueError:
        updated_at = None
    if faults.require(updated_at is not None, f"{at}.updated_at", "is missing or out of range") and updated_at:
        faults.require(
            updated_at <= now + CLOCK_SKEW,
            f"{at}.updated_at",
            f"is {updated_at.isoformat()}, in the future; the router's time is {now.isoformat()}",
        )
    try:
        convert.to_bound(bound)
    except ValueError as error:
        faults.add(
            f"{at}.method" if "BoundMethod" in str(error) else f"{at}.since", f"is not known or out of range: {error}"
        )


def _check_withdrawal(faults: Violations, at: str, withdrawal: feedback_pb2.Withdrawal) -> None:
    _check_cell(faults, f"{at}.cell", withdrawal.cell)
    check_text(faults, f"{at}.judge", withdrawal.judge, MAX_ID_CHARACTERS)
    known = withdrawal.reason in feedback_pb2.WithdrawalReason.values()
    faults.require(known and withdrawal.reason != 0, f"{at}.reason", "is missing or not known")
    if withdrawal.HasField("floor"):
        quality, kind = withdrawal.floor.quality, withdrawal.floor.kind
        faults.require(0 < quality <= 1, f"{at}.floor.quality", f"is {quality:g}; must be above 0 and at most 1")
        faults.require(kind in (1, 2), f"{at}.floor.kind", "is missing or not known")


def _check_cell(faults: Violations, at: str, cell: feedback_pb2.Cell) -> None:
    _check_id(faults, f"{at}.model", cell.model)
    check_text(faults, f"{at}.task", cell.task, MAX_ID_CHARACTERS)
    check_name(faults, f"{at}.directive", cell.directive)
    check_text(faults, f"{at}.tenant", cell.tenant, MAX_ID_CHARACTERS)


def _check_judged(faults: Violations, at: str, directive: str, revision: int) -> None:
    check_name(faults, f"{at}.directive", directive)
    _check_revision(faults, at, revision)


def _check_revision(faults: Violations, at: str, revision: int) -> None:
    faults.require(
        1 <= revision <= MAX_REVISION, f"{at}.directive_revision", f"is {revision:,}; must be 1 to {MAX_REVISION:,}"
    )


def _check_id(faults: Violations, field: str, value: str) -> None:
    if faults.require(value != "", field, "is empty"):
        check_text(faults, field, value, MAX_ID_CHARACTERS)


def _repeated(keys: Iterable[Key]) -> list[Key]:
    return [key for key, count in Counter(keys).items() if count > 1]
