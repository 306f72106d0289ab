"""What a directive did to a few prompts, beside L0 on the same ones: tokens, quality, energy, and what to do next.

Quality is bounded as the evaluator bounds it (`confidence`), so that a trial and an evaluation that saw the same scores
come to the same verdict. Tokens and energy have no largest value to bet on: their share is the ratio of two means, and
its interval that of Student's t on the logarithm, with the variance of the ratio by linearisation (Cochran, "Sampling
Techniques", 3rd ed., eq. 6.13). That one is approximate, and holds for the number of samples that was fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from common.quality.confidence import SHARE_LIMIT, ShareSequence
from common.quality.interval import Interval

MAX_TRIAL_SAMPLES = 200
DEFAULT_TRIAL_SAMPLES = 30
DEFAULT_TRIAL_FLOOR = 0.95
SHARE_CONFIDENCE = 0.95
SHARE_METHOD = "Student's t on the logarithm of a ratio of means"
QUALITY_METHOD = "betting confidence sequence, anytime-valid"
CUT_METHOD = "cut at what the quality of L0 on these samples leaves room for"
SHOWN_PAIRS = 3
FORESEEABLE_SAMPLES = 10_000
"""Beyond so many, a forecast from a few samples is worth nothing."""


@dataclass(frozen=True, slots=True)
class TriedAnswer:
    """One answer; quality in [0, 1], energy None where unknown."""

    text: str
    output_tokens: int
    quality: float
    energy_joules: float | None


@dataclass(frozen=True, slots=True)
class TrialPair:
    """L0's answer and the directive's to the prompt of one sample."""

    sample_id: str
    baseline: TriedAnswer
    answer: TriedAnswer


class Recommendation(StrEnum):
    """The names of pith.evaluator.v1.Recommendation without its prefix."""

    ADOPT = "ADOPT"
    MORE_SAMPLES = "MORE_SAMPLES"
    REJECT_QUALITY = "REJECT_QUALITY"
    REJECT_SAVING = "REJECT_SAVING"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of a trial. Tokens and qualities are means an answer; shares are of L0's, None where unknown."""

    samples: int
    output_tokens: float
    baseline_output_tokens: float
    token_share: Interval | None
    """None for a single sample: nothing tells how much it scatters."""
    quality: float
    baseline_quality: float
    quality_share: Interval | None
    """None where L0 scored nothing."""
    energy_share: Interval | None
    """None where the energy of an answer is unknown."""
    recommendation: Recommendation
    explanation: str
    pairs: tuple[TrialPair, ...]
    """A few that differ most."""


def summarise(pairs: Sequence[TrialPair], floor: float, alpha: float = 0.05) -> TrialResult:
    """What the answers say, in the order in which their samples were drawn.

    Args:
        floor: the share of L0's quality that should be kept, in (0, 1].
        alpha: error probability of each bound of the quality.

    Raises:
        ValueError: there is no pair, or a quality outside [0, 1].
    """
    if not pairs:
        raise ValueError("pairs must not be empty")
    sequence = ShareSequence(alpha)
    for pair in pairs:
        sequence.update(pair.answer.quality, pair.baseline.quality)
    tokens = [(pair.answer.output_tokens, pair.baseline.output_tokens) for pair in pairs]
    joules = [(pair.answer.energy_joules, pair.baseline.energy_joules) for pair in pairs]
    known = [(own, of_l0) for own, of_l0 in joules if own is not None and of_l0 is not None]
    token_share = ratio_of_means(tokens)
    baseline_quality = math.fsum(pair.baseline.quality for pair in pairs) / len(pairs)
    quality_share = None
    if sequence.share is not None:
        quality_share = _possible(sequence, sequence.share, baseline_quality, 1 - 2 * alpha)
    recommendation, explanation = _recommended(token_share, quality_share, sequence, floor)
    return TrialResult(
        samples=len(pairs),
        output_tokens=math.fsum(own for own, _ in tokens) / len(pairs),
        baseline_output_tokens=math.fsum(of_l0 for _, of_l0 in tokens) / len(pairs),
        token_share=token_share,
        quality=math.fsum(pair.answer.quality for pair in pairs) / len(pairs),
        baseline_quality=baseline_quality,
        quality_share=quality_share,
        energy_share=ratio_of_means(known) if len(known) == len(pairs) else None,
        recommendation=recommendation,
        explanation=explanation,
        pairs=_most_different(pairs),
    )


def _possible(sequence: ShareSequence, share: float, baseline_quality: float, confidence: float) -> Interval:
    """The share's interval, within what is possible on samples of this mean L0 quality, as no answer scores above 1.

    A share of at most 1 is never cut off, so of a directive no better than L0 the interval holds it as often as it
    says. Of a better one it may not: on other samples L0 may score less, and leave more room than on these.
    """
    # Rounding must not push the limit below the share itself.
    limit = max(share, 1 / baseline_quality)
    if sequence.upper <= limit:
        return Interval(share, sequence.lower, sequence.upper, confidence, QUALITY_METHOD)
    return Interval(share, min(sequence.lower, limit), limit, confidence, f"{QUALITY_METHOD}; {CUT_METHOD}")


