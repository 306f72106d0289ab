"""What to judge next. Pure, and stingy: every answer that is generated to be judged costs carbon.

For one (model, task), directives are tried from the least predicted carbon up:

- One that saves nothing is left alone, and so is one that is closed: the next has its turn.
- Under one that is open at every floor, those of more carbon need no evidence: the optimizer would not choose them.
- One that stays undecided for long, its share of quality being close to the floor, does not keep the next one waiting:
  the fewer spells of `patience_samples` a directive has had, the earlier its turn.
- One that is open is looked at with a few fresh samples in each evaluation, and with more for as long as these fall
  short of its floor, so that drift is noticed. Bounds and drift detector hold whatever rule ends the sampling.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from common.quality.estimates import Cell, Estimates, Floor, FloorKind, PairedScore
from evaluator.samples import Target


@dataclass(frozen=True, slots=True)
class Economy:
    """How much may be judged, in samples; `EvaluatorConfig` describes each."""

    batch_samples: int
    run_samples: int
    patience_samples: int
    maintenance_samples: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The next samples to judge of one target."""

    target: Target
    samples: int
    in_sight: int
    """What the evaluation may draw of the target in all, this batch included, if nothing settles before."""
    is_maintenance: bool


@dataclass(slots=True)
class Tally:
    """What one evaluation has done so far."""

    drawn: Counter[Cell] = field(default_factory=Counter)
    """Samples, scored or not."""
    scored: Counter[Cell] = field(default_factory=Counter)
    dry: set[Cell] = field(default_factory=set)
    """Cells of which nothing more can be had in this evaluation."""
    _quality: defaultdict[Cell, float] = field(default_factory=lambda: defaultdict(float))
    _baseline_quality: defaultdict[Cell, float] = field(default_factory=lambda: defaultdict(float))

    def take(self, score: PairedScore) -> None:
        self.scored[score.cell] += 1
        self._quality[score.cell] += score.quality
        self._baseline_quality[score.cell] += score.baseline_quality

    def falls_short(self, cell: Cell, floor: Floor) -> bool:
        """Whether the scores of this evaluation alone lie below the floor."""
        full = self._baseline_quality[cell] if floor.kind is FloorKind.RELATIVE else self.scored[cell]
        return self._quality[cell] < floor.quality * full


def next_batch(targets: Sequence[Target], estimates: Estimates, economy: Economy, tally: Tally) -> Batch | None:
    """The next batch of an evaluation; None once it has done what it can."""
    return next(iter(batches(targets, estimates, economy, tally)), None)


def batches(targets: Sequence[Target], estimates: Estimates, economy: Economy, tally: Tally) -> list[Batch]:
    """What can be judged now: those that are open, and at most one undecided directive, of each (model, task).

    Args:
        targets: those that can be judged, with `waiting` as of now.
    """
    groups: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.cell.model, target.cell.task), []).append(target)
    return [batch for group in groups.values() for batch in _of_group(group, estimates, economy, tally)]


def work_waits(targets: Sequence[Target], estimates: Estimates, economy: Economy) -> tuple[bool, bool]:
    """Whether an evaluation would be worth its start: for a directive that is undecided, and for one that is open."""
    found = batches(targets, estimates, economy, Tally())
    return (
        any(not batch.is_maintenance and batch.samples >= economy.batch_samples for batch in found),
        any(batch.is_maintenance and batch.samples >= economy.maintenance_samples for batch in found),
    )


def _of_group(
    group: Sequence[Target],
    estimates: Estimates,
    economy: Economy,
    tally: Tally,
) -> Iterator[Batch]:
    model, task = group[0].cell.model, group[0].cell.task
    spent = sum(count for cell, count in tally.drawn.items() if (cell.model, cell.task) == (model, task))
    budget = economy.run_samples - spent
    undecided: list[Target] = []
    saving = [t for t in group if t.relative_carbon is None or t.relative_carbon < 1]
    for target in sorted(saving, key=_carbon):
        verdicts = target.verdicts(estimates)
        verdict = target.verdict(estimates)
        if verdict == "open":
            cleared = [floor for floor, at_floor in verdicts.items() if at_floor == "open"]
            wanted = economy.maintenance_samples - tally.drawn[target.cell]
            if wanted <= 0 and any(tally.falls_short(target.cell, floor) for floor in cleared):
                wanted = economy.batch_samples
            samples = min(wanted, target.waiting, budget)
            # First, for it answers users: an undecided one may use up the rest of the budget.
            if samples > 0 and target.cell not in tally.dry:
                budget -= samples
                yield Batch(target, samples, samples, is_maintenance=True)
            if len(cleared) == len(verdicts):
                break
            continue
        if verdict == "undecided" and target.floors and target.cell not in tally.dry:
            undecided.append(target)
    if not undecided:
        return
    first = min(undecided, key=lambda target: _spells(target, estimates, economy))
    in_sight = min(first.waiting, budget)
    if in_sight > 0:
        yield Batch(first, min(economy.batch_samples, in_sight), in_sight, is_maintenance=False)


def _carbon(target: Target) -> tuple[float, str]:
    return (1.0 if target.relative_carbon is None else target.relative_carbon, target.cell.directive)


def _spells(target: Target, estimates: Estimates, economy: Economy) -> int:
    bound = estimates.bound(target.cell)
    return 0 if bound is None else bound.samples // economy.patience_samples
