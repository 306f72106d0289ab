"""ORACLE as published (EMNLP 2024): SPROUT's shares with true preferences, given where they save most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.replay.policies.interface import Evaluator, Hour, Served
from router.replay.policies.published_floor import floor_share, shares
from router.replay.recordings import Composite, Floats, Ints
from router.replay.truth import Truth


class Oracle:
    """Each hour the linear programme with the true preferences of the hour's mix; of its two levels the one that emits
    less goes to the requests whose carbon it would lower most, as if that were known before they are answered.

    It ranks by true carbon, never by a request's own quality: it is no bound on what a policy could reach.
    """

    composites: Sequence[Composite] = ()

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        truth = self._truth
        mix = truth.demand.mix[hour.index]
        grams = truth.grams(mix @ truth.task_joules, mix @ truth.task_seconds, hour.intensity)
        floor = floor_share(hour.intensity, truth.trace.year, truth.xi)
        chosen = shares(grams, mix @ truth.task_preference, floor)
        recorded = truth.recorded
        own = truth.grams(recorded.joules[hour.prompts], recorded.seconds[hour.prompts], hour.intensity)
        return ranked(own, chosen, grams)

    def observe(self, served: Served) -> None:
        pass


def ranked(own: Floats, chosen: Floats, grams: Floats) -> Ints:
    """Levels by request: the shares' cheaper level to those that save most by it.

    Args:
        own: Carbon of each request, [requests, levels].
        chosen, grams: Share and mean carbon of each level, [levels]; at most two shares are above 0.
    """
    used = sorted(np.flatnonzero(chosen > 0).tolist(), key=lambda level: -grams[level])
    dearer, cheaper = used[0], used[-1]
    levels = np.full(len(own), dearer)
    brief = round(float(chosen[cheaper]) * len(own)) if cheaper != dearer else 0
    order = np.argsort(own[:, cheaper] - own[:, dearer], kind="stable")
    levels[order[:brief]] = cheaper
    return levels
