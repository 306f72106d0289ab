"""The task of a request that does not name one, from its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.directives.text_features import FeatureTable, features_of, table_of
from router.directives.text_regression import TextRegression, fit

_SHARPNESSES: Final = tuple(2.0 ** (np.arange(0, 29) / 4))
_STRENGTHS: Final = ((0.03, 1.0), (0.1, 3.0))


@dataclass(frozen=True, slots=True, eq=False)
class TaskClassifier:
    """Linear scores of the tasks, one regression of all; the highest names the task.

    Attributes:
        sharpness: Factor of the scores whose softmax gives the labelled prompts, each left out, their task likeliest.
        labelled: Place of the task of each prompt that it was trained on, [labelled].
        held_out: How likely each of these is of each task, as if it had been left out, [labelled, tasks].
    """

    tasks: tuple[str, ...]
    scores: TextRegression
    sharpness: float
    labelled: NDArray[np.int64]
    held_out: NDArray[np.float64]

    def classify(self, text: str) -> str:
        """The likeliest task of one prompt."""
        return self.tasks[int(self.scores.predict_one(features_of(text)).argmax())]

    def likelihoods(self, prompts: FeatureTable) -> NDArray[np.float64]:
        """How likely each prompt is of each task, [prompts, tasks]."""
        return _softmax(self.scores.predict(prompts), self.sharpness)

    def likelihoods_of(self, text: str) -> NDArray[np.float64]:
        """The same of one prompt, [tasks], in a fraction of a millisecond."""
        return np.asarray(_softmax(self.scores.predict_one(features_of(text))[None], self.sharpness)[0])

    def confusion(self, guards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of each task's labelled prompts, each left out, by what `guarded_places` takes it for,
        [tasks, tasks + 1]."""
        taken = np.zeros((len(self.tasks), len(self.tasks) + 1))
        np.add.at(taken, (self.labelled, guarded_places(self.held_out, guards)), 1.0)
        return np.asarray(taken / np.maximum(taken.sum(axis=1, keepdims=True), 1.0))


def guarded_places(likelihoods: NDArray[np.float64], guards: NDArray[np.float64]) -> NDArray[np.int64]:
    """The likeliest task of each prompt by its place, or the number of tasks where it may well be of another,
    [prompts].

    Args:
        likelihoods: [prompts, tasks].
        guards: Of each task: how likely a prompt must be of it that it is left for no other task, [tasks].
    """
    places = likelihoods.argmax(axis=1)
    others = likelihoods >= guards
    others[np.arange(len(places)), places] = False
    return np.asarray(np.where(others.any(axis=1), likelihoods.shape[1], places))


def train(prompts: FeatureTable, places: NDArray[np.int64], tasks: Sequence[str]) -> TaskClassifier:
    """A classifier from labelled prompts, by the place of their task in `tasks`, [prompts].

    Raises ValueError for fewer than two prompts, or a place that no task has.
    """
    if len(places) and not 0 <= places.min() <= places.max() < len(tasks):
        raise ValueError(f"places must be 0 to {len(tasks) - 1}, got {places.min()} to {places.max()}")
    found = fit(prompts, (places[:, None] == np.arange(len(tasks))).astype(float), strengths=_STRENGTHS)
    rows = np.arange(len(places))
    # So sharp that a prompt's own task is given nothing: never the most likely.
    with np.errstate(divide="ignore"):
        sharpness = max(_SHARPNESSES, key=lambda one: float(np.log(_softmax(found.held_out, one)[rows, places]).sum()))
    return TaskClassifier(tuple(tasks), found.regression, sharpness, places, _softmax(found.held_out, sharpness))


def _softmax(scores: NDArray[np.float64], sharpness: float) -> NDArray[np.float64]:
    powers = np.exp(sharpness * (scores - scores.max(axis=1, keepdims=True)))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def train_on_texts(texts: Sequence[str], labels: Sequence[str]) -> TaskClassifier:
    """The same from texts and the names of their tasks. Raises ValueError where there are fewer than two tasks."""
    tasks = tuple(dict.fromkeys(labels))
    if len(tasks) < 2:
        raise ValueError(f"labels must name at least two tasks, got {', '.join(tasks) or 'none'}")
    places = np.array([tasks.index(label) for label in labels])
    return train(table_of([features_of(text) for text in texts]), places, tasks)
