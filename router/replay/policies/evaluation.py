"""The live evaluator, replayed: which requests it has judged, and what is known of quality by them.

Its trigger and its bounds are those of `common.quality`; the samples are drawn by rules like its own and at its default
settings. Simplified: a sample scores all directives of its task that want one, where the evaluator has one at a time
judged; it is drawn from a day's requests, whose texts do not wait longer; what is open is looked at in each evaluation,
and not more closely where it falls short; and preferences are taken as they are, not at equal length, since the record
does not tell in what order the judge saw the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

import numpy as np

from common.quality.bound import Cell, Floor, PairedScore, QualityBound
from common.quality.estimates import Estimates
from common.quality.pairwise import BASELINE_QUALITY
from common.quality.sample_size import worthwhile_pairs
from common.quality.trigger import EvaluationTrigger
from router.directives.tell import NO_TASK
from router.replay.policies.interface import Evaluator, Hour, Judged, Setting
from router.replay.recordings import BASELINE, Bools, Floats, Ints, Quality

MODEL: Final = "recorded@replay"
"""Cells name one; a recorded set is of one model."""
REVISION: Final = "1"
TRIGGER_HISTORY_HOURS: Final = 72
BATCH_SAMPLES: Final = 8
RUN_SAMPLES: Final = 200
PATIENCE_SAMPLES: Final = 200
MAINTENANCE_SAMPLES: Final = 8
FORESEEABLE_SAMPLES: Final = 10 * PATIENCE_SAMPLES
FUTILE_CHANCE: Final = 0.05
SAMPLE_SHARE: Final = 0.05
"""Of a task's requests whose text is kept."""


