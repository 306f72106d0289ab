"""What nobody who serves could know: labels, all costs and judgements, the hours to come, the extremes of the year.

The published policies and the bounds on what any policy could reach are made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.carbon.accounting import JOULES_PER_KWH
from router.replay.demand import Demand
from router.replay.recordings import Bools, Floats, Ints, RecordedSet
from router.replay.trace import Trace


@dataclass(frozen=True, eq=False)
class Truth:
    """A replay's hidden side.

    Attributes:
        recorded: All of it.
        trace: All of it; the window begins at `start_hour`.
        demand: The window's.
        embodied_grams_per_second: Of the device.
        xi: The published policies' greatest loss of preference, at the year's dirtiest hour.
    """

    recorded: RecordedSet
    trace: Trace
    start_hour: int
    demand: Demand
    embodied_grams_per_second: float
    xi: float

    @cached_property
    def window(self) -> Floats:
        """gCO2eq/kWh of the window, [hours]."""
        return self.trace.g_per_kwh[self.start_hour : self.start_hour + len(self.demand.requests)]

    @cached_property
    def task_joules(self) -> Floats:
        """Mean of a request, [tasks, levels]."""
        return self.recorded.means(self.recorded.joules)

    @cached_property
    def task_seconds(self) -> Floats:
        """Mean of a request, [tasks, levels]."""
        return self.recorded.means(self.recorded.seconds)

    @cached_property
    def task_preference(self) -> Floats:
        """Share of the judge's choices, [tasks, levels]."""
        return self.recorded.means(self.recorded.preference)

    @cached_property
    def task_accuracy(self) -> Floats:
        """[tasks, levels]; NaN for tasks without grader."""
        return self.recorded.means(self.recorded.accuracy)

    @property
    def checkable(self) -> Bools:
        return self.recorded.checkable

    def grams(self, joules: Floats, seconds: Floats, g_per_kwh: float | Floats) -> Floats:
        """C = CI x E + embodied rate x T (SPROUT, EMNLP 2024), PUE 1 as there."""
        return np.asarray(g_per_kwh * (joules / JOULES_PER_KWH) + self.embodied_grams_per_second * seconds)

    def pool(self, rng: np.random.Generator, mix: Floats, samples: int) -> Ints:
        """Prompts drawn from all recorded ones, of each task its share of the samples and all of it at
        most, [samples]."""
        counts = np.diff(np.rint(np.cumsum(mix) * samples), prepend=0.0).astype(int)
        drawn = []
        for task, count in enumerate(counts.tolist()):
            of = np.flatnonzero(self.recorded.task == task)
            drawn.append(rng.choice(of, min(len(of), count), replace=False))
        return np.concatenate(drawn)
