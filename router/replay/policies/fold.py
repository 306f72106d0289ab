"""What PITH knows for the prompts of one fold, all of it from prompts of the other folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from router.directives.classify import TaskClassifier, guarded_places
from router.directives.expectation import Expectation, teach
from router.directives.text_features import FeatureTable
from router.optimizer.budget import (
    NOTHING_ELSEWHERE,
    Ahead,
    Elsewhere,
    Price,
    price_of_quality,
    taken_for_others,
    worth_of_samples,
)
from router.optimizer.evidence import LEAST_SAMPLES, WORTHWHILE
from router.optimizer.value_curve import AT_BASELINE, PRICES, ValueCurve, value_curve
from router.replay.policies.interface import Judged
from router.replay.recordings import BASELINE, Floats, Ints

GUARDS: Final = (0.2, 0.1, 0.05, 0.02, 0.01)
"""A task whose floor does not hold, as requests of it are taken for others', claims requests that are ever less likely
of it: these stay at L0."""


class Samples:
    """Judged prompts, and what each action costs and gives."""

    def __init__(self, actions: int) -> None:
        self.prompts: Ints = np.empty(0, dtype=np.int64)
        self.joules: Floats = np.empty((0, actions))
        self.level_joules: Floats = np.empty((0, 0))
        """Of each level by itself, [samples, levels]."""
        self.preference: Floats = np.empty((0, actions))
        self.accuracy: Floats = np.empty((0, actions))
        self.seconds_per_joule = 0.0

    def add(self, judged: Judged) -> None:
        rows = np.arange(len(judged.prompts))[:, None]
        joules = np.where(judged.generated, judged.joules[:, None, :], 0.0).sum(axis=2)
        self.level_joules = np.concatenate([self.level_joules.reshape(-1, judged.joules.shape[1]), judged.joules])
        self.prompts = np.concatenate([self.prompts, judged.prompts])
        self.joules = np.concatenate([self.joules, joules])
        self.preference = np.concatenate([self.preference, judged.preference[rows, judged.served]])
        self.accuracy = np.concatenate([self.accuracy, judged.accuracy[rows, judged.served]])
        self.seconds_per_joule = float(judged.seconds.sum() / judged.joules.sum())


@dataclass(slots=True)
class Fold:
    """One fold's classes: the tasks, and behind them the requests whose task is in doubt where that matters.

    Attributes:
        budgets: Classes that share one, each.
        answers_elsewhere: Whether a budget is of one task, and answers for all of its requests, those among them that
            are taken for another's.
        guards: Of each task, in GUARDS; 2 where it claims nothing, [tasks].
        served: Requests so far, by class and place in the curves, [classes, prices + 1].
    """

    classifier: TaskClassifier
    budgets: Sequence[Sequence[int]]
    answers_elsewhere: bool
    floor: float
    deviations: float
    served: Floats = field(init=False)
    guards: Floats = field(init=False)
    expectations: dict[int, Expectation] = field(init=False, default_factory=dict)
    curves: dict[int, ValueCurve] = field(init=False, default_factory=dict)
    prices: dict[int, Price] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.served = np.zeros((self.classes, len(PRICES) + 1))
        self.guards = np.full(len(self.classifier.tasks), GUARDS[0] if self.answers_elsewhere else 2.0)

    @property
    def classes(self) -> int:
        return len(self.classifier.tasks) + 1

    def classes_of(self, prompts: FeatureTable) -> Ints:
        """[prompts]."""
        return guarded_places(self.classifier.likelihoods(prompts), self.guards)

    def guard(self) -> bool:
        """Has every task claim more whose floor does not hold otherwise; whether any did."""
        if not self.answers_elsewhere:
            return False
        before = self.guards.copy()
        for number, price in self.prices.items():
            if not price.keeps:
                (task,) = self.budgets[number]
                self.guards[task] = next((guard for guard in GUARDS if guard < self.guards[task]), GUARDS[-1])
        return bool((self.guards != before).any())

    def teach(self, prompts: FeatureTable, class_of: Ints, joules: Floats, quality: Floats) -> None:
        """Takes in all samples that there are, [samples, actions] of `joules` and `quality`; NaN where not known."""
        for place in range(self.classes):
            rows = np.flatnonzero((class_of == place) & ~np.isnan(quality).any(axis=1))
            known = self.curves.get(place)
            # Half of what is worthwhile, as samples asked for all folds do not fall evenly on them.
            least = LEAST_SAMPLES if known is None else (1 + WORTHWHILE / 2) * known.samples
            if len(rows) < least:
                continue
            taught = teach(prompts.rows(rows), joules[rows], quality[rows])
            self.expectations[place] = taught.expectation
            self.curves[place] = value_curve(taught.joules, taught.quality, joules[rows], quality[rows], self.floor)

    def expect(self, prompts: FeatureTable, class_of: Ints) -> tuple[Floats, Floats] | None:
        """Expected joules and quality, [prompts, actions]; 0 for classes of which nothing is known."""
        if not self.expectations:
            return None
        actions = len(next(iter(self.curves.values())).shares)
        joules, quality = np.zeros((2, len(prompts), actions))
        for place, expectation in self.expectations.items():
            rows = np.flatnonzero(class_of == place)
            if len(rows):
                joules[rows], quality[rows] = expectation.of(prompts.rows(rows))
        return joules, quality

    def price(self, ahead: Ahead) -> None:
        """Prices every budget anew, one after the other, by the others' prices in force."""
        for number, budget in enumerate(self.budgets):
            known = [place for place in budget if place in self.curves]
            if known:
                elsewhere = self._elsewhere(budget[0], ahead) if self.answers_elsewhere else NOTHING_ELSEWHERE
                curves = [self.curves[place] for place in known]
                self.prices[number] = price_of_quality(
                    curves, self.served[known], ahead.of(known), self.deviations, elsewhere
                )

    def places(self, grams_per_joule: float) -> Ints:
        """In the curves, of each class, in an hour of such intensity, [classes]."""
        found = np.full(self.classes, AT_BASELINE)
        for number, price in self.prices.items():
            for place in self.budgets[number]:
                if place in self.curves:
                    found[place] = price.place(grams_per_joule)
        return found

    def worth(self) -> Floats:
        """Grams that one more sample of each class saves over the window, [classes]."""
        found = np.zeros(self.classes)
        for number, price in self.prices.items():
            known = [place for place in self.budgets[number] if place in self.curves]
            samples = np.array([self.curves[place].samples for place in known], dtype=float)
            found[known] = worth_of_samples(price, samples, self.deviations)
        return found

    def _elsewhere(self, task: int, ahead: Ahead) -> Elsewhere:
        requests = self.served.sum(axis=1) + ahead.requests.sum(axis=1)
        untouched = np.ones(self.classes)
        # Where floors are by task, each budget is of one class; that of requests in doubt has none, and stays at L0.
        for number, price in self.prices.items():
            (place,) = self.budgets[number]
            if requests[place] > 0:
                to_come = np.bincount(
                    ahead.places(price.grams), weights=ahead.requests[place], minlength=len(PRICES) + 1
                )
                shares = self.curves[place].shares[BASELINE]
                untouched[place] = shares @ (self.served[place] + to_come) / requests[place]
        labelled = int((self.classifier.labelled == task).sum())
        confusion = self.classifier.confusion(self.guards)[task]
        return taken_for_others(task, confusion, labelled, requests, untouched, self.curves[task].baseline, self.floor)
