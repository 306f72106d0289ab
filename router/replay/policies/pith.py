"""PITH: the router's own way to decide, replayed.

The task is told from the text; what each action costs and keeps is expected from it; what quality is worth follows from
the floor, what was served, and the grid's forecast; and a request's action is the one of least energy less the worth of
its quality. Evidence is bought from the evaluator where it is worth its carbon. All of it is code of `directives` and
`optimizer`; here it is only fed an hour at a time, for each fold of prompts from the other folds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from common.carbon.accounting import JOULES_PER_KWH
from common.carbon.forecast import MOST_FORECAST_HOURS, MOST_HISTORY_HOURS, forecast
from common.quality.trigger import EvaluationTrigger
from router.directives.agreement import agree
from router.directives.choice import best_actions
from router.directives.classify import train
from router.directives.text_features import FeatureTable, TextFeatures, features_of, table_of
from router.optimizer.budget import Ahead
from router.optimizer.evidence import PILOT_SAMPLES, samples_wanted
from router.optimizer.value_curve import AT_BASELINE, PRICES
from router.replay.policies.fold import Fold, Samples
from router.replay.policies.interface import FOLDS, Evaluator, Hour, Scope, Served, Setting
from router.replay.recordings import BASELINE, Composite, Course, Floats, Ints, Quality, RecordedSet

FORECAST_EVERY_HOURS: Final = 6
RECENT_HOURS: Final = 72
"""Whose requests tell how many of each class are to come."""
ORDINARY_HOURS: Final = 30 * 24
"""Whose intensities stand for those beyond the forecast,"""
ORDINARY_KINDS: Final = 24
"""by so many of their quantiles."""
CANDIDATE_HOURS: Final = 24
"""Whose requests may be judged."""
TRIGGER_HOURS: Final = 72
DEVIATIONS: Final = {Quality.PREFERENCE: 0.5, Quality.ACCURACY: 1.0}
"""Standard errors that a floor is kept by: it is to hold in the mean, not against the worst of samples. A graded
answer is right or wrong, and says less than a preference, which is a share already."""
LEAST_G_PER_KWH: Final = 1.0
"""Below, an hour is priced as if it had that: the price of quality in joules must be finite."""


def agreement(recorded: RecordedSet) -> Course:
    """Answers with the first two directives; serves the first answer where both say the same, and else L0's."""
    first, second = recorded.answers[recorded.levels[1]], recorded.answers[recorded.levels[2]]
    agreed = np.array([agree(a, b, text) for a, b, text in zip(first, second, recorded.texts, strict=True)], dtype=bool)
    generated = np.tile(np.isin(np.arange(len(recorded.levels)), (1, 2)), (len(recorded), 1))
    generated[:, BASELINE] = ~agreed
    return Course(generated, np.where(agreed, 1, BASELINE).astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class _Past:
    """Requests of an hour, and the energy that each took."""

    requests: Ints
    prompts: Ints
    joules: Floats


class Pith:
    """Plays fair: made of a `Setting`, and of what hours show."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        # Whether answers agree says whether they are right, not whether anybody likes them.
        graded = setting.quality is Quality.ACCURACY and len(setting.levels) >= 3
        self.composites: Sequence[Composite] = (Composite("agreement", agreement),) if graded else ()
        prompts, actions = len(setting.folds), len(setting.levels) + len(self.composites)
        self._rng = np.random.default_rng((setting.seed, prompts))
        self._trigger = EvaluationTrigger()
        self._last_run: datetime | None = None
        self._features: dict[int, TextFeatures] = {}
        self._class: Ints = np.full(prompts, -1)
        self._expected: Floats = np.zeros((2, prompts, actions))  # joules, quality
        self._judged = np.zeros(prompts, dtype=bool)
        self._samples = Samples(actions)
        self._past: deque[_Past] = deque(maxlen=CANDIDATE_HOURS)
        self._counts: deque[Floats] = deque(maxlen=RECENT_HOURS)  # of [folds, classes]
        self._labels_shown = False
        self._to_come: dict[datetime, float] = {}
        self._ordinary: Floats = np.empty(0)
        by_task = setting.scope is Scope.TASK
        self._folds = [
            Fold(
                train(self._table(of.prompts), of.task, setting.tasks),
                self._budgets(),
                by_task,
                setting.floor,
                DEVIATIONS[setting.quality],
            )
            for of in (setting.labelled[fold] for fold in range(FOLDS))
        ]
        self._classes = self._folds[0].classes

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        self._meet(hour)
        folds, classes = self._setting.folds[hour.prompts], self._class[hour.prompts]
        counts = np.zeros((FOLDS, self._classes))
        np.add.at(counts, (folds, classes), 1.0)
        self._counts.append(counts)
        self._price(hour)
        self._learn(hour, evaluator)
        places = np.stack([fold.places(self._now(hour)) for fold in self._folds])
        for fold, at, number in zip(self._folds, places, counts, strict=True):
            fold.served[np.arange(self._classes), at] += number
        at = places[folds, classes]
        prices = np.append(PRICES, 0.0)[at]
        joules, quality = self._expected[:, hour.prompts]
        return np.where(at == AT_BASELINE, BASELINE, best_actions(joules, quality, prices[:, None]))

    def observe(self, served: Served) -> None:
        self._past.append(_Past(served.requests, served.prompts, np.nansum(served.joules, axis=1)))

    def _budgets(self) -> list[list[int]]:
        """Classes that share a budget; what is in none stays at L0."""
        setting = self._setting
        tasks = range(len(setting.tasks))
        if setting.scope is Scope.TASK:
            return [[task] for task in tasks]
        if setting.quality is Quality.PREFERENCE:
            return [[*tasks, len(setting.tasks)]]
        return [[t for t in tasks if setting.checkable[t]], *([t] for t in tasks if not setting.checkable[t])]

    def _table(self, prompts: Ints) -> FeatureTable:
        for prompt in prompts.tolist():
            if prompt not in self._features:
                self._features[prompt] = features_of(self._setting.texts[prompt])
        return table_of([self._features[prompt] for prompt in prompts.tolist()])

    def _meet(self, hour: Hour) -> None:
        """Classes and expectations of prompts that were not asked before."""
        new = np.unique(hour.prompts[self._class[hour.prompts] < 0])
        for number, fold in enumerate(self._folds):
            of = new[self._setting.folds[new] == number]
            if len(of):
                self._class[of] = fold.classes_of(self._table(of))
        if hour.tasks is not None:
            self._class[hour.prompts] = hour.tasks
            self._labels_shown = True
            for fold in self._folds:
                fold.answers_elsewhere = False
                fold.guards[:] = 2.0
        self._expect(new)

    def _expect(self, prompts: Ints) -> None:
        for number, fold in enumerate(self._folds):
            of = prompts[self._setting.folds[prompts] == number]
            found = fold.expect(self._table(of), self._class[of]) if len(of) else None
            if found is not None:
                self._expected[:, of] = np.stack(found)

    def _grams_per_joule(self, g_per_kwh: Floats) -> Floats:
        """Operational and embodied: a device that is busy for a joule's time ages as long."""
        embodied = self._setting.embodied_grams_per_second * self._samples.seconds_per_joule
        return np.asarray(np.maximum(g_per_kwh, LEAST_G_PER_KWH) / JOULES_PER_KWH + embodied)

    def _now(self, hour: Hour) -> float:
        return float(self._grams_per_joule(np.array(hour.intensity)))

    def _price(self, hour: Hour) -> None:
        if not self._past:
            return
        if hour.index % FORECAST_EVERY_HOURS == 0 or not len(self._ordinary):
            found = forecast(hour.history(MOST_HISTORY_HOURS), hour.start, MOST_FORECAST_HOURS)
            self._to_come = {start: interval.value for start, interval in found}
            quantiles = (np.arange(ORDINARY_KINDS) + 0.5) / ORDINARY_KINDS
            self._ordinary = np.quantile(hour.g_per_kwh[-ORDINARY_HOURS:], quantiles)
        left = self._setting.hours - hour.index - 1
        near = [value for start, value in self._to_come.items() if start > hour.start][:left]
        kinds = self._grams_per_joule(np.concatenate([[hour.intensity], near, self._ordinary]))
        beyond = (left - len(near)) / ORDINARY_KINDS
        hours = np.concatenate([np.ones(1 + len(near)), np.full(ORDINARY_KINDS, beyond)])
        rates = np.mean(self._counts, axis=0)  # [folds, classes]
        for fold, rate, now in zip(self._folds, rates, self._counts[-1], strict=True):
            requests = rate[:, None] * hours
            requests[:, 0] = now
            fold.price(Ahead(kinds, requests))

    def _learn(self, hour: Hour, evaluator: Evaluator) -> None:
        """Has requests judged, where the time has come and as long as it pays."""
        if not self._past:
            return
        undecided = bool((self._number_of_samples() < PILOT_SAMPLES).any())
        if not self._trigger.should_run(hour.start, self._last_run, hour.history(TRIGGER_HOURS), undecided).run:
            return
        requests, prompts, joules = (
            np.concatenate([getattr(past, name) for past in self._past]) for name in ("requests", "prompts", "joules")
        )
        while True:
            order = self._rng.permutation(np.flatnonzero(~self._judged[prompts]))
            order = order[np.sort(np.unique(prompts[order], return_index=True)[1])]
            class_of = self._class[prompts[order]]
            wanted = self._wanted(hour, class_of, joules[order])
            chosen = np.concatenate([order[class_of == place][:most] for place, most in enumerate(wanted.tolist())])
            if not len(chosen):
                return
            self._last_run = hour.start
            self._judged[prompts[chosen]] = True
            self._samples.add(evaluator.judge(requests[chosen]))
            self._teach()
            self._price(hour)
            self._guard(hour)

    def _guard(self, hour: Hour) -> None:
        """Until every task's floor is expected to hold, or no more can be done for it."""
        while sum(fold.guard() for fold in self._folds):
            met = np.flatnonzero(self._class >= 0)
            for number, fold in enumerate(self._folds):
                of = met[self._setting.folds[met] == number]
                if len(of):
                    self._class[of] = fold.classes_of(self._table(of))
            self._teach()
            self._price(hour)

    def _number_of_samples(self) -> Ints:
        return np.bincount(self._class[self._samples.prompts], minlength=self._classes)

    def _wanted(self, hour: Hour, class_of: Ints, joules: Floats) -> Ints:
        """Samples to judge, [classes], where candidates are of such classes and took so much energy."""
        # A sample teaches all folds but its own.
        worth = sum((fold.worth() for fold in self._folds), np.zeros(self._classes)) * (1 - 1 / FOLDS)
        cost = np.full(self._classes, np.inf)
        judged_class, per_joule = self._class[self._samples.prompts], self._now(hour)
        for place in range(self._classes):
            judged, candidates = judged_class == place, class_of == place
            if judged.any() and candidates.any():
                missing = self._samples.level_joules[judged].sum(axis=1).mean() - joules[candidates].mean()
                cost[place] = per_joule * max(float(missing), 1.0)
        expected = np.mean(self._counts, axis=0).sum(axis=0) * self._setting.hours
        return samples_wanted(self._number_of_samples().astype(float), expected, worth, cost)

    def _teach(self) -> None:
        samples, setting = self._samples, self._setting
        table = self._table(samples.prompts)
        for number, fold in enumerate(self._folds):
            others = np.flatnonzero(setting.folds[samples.prompts] != number)
            # By the fold's own classifier: that of a sample's own fold may have seen prompts of this one.
            told = fold.classes_of(table.rows(others))
            class_of = self._class[samples.prompts[others]] if self._labels_shown else told
            quality = samples.preference[others]
            if setting.quality is Quality.ACCURACY:
                graded = np.isin(class_of, np.flatnonzero(setting.checkable))
                quality = np.where(graded[:, None], samples.accuracy[others], quality)
            fold.teach(table.rows(others), class_of, samples.joules[others], quality)
        self._expect(np.flatnonzero(self._class >= 0))