class Evaluation:
    """Judges at the evaluator's cost. A class is a task, or, behind them, none.

    Quality is a grade where those are asked for and the task has a grader. Else it is that of a comparison, as the live
    judge's is: 1 where the directive's answer was chosen and 0 where L0's was, else 1/2, as L0's is.

    Args:
        floors_of: Those that policies have for a task at present; none where no policy does.
    """

    def __init__(self, setting: Setting, floors_of: Callable[[str], Sequence[Floor]]) -> None:
        self._setting = setting
        self._floors_of = floors_of
        self._estimates = Estimates(lambda cell: floors_of(cell.task))
        self._trigger = EvaluationTrigger()
        self._last_run: datetime | None = None
        self._rng = np.random.default_rng((setting.seed, len(setting.levels)))
        self._tasks = (*setting.tasks, NO_TASK)
        self._graded: Bools = np.append(setting.checkable & (setting.quality is Quality.ACCURACY), False)
        self._scored: Ints = np.empty(0, dtype=np.int64)
        # [classes]: answers compared, and of how many prompts L0's was chosen.
        self._compared = np.zeros(len(self._tasks))
        self._chosen_l0 = np.zeros(len(self._tasks))
        self._asked = np.zeros(len(self._tasks))

    def ask(self, class_of: Ints) -> None:
        """Requests came, of such classes."""
        self._asked += np.bincount(class_of, minlength=len(self._tasks))

    def bounds(self) -> Mapping[Cell, QualityBound]:
        found = ((cell, self._estimates.bound(cell)) for cell in self._estimates.cells())
        return {cell: bound for cell, bound in found if bound is not None}

    def l0_chosen(self, requests: Floats) -> float:
        """Share of the judge's choices that L0's answers are, of so many requests by class, [classes]; 0 where nothing
        is known."""
        of = requests * (self._compared > 0)
        shares = self._chosen_l0 / np.maximum(self._compared, 1.0)
        return float(of @ shares / of.sum()) if of.sum() else 0.0

    def run(
        self, hour: Hour, requests: Ints, class_of: Ints, by_carbon: Mapping[str, Sequence[str]], bill: Evaluator
    ) -> None:
        """An evaluation, where its time has come.

        Args:
            requests, class_of: That may be judged, and their classes, [candidates].
            by_carbon: Names of levels by task, that of least carbon first.
        """
        undecided = any(
            names for place, task in enumerate(self._tasks) for names in self._wanted(place, by_carbon[task])[:2]
        )
        history = hour.history(TRIGGER_HISTORY_HOURS)
        if not self._trigger.should_run(hour.start, self._last_run, history, undecided).run:
            return
        waiting = ~np.isin(requests, self._scored)
        for place, task in enumerate(self._tasks):
            kept = self._rng.permutation(requests[waiting & (class_of == place)])
            kept = kept[: round(SAMPLE_SHARE * len(kept))]
            self._of_class(place, by_carbon[task], kept, hour.start, bill)

    def _of_class(self, place: int, by_carbon: Sequence[str], requests: Ints, now: datetime, bill: Evaluator) -> None:
        drawn, looked_after = 0, False
        while drawn < len(requests):
            undecided, pays, opened = self._wanted(place, by_carbon)
            names = [*(undecided if drawn < RUN_SAMPLES else ()), *pays]
            if not names and (looked_after or not opened):
                return
            # What is open is looked at once in an evaluation.
            scored = list(dict.fromkeys([*names, *(() if looked_after else opened)]))
            looked_after = True
            batch = requests[drawn : drawn + (BATCH_SAMPLES if names else MAINTENANCE_SAMPLES)]
            drawn += len(batch)
            self._last_run = now
            self._score(place, scored, batch, now, bill)
            self._scored = np.append(self._scored, batch)

    def _wanted(self, place: int, by_carbon: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """Directives that are undecided and not unlikely to clear a floor, open ones of which more scores pay, and all
        that are open."""
        undecided: list[str] = []
        pays: list[str] = []
        opened: list[str] = []
        task = self._tasks[place]
        floors = self._floors_of(task)
        if not floors:
            return undecided, pays, opened
        # With one floor no quality budget is spent by the bounds.
        worthwhile = worthwhile_pairs(self._asked[place]) if len(floors) > 1 else 0
        for name in _before(by_carbon, self._setting.levels[BASELINE]):
            cell = Cell(MODEL, task, name)
            verdicts = {floor: self._estimates.settled(cell, floor.quality, floor.kind) for floor in floors}
            if "open" in verdicts.values() and self._samples(place, name) < worthwhile:
                pays.append(name)
            if "undecided" not in verdicts.values():
                opened += [name] if "open" in verdicts.values() else []
                if set(verdicts.values()) == {"open"}:
                    break
            elif self._promises(cell, [floor for floor, verdict in verdicts.items() if verdict == "undecided"]):
                undecided.append(name)
            elif "open" in verdicts.values():
                opened.append(name)
        return undecided, pays, opened

    def _samples(self, place: int, name: str) -> int:
        bound = self._estimates.bound(Cell(MODEL, self._tasks[place], name))
        return 0 if bound is None else bound.samples

    def _promises(self, cell: Cell, undecided: Sequence[Floor]) -> bool:
        bound = self._estimates.bound(cell)
        if bound is None or bound.samples < PATIENCE_SAMPLES:
            return True
        chances = (self._estimates.chance_to_clear(cell, floor, FORESEEABLE_SAMPLES) for floor in undecided)
        return max(chances) >= FUTILE_CHANCE

    def _score(self, place: int, names: Sequence[str], requests: Ints, now: datetime, bill: Evaluator) -> None:
        levels = [self._setting.levels.index(name) for name in names]
        # A judge of preference sees the answers of all levels.
        judged = bill.judge(requests, [BASELINE, *levels] if self._graded[place] else None)
        for name, level in zip(names, levels, strict=True):
            cell = Cell(MODEL, self._tasks[place], name)
            quality, baseline = self._pairs(place, judged, level)
            for request, of, of_l0 in zip(requests.tolist(), quality.tolist(), baseline.tolist(), strict=True):
                if not np.isnan(of + of_l0):
                    at = PairedScore(cell, str(request), of, of_l0, self._judge(place), REVISION, now)
                    self._estimates.observe(at)
        if not self._graded[place]:
            self._compared[place] += len(requests)
            self._chosen_l0[place] += float(judged.preference[:, BASELINE].sum())

    def _pairs(self, place: int, judged: Judged, level: int) -> tuple[Floats, Floats]:
        if self._graded[place]:
            return judged.accuracy[:, level], judged.accuracy[:, BASELINE]
        liked = judged.preference
        return (1.0 + liked[:, level] - liked[:, BASELINE]) / 2.0, np.full(len(liked), BASELINE_QUALITY)

    def _judge(self, place: int) -> str:
        return "grader" if self._graded[place] else "judge"


def _before(names: Sequence[str], last: str) -> Sequence[str]:
    return names[: names.index(last)] if last in names else ()
