"""Whether a task is told from a request's text, and how well that went on the prompts that were labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.directives.classify import TaskClassifier
from router.directives.compile import Turn

LEAST_LIKELIHOOD: Final = 0.97
"""A task is told from here on. Told wrongly, a request is shortened by bounds that speak of others; untold, it only
stays under the policies for any task. How far floors by task are missed for it: `tests.bench.replay_router`."""
NO_TASK: Final = ""
"""Label of prompts that are of none of the tasks."""


@dataclass(frozen=True, slots=True)
class Told:
    """A task that a request did not name, and how likely it is."""

    task: str
    likelihood: float


@dataclass(frozen=True, slots=True)
class TaskAccuracy:
    """What became of a task's labelled prompts, each held out: three shares of 1."""

    right: float
    wrong: float
    untold: float


Tell = Callable[[Sequence[Turn]], Told | None]
"""The task of a request that names none; None where it is not to be told."""


def tells_nothing(_turns: Sequence[Turn]) -> None:
    return None


def tell(classifier: TaskClassifier, text: str) -> Told | None:
    """The task of a request with this text; None where none is likely enough, or what is likely is to be of none."""
    likelihoods = classifier.likelihoods_of(text)
    place = int(likelihoods.argmax())
    task, likelihood = classifier.tasks[place], float(likelihoods[place])
    return Told(task, likelihood) if task != NO_TASK and likelihood >= LEAST_LIKELIHOOD else None


def tell_turns(classifier: TaskClassifier, turns: Sequence[Turn]) -> Told | None:
    """The task by the first message of the user. That is the same text in every turn of a conversation that carries its
    history, so that a conversation keeps its task; one whose caller cuts the beginning off may change it."""
    first = next((turn.content for turn in turns if turn.role == "user"), None)
    return None if first is None else tell(classifier, first)


def likeliest(classifier: TaskClassifier, text: str, most: int) -> list[Told]:
    """The likeliest tasks of a text, in that order, sure or not."""
    likelihoods = classifier.likelihoods_of(text)
    return [
        Told(classifier.tasks[place], float(likelihoods[place]))
        for place in np.argsort(-likelihoods, kind="stable")[:most]
    ]


def accuracies(classifier: TaskClassifier) -> list[TaskAccuracy]:
    """In the order of the classifier's tasks."""
    held_out, labelled = classifier.held_out, classifier.labelled
    places = held_out.argmax(axis=1)
    told = (held_out.max(axis=1) >= LEAST_LIKELIHOOD) & (np.array(classifier.tasks)[places] != NO_TASK)
    found = []
    for task in range(len(classifier.tasks)):
        of_task = labelled == task
        outcomes = told & (places == task), told & (places != task), ~told
        found.append(TaskAccuracy(*(float(outcome[of_task].mean()) for outcome in outcomes)))
    return found


def macro_f1(classifier: TaskClassifier) -> float:
    """Mean over the tasks of 2 right / (labelled + taken for it), by the likeliest task of each prompt held out."""
    places, labelled = classifier.held_out.argmax(axis=1), classifier.labelled
    count = len(classifier.tasks)
    right = _counts(places[places == labelled], count)
    return float((2 * right / (_counts(labelled, count) + _counts(places, count))).mean())


def _counts(places: NDArray[np.int64], tasks: int) -> NDArray[np.int64]:
    return np.bincount(places, minlength=tasks)
