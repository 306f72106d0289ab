"""What each action is expected to cost and to be worth for a prompt of one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.directives.lengths import LengthModel, fit_lengths
from router.directives.text_features import FeatureTable, TextFeatures
from router.directives.text_regression import TextRegression, fit

Floats = NDArray[np.float64]

_STRENGTHS: Final = ((10.0, 3.0), (300.0, 30.0))
"""Quality is hardly told from the prompt where it is graded: the last leaves little more than the mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """Of one task's prompts.

    Attributes:
        lengths: Energy of each action.
        quality: Of each action, by the words, the surface, and how long the baseline's answer is expected to be: long
            answers are those that lose most by being shortened.
        centre: Of the expected logarithm of the baseline's energy.
    """

    lengths: LengthModel
    quality: TextRegression
    centre: float

    def of(self, prompts: FeatureTable) -> tuple[Floats, Floats]:
        """Expected joules and quality, [prompts, actions] each."""
        logs = self.lengths.log_costs(prompts)
        return self.lengths.costs_of(logs), self.quality.predict(prompts, _length_columns(logs, self.centre))

    def of_one(self, prompt: TextFeatures) -> tuple[Floats, Floats]:
        """The same of one prompt, [actions] each, in microseconds."""
        logs = self.lengths.log_costs_one(prompt)
        of = float(logs[0]) - self.centre
        return self.lengths.costs_of(logs), self.quality.predict_one(prompt, np.array([of, of * of]))


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """An expectation, and what it says of each prompt that taught it as if that one had been left out.

    Attributes:
        joules, quality: [prompts, actions].
    """

    expectation: Expectation
    joules: Floats
    quality: Floats


def teach(prompts: FeatureTable, joules: Floats, quality: Floats) -> Taught:
    """Fits energy and quality, [prompts, actions], of prompts whose every action was measured and judged.

    Raises ValueError for fewer than two prompts.
    """
    lengths, logs = fit_lengths(prompts, joules)
    centre = float(logs[:, 0].mean())
    found = fit(prompts, quality, _length_columns(logs, centre), strengths=_STRENGTHS)
    return Taught(Expectation(lengths, found.regression, centre), lengths.costs_of(logs), found.held_out)


def _length_columns(logs: Floats, centre: float) -> Floats:
    of = logs[:, 0] - centre
    return np.stack([of, of**2], axis=1)
