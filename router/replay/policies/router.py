"""The live router, replayed: what it decides today under one policy, by its own code.

A request's task is told from its text (`router.directives.tell`) by prompts that the operator has labelled, for each
fold of prompts those of the other folds. Bounds come from the evaluator (`evaluation.py`); they speak of a task's mean
and of no single prompt. An hour's plan is made of them, of what requests took and of the grid by
`router.optimizer.problem`, and each request, a conversation of its own, draws its directive by the plan's shares.

A share of L0's quality over the window is held over each day, as a policy's quality budget is. A floor for every task
is a policy for the tasks by name, so that requests whose task cannot be told stay at L0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import numpy as np

from common.carbon.accounting import SECONDS_PER_YEAR, CarbonSettings
from common.carbon.forecast import MOST_HISTORY_HOURS, forecast
from common.quality.bound import Cell, Floor, FloorKind
from router.directives.bounds import Snapshot
from router.directives.classify import TaskClassifier, train_on_texts
from router.directives.levels import Directive
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget, match
from router.directives.quality_budget import over_the_day
from router.directives.tell import NO_TASK, tell
from router.openings import is_open
from router.optimizer.costs import CostBook, request_grams
from router.optimizer.grants import Day
from router.optimizer.grants import Hour as HourAhead
from router.optimizer.plan import Plan
from router.optimizer.problem import make_plan
from router.optimizer.traffic import RECENT_HOURS, Cells, hours_left, served_by_policy
from router.replay.policies.evaluation import MODEL, REVISION, Evaluation
from router.replay.policies.interface import FOLDS, Evaluator, Hour, Scope, Served, Setting
from router.replay.recordings import BASELINE, Bools, Composite, Floats, Ints, Quality

CANDIDATE_HOURS: Final = 24
"""Whose requests may be judged."""
MOST_BELOW: Final = 0.5
"""How far below a floor of the mean a directive may be. It keeps single answers from being worthless, which a mean does
not; whether what is lost is worth the carbon, the plan finds."""
LEAST_FLOOR: Final = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class _Past:
    """Requests of an hour, and their classes, [requests]."""

    start: datetime
    requests: Ints
    class_of: Ints


class Router:
    """Plays fair: made of a `Setting`, and of what hours show. A class is a task, or, behind them, none.

    Args:
        budget: Whether the floor is one of requests' mean, the policy's quality budget; else every directive keeps it
            by itself.
    """

    composites: Sequence[Composite] = ()

    def __init__(self, setting: Setting, budget: bool = True) -> None:
        self._setting = setting
        self._budget = budget
        self._carbon = CarbonSettings(1.0, setting.embodied_grams_per_second * SECONDS_PER_YEAR, 1.0)
        self._rng = np.random.default_rng((setting.seed, len(setting.folds)))
        self._tasks = (*setting.tasks, NO_TASK)
        self._tellers = [_teller(setting, fold) for fold in range(FOLDS)]
        self._class: Ints = np.full(len(setting.folds), -1)
        self._directives = {name: Directive(name, revision=int(REVISION)) for name in setting.levels}
        self._costs = CostBook()
        self._past: deque[_Past] = deque(maxlen=CANDIDATE_HOURS)
        self._planned: deque[tuple[datetime, Cells]] = deque(maxlen=RECENT_HOURS - 1)
        self._eligible: Bools = np.zeros(len(self._tasks), dtype=bool)
        self._policies: Sequence[Policy] = ()
        self._evaluation = Evaluation(setting, self._floors_of)
        self._policies = self._agreed(np.zeros(len(self._tasks)))

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        class_of = self._classes_of(hour)
        if self._past:
            requests = np.concatenate([past.requests for past in self._past])
            classes = np.concatenate([past.class_of for past in self._past])
            self._evaluation.run(hour, requests, classes, self._by_carbon(hour.intensity), evaluator)
            self._policies = self._agreed(np.bincount(classes, minlength=len(self._tasks)).astype(float))
        self._past.append(_Past(hour.start, hour.requests, class_of))
        self._evaluation.ask(class_of)
        known = Snapshot(self._directives, self._policies, self._evaluation.bounds(), Plan({}, hour.start))
        plan = make_plan(
            known,
            self._costs,
            lambda cost: request_grams(cost, hour.intensity, self._carbon),
            hour.start,
            hour.intensity,
            day=self._day(hour) if over_the_day(self._policies) else None,
        )
        return self._drawn(replace(known, plan=plan), class_of)

    def observe(self, served: Served) -> None:
        class_of = self._past[-1].class_of
        rows = np.arange(len(served.level))
        used = zip(
            class_of.tolist(),
            served.level.tolist(),
            served.joules[rows, served.level].tolist(),
            served.seconds[rows, served.level].tolist(),
            strict=True,
        )
        cells = [[Cell(MODEL, task, level) for level in self._setting.levels] for task in self._tasks]
        for place, level, joules, seconds in used:
            self._costs.observe(cells[place][level], joules, seconds)
        planned = np.zeros((len(self._tasks), len(self._setting.levels)), dtype=np.int64)
        np.add.at(planned, (class_of, served.level), 1)
        # As the ledger has them: where nothing is open, no plan decided.
        counts: dict[tuple[str, str, str, str, int | None], int] = {}
        for place, level in np.argwhere(planned * self._eligible[:, None]).tolist():
            task, name = self._tasks[place], self._setting.levels[level]
            if (policy := match(self._policies, "", task)) is not None:
                counts[policy.name, MODEL, task, name, int(REVISION)] = int(planned[place, level])
        self._planned.append((self._past[-1].start, counts))

    def _classes_of(self, hour: Hour) -> Ints:
        if hour.tasks is not None:
            return hour.tasks
        for prompt in np.unique(hour.prompts[self._class[hour.prompts] < 0]).tolist():
            teller = self._tellers[self._setting.folds[prompt]]
            # Where there is one task, there is nothing to tell.
            told = tell(teller, self._setting.texts[prompt]) if teller else None
            self._class[prompt] = self._tasks.index(told.task if told else NO_TASK if teller else self._tasks[0])
        return self._class[hour.prompts]

    def _agreed(self, requests: Floats) -> list[Policy]:
        """An operator's policies for what is asked: over the window one, where all have one kind of quality.

        Args:
            requests: Of late, [classes].
        """
        setting = self._setting
        asked = max(setting.floor, LEAST_FLOOR)
        graded = setting.checkable & (setting.quality is Quality.ACCURACY)
        found = []
        for place, task in enumerate(setting.tasks):
            if setting.scope is Scope.TASK or (setting.quality is Quality.ACCURACY and not graded[place]):
                of_task = np.where(np.arange(len(requests)) == place, requests, 0.0)
                floor = asked if graded[place] else self._of_comparisons(asked, of_task)
                found.append(self._policy(f"replay of {task}", task, floor, BudgetScope.TASK))
        if setting.scope is Scope.WINDOW:
            floor = asked if setting.quality is Quality.ACCURACY else self._of_comparisons(asked, requests)
            found.append(self._policy("replay", "", floor, BudgetScope.DAY))
        return found

    def _of_comparisons(self, floor: float, requests: Floats) -> float:
        """The floor of a comparison's quality at which L0's share of the judge's choices is kept to `floor`.

        Where answers are chosen of a share p of the prompts and L0's of p0, a comparison's quality is (1 + p - p0) / 2,
        which is 1 + p - p0 of L0's 1/2. So p >= floor x p0 where this is at least 1 - (1 - floor) p0.
        """
        # Of three digits, as people set them.
        return round(1.0 - (1.0 - floor) * self._evaluation.l0_chosen(requests), 3)

    def _policy(self, name: str, task: str, floor: float, scope: BudgetScope) -> Policy:
        budget = QualityBudget(max(floor - MOST_BELOW, LEAST_FLOOR / 2), scope) if self._budget else None
        directives = self._setting.levels[1:]
        return Policy(name, task=task, mode=Mode.ON, floor=floor, quality_budget=budget, directives=directives)

    def _floors_of(self, task: str) -> list[Floor]:
        policy = match(self._policies, "", task)
        # What is told to be of no task may be graded or not.
        if policy is None or (task == NO_TASK and self._setting.quality is Quality.ACCURACY):
            return []
        return [Floor(floor, FloorKind.RELATIVE) for floor in sorted({policy.opening_floor, policy.floor})]

    def _by_carbon(self, g_per_kwh: float) -> dict[str, list[str]]:
        """Names of levels by task, that of least carbon first."""
        found = {}
        for task in self._tasks:
            costs = self._costs.predicted(MODEL, task, self._setting.levels)
            grams = {name: request_grams(cost, g_per_kwh, self._carbon) for name, cost in costs.items()}
            found[task] = sorted(grams, key=lambda name: grams[name])
        return found

    def _day(self, hour: Hour) -> Day:
        """As `router.quality_days` makes it of the ledger and of the grid's forecast."""
        left = len(hours_left(hour.start)) - 1
        to_come = forecast(hour.history(MOST_HISTORY_HOURS), hour.start, left) if left else ()
        expected = [interval.value for _, interval in to_come] or [hour.intensity] * left
        hours = [HourAhead(1.0, value) for value in (hour.intensity, *expected)]
        revisions = {name: directive.revision for name, directive in self._directives.items()}
        served = served_by_policy(dict(self._planned), revisions, hour.start)
        return Day(hours, served, lambda cost, g_per_kwh: request_grams(cost, g_per_kwh, self._carbon))

    def _drawn(self, snapshot: Snapshot, class_of: Ints) -> Ints:
        """Levels by the plan's shares, and the hold-back, as `router.directives.decide` draws them, [requests]."""
        levels = self._setting.levels
        shares: Floats = np.zeros((len(self._tasks), len(levels)))
        held_back = np.zeros(len(self._tasks))
        for place, task in enumerate(self._tasks):
            if (policy := match(self._policies, "", task)) is None:
                shares[place, BASELINE] = 1.0
                continue
            held_back[place] = policy.holdback_share
            cells = (Cell(MODEL, task, name) for name in policy.directives)
            self._eligible[place] = any(is_open(snapshot, policy, cell, snapshot.plan.made_at) for cell in cells)
            for name, share in snapshot.plan.shares(policy.name, MODEL, task):
                shares[place, levels.index(name)] = share
        draws = self._rng.random((2, len(class_of)))
        # The last is never passed, whatever rounding leaves.
        drawn = (draws[0][:, None] >= shares.cumsum(axis=1)[class_of, :-1]).sum(axis=1)
        return np.where(draws[1] < held_back[class_of], BASELINE, drawn)


def _teller(setting: Setting, fold: int) -> TaskClassifier | None:
    """None where there are not two tasks to tell apart."""
    of = setting.labelled[fold]
    if len(np.unique(of.task)) < 2:
        return None
    return train_on_texts([setting.texts[prompt] for prompt in of.prompts], [setting.tasks[at] for at in of.task])
