"""Whether what is asked for under a task's name is still what its scores are of.

Requests are put into categories, by the length of their prompt (powers of two of its characters) and by tenant; text is
never looked at. What was asked for when the scores were gathered is held against the last 24 h: all samples that were
kept of either day, since scores are of a uniform draw from these and are fewer. Whole days, so that the daily rhythm is
no shift.

Between the shares p and q of the categories lies the total variation distance TV = 1/2 sum_c |p_c - q_c|: the largest
share of today's requests that the scores need say nothing of. Of n and m independent samples, the distance of the
observed shares exceeds TV by no more than

    1/2 sum_c sqrt(p_c (1 - p_c) / n + q_c (1 - q_c) / m)    in the mean (Jensen's inequality for each category), and
    sqrt(log(1 / alpha) / 2 * (1 / n + 1 / m))               beyond that, but with probability alpha (McDiarmid 1989).

What is left of it is a lower confidence bound, and that decides. Few samples leave nothing: then nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LEAST_SHIFT: Mapping[str, float] = {"length": 0.25, "tenant": 0.5}
"""Total variation distance from which on scores no longer count. By length: what holds for three requests of four may
hold still. By tenant: from one day to the next it is often above 1/4 where nothing else has changed
(`tests/bench/task_mix.py`), for tenants have days on and days off; and tenants have bounds of their own."""
ALPHA = 0.01
"""Probability of a false alarm at a distance of just LEAST_SHIFT, in one look at a cell; far less below."""
LEAST_SAMPLES = 50
"""Of each day, below which nothing is said."""
DAY_SECONDS = 24 * 3600.0
MAX_TENANTS = 20
"""Told apart; the others, of fewest samples, count as one."""


@dataclass(frozen=True, slots=True)
class Part:
    """Samples of one category: of the scores' day, and of the last."""

    before: int
    recent: int


@dataclass(frozen=True, slots=True)
class Shift:
    """A mix that has changed: by what trait, how far, and how far at least."""

    trait: str
    distance: float
    lower: float


@dataclass(frozen=True, slots=True)
class TaskMix:
    """What was asked for and is: samples by category, for each of two traits."""

    lengths: Mapping[str, Part] = field(default_factory=dict)
    """By log2 of the prompt's characters, rounded down."""
    tenants: Mapping[str, Part] = field(default_factory=dict)

    def shift(self) -> Shift | None:
        """The larger one, where the mix by some trait has changed; else None."""
        traits = {"length": self.lengths, "tenant": largest(self.tenants)}
        shifts = [Shift(trait, *distance(parts.values(), ALPHA / len(traits))) for trait, parts in traits.items()]
        found = [shift for shift in shifts if shift.lower >= LEAST_SHIFT[shift.trait]]
        return max(found, key=lambda shift: shift.lower, default=None)


def distance(parts: Iterable[Part], alpha: float) -> tuple[float, float]:
    """Total variation distance of two days' samples, and its lower bound with probability 1 - alpha: both 0 where
    either day has fewer than LEAST_SAMPLES.

    alpha: in (0, 1).
    """
    counts = [(part.before, part.recent) for part in parts]
    before, recent = sum(n for n, _ in counts), sum(m for _, m in counts)
    if min(before, recent) < LEAST_SAMPLES:
        return 0.0, 0.0
    shares = [(n / before, m / recent) for n, m in counts]
    observed = sum(abs(p - q) for p, q in shares) / 2
    noise = sum(math.sqrt(p * (1 - p) / before + q * (1 - q) / recent) for p, q in shares) / 2
    chance = math.sqrt(math.log(1 / alpha) / 2 * (1 / before + 1 / recent))
    return observed, max(observed - noise - chance, 0.0)


def largest(parts: Mapping[str, Part]) -> Mapping[str, Part]:
    """The MAX_TENANTS categories of most samples, both days together, and all others as one, under ""."""
    ranked = sorted(parts, key=lambda name: (-parts[name].before - parts[name].recent, name))
    told, others = set(ranked[:MAX_TENANTS]) - {""}, set(ranked[MAX_TENANTS:]) | ({""} & set(parts))
    found = {name: parts[name] for name in sorted(told)}
    if others:
        found[""] = Part(sum(parts[name].before for name in others), sum(parts[name].recent for name in others))
    return found
