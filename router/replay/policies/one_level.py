"""BASE and CO2_OPT: every request at one level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.replay.policies.interface import Evaluator, Hour, Served
from router.replay.recordings import BASELINE, Composite, Ints
from router.replay.truth import Truth


class Base:
    """Every request at L0: what carbon and quality are shares of."""

    composites: Sequence[Composite] = ()

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        return np.full(len(hour.prompts), BASELINE)

    def observe(self, served: Served) -> None:
        pass


class Co2Opt:
    """Every request at the level that emits least in the hour's mix, whatever its quality (SPROUT's CO2_OPT)."""

    composites: Sequence[Composite] = ()

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        truth = self._truth
        mix = truth.demand.mix[hour.index]
        grams = truth.grams(mix @ truth.task_joules, mix @ truth.task_seconds, hour.intensity)
        return np.full(len(hour.prompts), int(grams.argmin()))

    def observe(self, served: Served) -> None:
        pass
