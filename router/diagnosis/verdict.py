"""What a diagnosis means for an operator: one sentence a task."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.quality.interval import Interval
from router.diagnosis.diagnose import Saving, TaskDiagnosis, candidate
from router.diagnosis.published import PublishedQuality

LITTLE_SAVED: Final = 0.05
"""Below, at the interval's upper end, a saving is hardly any."""
LITTLE_IN_ANSWERS: Final = 0.15
"""Below, of the task's energy, there is hardly anything that shorter answers could save."""
WIDE: Final = 0.5
SMALL: Final = 0.25
"""An interval wider than the one that begins below the other says too little to act on."""


class Outlook(Enum):
    SAVES = "saves"
    HARDLY = "hardly"
    """Nothing to save."""
    UNSURE = "unsure"
    """It may save, and it may not, or nobody knows how much."""
    QUALITY = "quality"
    """It would save, and published quality falls."""
    UNKNOWN = "unknown"
    """No directive is known well enough."""


@dataclass(frozen=True, slots=True)
class Verdict:
    outlook: Outlook
    sentence: str


def verdict(found: TaskDiagnosis, floor: float) -> Verdict:
    """Of a task, at the share `floor` of L0's quality."""
    likeliest = [saving for saving in found.savings if saving.share]
    if not likeliest:
        return Verdict(Outlook.UNKNOWN, "cannot say: no evidence of these directives")
    most = max(likeliest, key=lambda saving: saving.share.upper if saving.share else 0.0)
    assert most.share is not None
    if most.share.upper < LITTLE_SAVED or found.answers_share[1] < LITTLE_IN_ANSWERS:
        lengths = f"{found.output_tokens:,.0f} output tokens after {found.input_tokens:,.0f} input tokens"
        what = "hardly anything to save" if most.share.upper > 0 else "directives would cost energy"
        return Verdict(Outlook.HARDLY, f"{what}: {lengths}")
    best = candidate(found, floor)
    if best is None:
        return _refused(most)
    assert best.share is not None
    said = f"{best.directive} saves {span(best.share)}{'' if best.known else ', going by other tasks'}"
    quality = _quality(best.quality, floor)
    lower, upper = best.share.lower, best.share.upper
    if lower <= 0 or (lower < SMALL and upper - lower > WIDE):
        said = f"cannot say: {best.directive} saves between {_percent(lower)} and {_percent(upper)}"
        return Verdict(
            Outlook.UNSURE,
            "; ".join(part for part in (said, *_why_wide(found, best), *_warnings(best), quality) if part),
        )
    return Verdict(Outlook.SAVES, "; ".join(part for part in (said, *_warnings(best), quality) if part))


def span(share: Interval) -> str:
    """E.g. "62 % (51 to 70 %)"."""
    return f"{_percent(share.value)} ({round(100 * share.lower)} to {_percent(share.upper)})"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"


def _refused(most: Saving) -> Verdict:
    assert most.share is not None
    if most.quality is None:
        return Verdict(Outlook.UNSURE, f"do not expect any: {most.directive} saves {span(most.share)}")
    said = f"do not expect it: published measurements show that {_change(most.quality)}"
    return Verdict(Outlook.QUALITY, f"{said} with {most.directive}, which saves {span(most.share)}")


def _quality(quality: PublishedQuality | None, floor: float) -> str:
    if quality is None:
        return ""
    if quality.stays_above(floor):
        return f"published quality holds: {_change(quality)}"
    return f"published quality does not decide it: {_change(quality)}"


def _change(quality: PublishedQuality) -> str:
    figures = f"{100 * quality.before:.1f} -> {100 * quality.after:.1f} %"
    if quality.judged:
        return f"a judge prefers the answer less often ({figures}, of three)"
    went = "falls" if quality.after < quality.before else "rises"
    return f"accuracy {went} ({figures})"


def _why_wide(found: TaskDiagnosis, best: Saving) -> list[str]:
    why = []
    if not best.known:
        why.append("the task is not known to the evidence")
    least, most = found.answers_share
    if most - least > 0.2:
        why.append(f"answers are {100 * least:.0f} to {_percent(most)} of its energy, by how many decode together")
    return why


def _warnings(best: Saving) -> list[str]:
    outside = best.extrapolated_share
    return [f"{_percent(outside)} of the answers are of lengths that the evidence has few of"] if outside > 0.2 else []