def ratio_of_means(pairs: Sequence[tuple[float, float]], confidence: float = SHARE_CONFIDENCE) -> Interval | None:
    """Mean of the first of each pair over that of the second, all at least 0.

    None for fewer than two pairs, and where the second are all 0.
    """
    values = np.array(pairs, dtype=np.float64)  # [pairs, 2]
    if len(values) < 2 or values[:, 1].sum() == 0:
        return None
    share = float(values[:, 0].sum() / values[:, 1].sum())
    if share == 0:
        return Interval(0.0, 0.0, 0.0, confidence, SHARE_METHOD)
    residuals = values[:, 0] - share * values[:, 1]
    error = float(np.sqrt(residuals @ residuals / ((len(values) - 1) * len(values))) / values[:, 0].mean())
    width = student_t(confidence, len(values) - 1) * error
    return Interval(share, share * math.exp(-width), share * math.exp(width), confidence, SHARE_METHOD)


def student_t(confidence: float, degrees_of_freedom: int) -> float:
    """What |t| stays below with this probability.

    By the arc tangent of t / sqrt(n), whose density is proportional to cos^(n - 1), on an even grid.
    """
    angle = np.linspace(0.0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (degrees_of_freedom - 1)
    below = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(degrees_of_freedom) * math.tan(float(np.interp(confidence, below / below[-1], angle)))


def _recommended(
    tokens: Interval | None, quality: Interval | None, sequence: ShareSequence, floor: float
) -> tuple[Recommendation, str]:
    if quality is not None and quality.upper < floor:
        return Recommendation.REJECT_QUALITY, (
            f"It keeps at most {_percent(quality.upper)} of L0's quality, below the floor of {_percent(floor)}. "
            "Word it less strictly, or use it for another task."
        )
    if tokens is not None and tokens.value >= 1:
        return Recommendation.REJECT_SAVING, (
            f"It takes {_percent(tokens.value)} of L0's output tokens: nothing is saved. "
            "Word it more strictly, or cap the answer's tokens."
        )
    if quality is None:
        return Recommendation.MORE_SAMPLES, (
            "L0 scored nothing on these samples, so there is no quality to keep a share of. "
            "Check the task's grader and references before another trial."
        )
    saves = tokens is not None and tokens.upper < 1
    if saves and quality.lower >= floor:
        assert tokens is not None
        return Recommendation.ADOPT, (
            f"It takes {_percent(tokens.value)} of L0's output tokens and keeps at least {_percent(quality.lower)} of "
            f"L0's quality; the floor is {_percent(floor)}. Create it and allow it in a policy: it is served once the "
            "evaluator has judged it as well."
        )
    taken = "" if tokens is None else f"It takes {_percent(tokens.value)} of L0's output tokens"
    if tokens is not None and not saves:
        taken += f", at most {_percent(tokens.upper)}, which need not be a saving"
    kept = (
        f"it keeps at least {_percent(quality.lower)} of L0's quality"
        if sequence.upper >= SHARE_LIMIT or quality.upper < sequence.upper
        else f"it keeps between {_percent(quality.lower)} and {_percent(quality.upper)} of L0's quality"
    )
    told = f"{taken}; {kept}" if taken else f"I{kept[1:]}"
    further = _next(tokens, quality, sequence, floor)
    return Recommendation.MORE_SAMPLES, f"{told}; the floor is {_percent(floor)}. {further}"


def _next(tokens: Interval | None, quality: Interval, sequence: ShareSequence, floor: float) -> str:
    """How many samples would decide, as far as those so far tell."""
    needed: int | None = sequence.samples + 1
    if quality.lower < floor:
        needed = sequence.samples_to_exclude(floor, FORESEEABLE_SAMPLES)
    if needed is None:
        return (
            f"Even {FORESEEABLE_SAMPLES:,} samples like these would not decide: its quality is about at the floor. "
            "Word it less strictly, or lower the floor."
        )
    if tokens is None:
        needed = max(needed, DEFAULT_TRIAL_SAMPLES)
    elif tokens.upper >= 1:
        # Widths shrink with the square root of the number of samples.
        wider = math.log(tokens.upper / tokens.value) / -math.log(tokens.value)
        needed = max(needed, math.ceil(min(sequence.samples * wider**2, FORESEEABLE_SAMPLES)))
    needed = max(needed, sequence.samples + 1)
    if needed <= MAX_TRIAL_SAMPLES:
        return f"About {needed} samples like these would decide: try it again with so many."
    return (
        f"About {needed:,} samples like these would decide, more than the {MAX_TRIAL_SAMPLES} of a trial: create it "
        "and allow it in a policy, and the evaluator decides as samples come in."
    )


def _most_different(pairs: Sequence[TrialPair]) -> tuple[TrialPair, ...]:
    def difference(pair: TrialPair) -> tuple[float, int]:
        return (
            abs(pair.answer.quality - pair.baseline.quality),
            abs(pair.answer.output_tokens - pair.baseline.output_tokens),
        )

    differing = [pair for pair in pairs if pair.answer.text != pair.baseline.text]
    return tuple(sorted(differing, key=difference, reverse=True)[:SHOWN_PAIRS])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
