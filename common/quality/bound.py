"""What quality is known of and held against: cells, floors, scores, bounds, and the ends of what was known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from common.quality.confidence import check_quality
from common.quality.pairwise import Comparison

MAX_CLOCK_SKEW_SECONDS = 300.0
"""How far ahead of a router's clock the time of a bound may be."""


def is_of_future(at: datetime, now: datetime) -> bool:
    """Whether a time is so far ahead that the clock must have gone back since."""
    return (at - now).total_seconds() > MAX_CLOCK_SKEW_SECONDS


def beside(value: float, floor: float) -> str:
    """A bound as words about a floor have it: of three digits, or of more where they would read as the floor's."""
    digits = 3
    if abs(value - floor) < 1e-3 and value != floor:
        while digits < 9 and f"{value:.{digits}f}" == f"{floor:.{digits}f}":
            digits += 1
    return f"{value:.{digits}f}"


class FloorKind(StrEnum):
    """What a floor is measured against."""

    RELATIVE = "RELATIVE"
    """Share of L0's quality on the same prompts."""
    ABSOLUTE = "ABSOLUTE"
    """Mean quality itself."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The least quality that a directive must keep. Raises ValueError where it is outside (0, 1]."""

    quality: float
    kind: FloorKind

    def __post_init__(self) -> None:
        if not 0 < self.quality <= 1:
            raise ValueError(f"floor must be in (0, 1], got {self.quality!r}")


@dataclass(frozen=True, slots=True)
class Cell:
    """What one bound speaks of."""

    model: str
    """Name and digest, "name@digest"."""
    task: str
    directive: str
    tenant: str = ""
    """Empty: of all tenants together."""

    @property
    def of_all(self) -> Cell:
        """The same of all tenants together."""
        return Cell(self.model, self.task, self.directive) if self.tenant else self


@dataclass(frozen=True, slots=True)
class PairedScore:
    """Quality of one sample's answer under a directive and of the L0 answer to the same prompt, by one
    judge.

    cell is that of all tenants, and tenant whose request it was. revision identifies the directive's text (and whatever
    else must not change within one estimate); comparison is there where the answers were compared with one another.
    Raises ValueError, naming the field, for a quality outside [0, 1] or a naive datetime.
    """

    cell: Cell
    sample_id: str
    quality: float
    baseline_quality: float
    judge: str
    revision: str
    scored_at: datetime
    comparison: Comparison | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        check_quality("quality", self.quality)
        check_quality("baseline_quality", self.baseline_quality)
        if self.scored_at.tzinfo is None:
            raise ValueError(f"scored_at must carry a time zone, got {self.scored_at.isoformat()}")


class BoundMethod(StrEnum):
    """How a share and its bounds are made, and what they promise."""

    BETTING = "BETTING"
    """Confidence sequence by betting: holds at every time, whatever was looked at before."""
    LENGTH_CORRECTED = "LENGTH_CORRECTED"
    """Of a judge's preferences, at equal length and balanced order: an asymptotic confidence sequence."""


@dataclass(frozen=True, slots=True)
class RawShare:
    """The share of L0's quality by a judge's preferences as they were given, by betting."""

    lower: float
    upper: float
    share: float | None


@dataclass(frozen=True, slots=True)
class QualityBound:
    """Confidence bounds of one cell: of the share of L0's quality, and of the mean quality.

    share is the point estimate, None where L0 scored nothing; updated_at is the time of the latest score, since that of
    the earliest. raw is there where the method is LENGTH_CORRECTED.
    """

    cell: Cell
    lower: float
    upper: float
    share: float | None
    absolute_lower: float
    samples: int
    judge: str
    revision: str
    updated_at: datetime
    method: BoundMethod = BoundMethod.BETTING
    raw: RawShare | None = None
    since: datetime | None = None
    absolute_upper: float = 1.0

    def is_open(self, floor: float, floor_kind: FloorKind, now: datetime, max_age_seconds: float) -> bool:
        """Whether the directive may be served at that floor; never without samples, on a bound too old, or on one from
        the future: a clock that was set back would keep it fresh for good.
        """
        lower = self.lower if floor_kind is FloorKind.RELATIVE else self.absolute_lower
        return self.is_fresh(now, max_age_seconds) and lower >= floor

    def is_fresh(self, now: datetime, max_age_seconds: float) -> bool:
        """Whether it rests on samples, the latest of which is neither too old nor from the future."""
        age_seconds = (now - self.updated_at).total_seconds()
        return self.samples > 0 and -MAX_CLOCK_SKEW_SECONDS <= age_seconds <= max_age_seconds


class EpochReason(StrEnum):
    """Why what was known of a cell no longer holds."""

    REVISION = "REVISION"
    """The directive's text is another one."""
    DRIFT = "DRIFT"
    """Quality fell below a floor that had been cleared."""
    CONTRADICTION = "CONTRADICTION"
    """No single share agrees with all scores, so it has changed; and no floor is cleared (any more)."""
    TASK_MIX = "TASK_MIX"
    """What is asked for under the task's name is no longer what the scores are of."""
    JUDGE = "JUDGE"
    """Another judge's scores count, or the grader has other rules: what this one found stays, and decides nothing."""


@dataclass(frozen=True, slots=True)
class EpochStart:
    """A cell's estimate by one judge begins anew: until scores come in, its directive is closed."""

    cell: Cell
    judge: str
    reason: EpochReason
    at: datetime
    floor: Floor | None = None
    """The floor that was broken, for DRIFT."""
