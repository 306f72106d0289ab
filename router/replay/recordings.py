"""Requests that were answered at several levels: what each would have cost, and how good it would have been."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BASELINE = 0
"""Of a recorded set's levels: L0, no directive."""


class Quality(StrEnum):
    """What a floor is a share of."""

    PREFERENCE = "preference"
    """Of how often a judge who saw the answers of all levels chose the one that was served."""
    ACCURACY = "accuracy"
    """Of how often a grader found the answer right; for tasks that have no grader, of preference."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSet:
    """Prompts with what was measured of each at every level. A prompt is known by its place; NaN is not known.

    Attributes:
        ids: Of the prompts.
        texts: The prompts themselves.
        tasks: Names of the tasks.
        task: Place in `tasks` of each prompt's true task, [prompts].
        levels: Names of the levels; the first is L0.
        joules, seconds: Energy and device time of a request, [prompts, levels].
        preference: 1 where the judge chose the level, 0 where it chose another, [prompts, levels].
        accuracy: Grade of the answer against the reference, in [0, 1], [prompts, levels]; NaN for tasks without grader.
        answers: By level, a text a prompt; empty where the answer was not kept.
        notes: What a reader of the results should know of the file.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    task: Ints
    levels: tuple[str, ...]
    joules: Floats
    seconds: Floats
    preference: Floats
    accuracy: Floats
    answers: Mapping[str, Sequence[str]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def means(self, values: Floats) -> Floats:
        """Mean of `values` [prompts, levels] by task, [tasks, levels]; NaN where it is not known of a prompt."""
        counts = np.bincount(self.task, minlength=len(self.tasks))
        sums = [np.bincount(self.task, weights=column, minlength=len(self.tasks)) for column in values.T]
        return np.stack(sums, axis=1) / counts[:, None]

    @property
    def checkable(self) -> Bools:
        """Whether a task's answers have grades, [tasks]."""
        return np.asarray(~np.isnan(self.means(self.accuracy)).any(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How an action answers each prompt: which levels it generates, and whose answer it serves.

    Attributes:
        generated: [prompts, levels]; each is charged.
        served: Place of a level that is generated, [prompts].
    """

    generated: Bools
    served: Ints


@dataclass(frozen=True, slots=True)
class Composite:
    """An action beside the levels, such as a cascade: its cost and quality follow from recorded levels, so that nothing
    of it is assumed.

    Attributes:
        name: In the directive mix of a result; no level's name.
        course: Says how it answers each recorded prompt. It may use what a server would have at hand by then, such as
            the answers that it has generated so far; the replay calls it, no policy sees the set.
    """

    name: str
    course: Callable[[RecordedSet], Course]


@dataclass(frozen=True, slots=True, eq=False)
class Actions:
    """All that a policy may choose from: the levels, in their order, then its composites.

    Attributes:
        names: [actions].
        generated: [prompts, actions, levels].
        served: Level whose answer is served, [prompts, actions].
        joules, seconds: Of a request, all generated levels summed, [prompts, actions].
    """

    names: tuple[str, ...]
    generated: Bools
    served: Ints
    joules: Floats
    seconds: Floats


def actions_of(recorded: RecordedSet, composites: Sequence[Composite] = ()) -> Actions:
    """Raises ValueError for a composite that serves what it has not generated, or whose name is taken."""
    prompts, levels = recorded.joules.shape
    rows = np.arange(prompts)
    generated = [np.tile(np.arange(levels) == level, (prompts, 1)) for level in range(levels)]
    served = [np.full(prompts, level) for level in range(levels)]
    names = list(recorded.levels)
    for composite in composites:
        course = composite.course(recorded)
        if composite.name in names:
            raise ValueError(f"composite: its name must be its own, {composite.name!r} is taken")
        if not course.generated[rows, course.served].all():
            raise ValueError(f"composite {composite.name!r}: must generate what it serves")
        names.append(composite.name)
        generated.append(course.generated)
        served.append(course.served)
    mask = np.stack(generated, axis=1)
    # Not a product with the mask: what is not known of a level must not reach actions that do without it.
    joules, seconds = (
        np.where(mask, values[:, None, :], 0.0).sum(axis=2) for values in (recorded.joules, recorded.seconds)
    )
    return Actions(tuple(names), mask, np.stack(served, axis=1), joules, seconds)
