"""What each action is expected to cost for a prompt, told from its text: longest answers can be shortened first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.directives.text_features import FeatureTable, TextFeatures
from router.directives.text_regression import TextRegression, fit

Floats = NDArray[np.float64]

_STRENGTHS: Final = ((1.0, 1.0),)
_LEAST: Final = 1e-9
_WIDEST: Final = 8.0
"""An expectation is at most so many times further from the mean than any cost seen."""


@dataclass(frozen=True, slots=True, eq=False)
class LengthModel:
    """Expected cost of each action, in the unit of what it was fitted to: joules, seconds or output tokens.

    Costs are modelled by their logarithms, as their spread grows with their size. The mean of e to the residuals
    turns the median that this gives into a mean (Duan, "Smearing estimate", JASA 1983).

    Attributes:
        logarithms: Of the costs.
        smearing: [actions].
        least, most: Of what may be expected, as logarithms, [actions].
    """

    logarithms: TextRegression
    smearing: Floats
    least: Floats
    most: Floats

    def log_costs(self, prompts: FeatureTable) -> Floats:
        """Expected logarithms, [prompts, actions]."""
        return np.clip(self.logarithms.predict(prompts), self.least, self.most)

    def costs(self, prompts: FeatureTable) -> Floats:
        """Expected costs, [prompts, actions]."""
        return self.costs_of(self.log_costs(prompts))

    def costs_of(self, log_costs: Floats) -> Floats:
        """Expected costs where the logarithms are expected to be these."""
        return np.asarray(np.exp(log_costs) * self.smearing)

    def log_costs_one(self, prompt: TextFeatures) -> Floats:
        """Of one prompt, [actions]; the same as `log_costs` on a table of one row, in microseconds."""
        return self.logarithms.predict_one(prompt).clip(self.least, self.most)


def fit_lengths(prompts: FeatureTable, costs: Floats) -> tuple[LengthModel, Floats]:
    """The model, and what it expects of the logarithms of each prompt's costs as if that prompt had been left out.

    Args:
        costs: [prompts, actions], at least 0.
    Raises:
        ValueError: Fewer than two prompts.
    """
    logs = np.log(np.maximum(costs, _LEAST))
    found = fit(prompts, logs, strengths=_STRENGTHS)
    room = np.log(_WIDEST)
    least, most = logs.min(axis=0) - room, logs.max(axis=0) + room
    held_out = np.clip(found.held_out, least, most)
    smearing = costs.mean(axis=0) / np.maximum(np.exp(held_out).mean(axis=0), _LEAST)
    return LengthModel(found.regression, smearing, least, most), held_out
