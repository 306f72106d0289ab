"""What a replayed policy is, and all that it gets to see.

Two kinds of policy exist. One that plays fair is made of a `Setting` and sees an `Hour` after another: requests, the
intensity up to now, what it served, and what it has judged at its own cost. Neither holds a label (unless the operator
shows labels), an extreme of the year, a cost that was not met or an hour to come. The published policies and the bounds
are made of a `Truth` as well (router/replay/truth.py), which holds all of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from router.replay.recordings import Bools, Composite, Floats, Ints, Quality

FOLDS = 5
"""Prompts recur in a replay: what predicts for a prompt of fold f must not have seen any prompt of fold f."""
MOST_LABELLED = 100
"""Prompts a task that an operator is taken to have labelled."""


class Scope(StrEnum):
    """What a floor holds for."""

    WINDOW = "window"
    """All requests of the window together."""
    TASK = "task"
    """The requests of every task, by themselves."""


class Texts(Protocol):
    """Prompts' texts, by prompt. Raises LookupError for a prompt that was neither requested yet nor labelled."""

    def __getitem__(self, prompt: int) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Prompts whose task the operator has told, at most MOST_LABELLED a task.

    Attributes:
        prompts: [labelled].
        task: Place in `Setting.tasks`, [labelled].
    """

    prompts: Ints
    task: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What is agreed before the first request.

    Attributes:
        levels: Names; the first is L0. Action i is level i; actions from len(levels) on are the policy's composites.
        tasks: Names of the tasks that operators tell apart.
        checkable: Whether a task's answers can be graded, [tasks]; their quality is accuracy where that is asked for.
        quality, floor, scope: What must be kept: this share of L0's quality, over the window or over it for every task.
        hours: Length of the window.
        requests_per_hour: Mean that the operator expects.
        embodied_grams_per_second: Of the device.
        folds: Fold of each prompt, [prompts], in [0, FOLDS): by a hash of its text.
        labelled: By fold: labelled prompts of the other folds.
        texts: Of prompts.
        seed: Of the policy's own draws.
    """

    levels: tuple[str, ...]
    tasks: tuple[str, ...]
    checkable: Bools
    quality: Quality
    floor: float
    scope: Scope
    hours: int
    requests_per_hour: float
    embodied_grams_per_second: float
    folds: Ints
    labelled: Mapping[int, Labelled]
    texts: Texts
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Hour:
    """An hour's requests, before they are answered.

    Attributes:
        index: From 0.
        start: Of the hour, UTC.
        g_per_kwh: Hourly intensity from the beginning of the trace up to now; the last is this hour's.
        requests: Serial numbers, ascending through the whole replay, [requests].
        prompts: [requests].
        tasks: True tasks, [requests]; None unless the operator shows labels.
    """

    index: int
    start: datetime
    g_per_kwh: Floats
    requests: Ints
    prompts: Ints
    tasks: Ints | None

    @property
    def intensity(self) -> float:
        """gCO2eq/kWh, now."""
        return float(self.g_per_kwh[-1])

    def history(self, hours: int) -> Sequence[tuple[datetime, float]]:
        """The last hours as an intensity provider tells of them, oldest first; this hour is the last."""
        past = self.g_per_kwh[-hours:].tolist()
        return [(self.start - timedelta(hours=len(past) - 1 - place), value) for place, value in enumerate(past)]


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a policy's decision led to, as its meters show it.

    Attributes:
        hour: Index of it.
        requests, prompts, actions: As they were asked for and decided, [requests].
        level: Whose answer was served, [requests].
        joules, seconds: Measured, [requests, levels]; NaN where the level was not generated.
    """

    hour: int
    requests: Ints
    prompts: Ints
    actions: Ints
    level: Ints
    joules: Floats
    seconds: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Evaluator samples: requests whose other levels were generated too, and judged.

    Attributes:
        prompts: [samples].
        joules, seconds: Measured, [samples, levels]; NaN where the level was not generated.
        preference: [samples, levels], as in `RecordedSet`; NaN unless all levels were generated, as the judge compares
            all.
        accuracy: [samples, levels], as in `RecordedSet`; NaN where not generated, and for tasks without grader.
        generated: Whether each action would have generated each level, [samples, actions, levels], and
        served: whose answer it would have served, [samples, actions]: what a composite comes to can be told once all
            levels are there. False and -1 where they are not.
    """

    prompts: Ints
    joules: Floats
    seconds: Floats
    preference: Floats
    accuracy: Floats
    generated: Bools
    served: Ints


class Evaluator(Protocol):
    """Judges at the policy's cost, at the present hour's intensity. Samples make the hour an evaluator run."""

    def judge(self, requests: Ints, levels: Sequence[int] | None = None) -> Judged:
        """Judges requests that were served in earlier hours; levels that were generated for them already cost nothing.

        Args:
            requests: Serial numbers, [samples].
            levels: Of which answers are wanted; default: all. The judge of preference needs all.

        Raises ValueError for a request that was not served yet.
        """
        ...

    def charge(self, joules: float, seconds: float, samples: int = 0) -> None:
        """Puts other work of the policy on its evaluator's bill: training, or samples that were drawn otherwise."""
        ...


class ReplayPolicy(Protocol):
    """Decides an hour's requests at once. `decide` and `observe` are called once an hour, in order."""

    @property
    def composites(self) -> Sequence[Composite]:
        """Actions beside the levels. Read once, before the first hour."""
        ...

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        """An action for each request, [requests]."""
        ...

    def observe(self, served: Served) -> None:
        """What came of it."""
        ...
