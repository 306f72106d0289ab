"""SPROUT and its STATIC ablation as published (EMNLP 2024): one mix of levels for all requests, drawn blindly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from router.replay.policies.interface import Evaluator, Hour, Served, Setting
from router.replay.policies.published_floor import floor_share, shares
from router.replay.recordings import Composite, Floats, Ints
from router.replay.truth import Truth

SAMPLES: Final = 1000
GRACE_HOURS: Final = 6
MOST_IDLE_HOURS: Final = 72
URGENCY_PER_HOUR: Final = 0.029
PREVIOUS_HOURS: Final = 720
FIRST_WINDOW_HOUR: Final = 800
"""Start of the published evaluation's first window, which has no window before it."""


class Sprout:
    """Each hour its linear programme with the true mean costs of the hour's mix and the newest evaluation's
    preferences; each request a draw by its shares.

    The evaluator judges 1,000 prompts of the hour's mix. Its trigger and its sample are as published, with the window's
    mean as look-ahead; the carbon of all levels of its samples is charged, which the published totals leave out.
    """

    composites: Sequence[Composite] = ()

    def __init__(self, setting: Setting, truth: Truth) -> None:
        self._truth = truth
        # Apart, so that what the evaluator draws does not depend on how many requests there were.
        self._assigning, self._sampling = np.random.default_rng(setting.seed).spawn(2)
        self._last_run = 0
        self._preference: Floats | None = None

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        truth = self._truth
        mix = truth.demand.mix[hour.index]
        if self._preference is None or runs(truth.window, hour.index, self._last_run):
            self._last_run = hour.index
            sample = truth.pool(self._sampling, mix, SAMPLES)
            recorded = truth.recorded
            evaluator.charge(float(recorded.joules[sample].sum()), float(recorded.seconds[sample].sum()), len(sample))
            self._preference = recorded.preference[sample].mean(axis=0)
        grams = truth.grams(mix @ truth.task_joules, mix @ truth.task_seconds, hour.intensity)
        chosen = shares(grams, self._preference, floor_share(hour.intensity, truth.trace.year, truth.xi))
        return self._assigning.choice(len(chosen), size=len(hour.prompts), p=chosen)

    def observe(self, served: Served) -> None:
        pass


def runs(window: Floats, hour: int, last_run: int) -> bool:
    """The published trigger: soon after intensity, made to grow with the time since the last run, has turned up from a
    low, and never above the mean of the window, which is known beforehand."""
    idle = hour - last_run
    if idle <= GRACE_HOURS:
        return False
    if idle >= MOST_IDLE_HOURS:
        return True
    if window[hour] > window.mean():
        return False
    before, at_low, now = (
        float(window[place]) * math.exp(URGENCY_PER_HOUR * (place - last_run)) for place in (hour - 2, hour - 1, hour)
    )
    return at_low - before <= 0 <= now - at_low


class Static:
    """One mix for the whole window: the same linear programme with true preferences and costs of the window's mean mix,
    at the year's mean intensity; for windows after the published first one, at that of the 720 hours before."""

    composites: Sequence[Composite] = ()

    def __init__(self, setting: Setting, truth: Truth) -> None:
        self._rng = np.random.default_rng(setting.seed)
        mix = truth.demand.mix.mean(axis=0)
        intensity = truth.trace.year.mean
        if truth.start_hour > FIRST_WINDOW_HOUR:
            intensity = float(truth.trace.g_per_kwh[: truth.start_hour][-PREVIOUS_HOURS:].mean())
        grams = truth.grams(mix @ truth.task_joules, mix @ truth.task_seconds, intensity)
        floor = floor_share(intensity, truth.trace.year, truth.xi)
        self._shares = shares(grams, mix @ truth.task_preference, floor)

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        return self._rng.choice(len(self._shares), size=len(hour.prompts), p=self._shares)

    def observe(self, served: Served) -> None:
        pass
