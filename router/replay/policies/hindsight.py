"""HINDSIGHT: the most that choosing by task and hour can save at a floor, with everything known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from router.replay.policies.interface import Evaluator, Hour, Scope, Served, Setting
from router.replay.recordings import BASELINE, Composite, Floats, Ints, Quality
from router.replay.truth import Truth


class Hindsight:
    """One linear programme over the whole window, with true tasks, true mean costs and qualities and true intensities:

        minimise   sum over hours h, tasks t, levels l of n_h m_ht C_htl x_htl
        subject to the floor or floors, sum over l of x_htl = 1, x >= 0

    with n_h requests in hour h, the share m_ht of them of task t, C_htl the mean carbon. A request is a draw by its
    task's shares. The floors are those that a replay reports (router/replay/outcome.py). Tasks without a grader keep
    the floor in their own preference where the others keep it in accuracy.
    """

    composites: Sequence[Composite] = ()

    def __init__(self, setting: Setting, truth: Truth) -> None:
        self._truth = truth
        self._rng = np.random.default_rng(setting.seed)
        self._cumulative = np.cumsum(_shares(setting, truth), axis=2)

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        cumulative = self._cumulative[hour.index][self._truth.recorded.task[hour.prompts]]
        drawn = self._rng.random(len(hour.prompts))
        return np.asarray((drawn[:, None] >= cumulative[:, :-1]).sum(axis=1), dtype=np.int64)

    def observe(self, served: Served) -> None:
        pass


def _shares(setting: Setting, truth: Truth) -> Floats:
    """[hours, tasks, levels]. Raises ValueError where no mix keeps the floor."""
    weight = truth.demand.requests[:, None] * truth.demand.mix  # [hours, tasks]
    grams = truth.grams(truth.task_joules, truth.task_seconds, truth.window[:, None, None])  # [hours, tasks, levels]
    costs = weight[:, :, None] * grams
    hours, tasks, levels = costs.shape
    rows = _floors(setting, truth, weight)
    choices = csr_array(
        (np.ones(costs.size), (np.arange(costs.size) // levels, np.arange(costs.size))),
        shape=(hours * tasks, costs.size),
    )
    # Of the size of 1, as the solver's tolerances are.
    floors = csr_array(np.stack([row.ravel() / np.abs(row).max() for row in rows if row.any()]))
    result = milp(
        costs.ravel() / costs.mean(),
        bounds=Bounds(0.0, 1.0),
        constraints=[LinearConstraint(floors, 0.0, np.inf), LinearConstraint(choices, 1.0, 1.0)],
    )
    if not result.success or result.x is None:
        raise ValueError(f"floor {setting.floor} cannot be kept: {result.message}")
    shares = np.clip(np.asarray(result.x).reshape(costs.shape), 0.0, None)
    return np.asarray(shares / shares.sum(axis=2, keepdims=True))


def _floors(setting: Setting, truth: Truth, weight: Floats) -> list[Floats]:
    """What must not be below 0 when it is summed with x, [hours, tasks, levels] each."""
    checked = setting.checkable if setting.quality is Quality.ACCURACY else np.zeros(len(setting.tasks), dtype=bool)
    quality = np.where(checked[:, None], truth.task_accuracy, truth.task_preference)
    above = quality - setting.floor * quality[:, [BASELINE]]  # [tasks, levels]
    every = weight[:, :, None] * above
    by_task = np.eye(len(setting.tasks), dtype=bool)[:, None, :, None]  # [tasks, 1, tasks, 1]
    if setting.scope is Scope.TASK:
        return [every * mask for mask in by_task]
    if setting.quality is Quality.ACCURACY:
        own = [every * by_task[task] for task in np.flatnonzero(~checked)]
        return [*([every * checked[:, None]] if checked.any() else []), *own]
    base = truth.demand.mix @ quality[:, BASELINE]  # [hours]
    return [(truth.demand.mix / base[:, None])[:, :, None] * above]
