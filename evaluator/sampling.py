"""What to judge next. Pure, and stingy: every answer that is generated to be judged costs carbon.

For one (model, task), directives are tried from the least predicted carbon up:

- One that saves nothing is left alone, and so is one that is closed: the next has its turn.
- Under one that is open at every floor, those of more carbon need no evidence: the optimizer would not choose them. Nor
  do those that would save next to nothing beyond it.
- One that stays undecided for long, its share of quality being close to the floor, does not keep the next one
  waiting: each has a spell of `patience_samples`, and then the one that promises most goes on.
- One that has had a spell and is unlikely to clear its floor within ten more is left alone too, though its bounds do
  not rule it out: it is closed as it is, and more scores would most likely change nothing.
- One that is open is looked at with a few fresh samples in each evaluation, and with more for as long as these fall
  short of its floor, so that drift is noticed. One that is open for a single tenant, by the tenant's own scores, is
  looked at with the few.
- One whose bound is spent from, by a quality budget, is sampled on for as long as that pays (`Target.worthwhile`),
  with more samples an evaluation than go into verdicts.

Of several tasks' directives those that are open are looked at first, then come those that promise most: predicted
saving of the waiting traffic x chance that the floor is cleared / cost of judging; last, where more scores only narrow
a bound. An evaluation to look at open ones alone waits until they have not been looked at for a while. Bounds and drift
detector hold whatever rule chooses and ends the sampling.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from common.quality.bound import Cell, Floor, FloorKind, PairedScore
from common.quality.estimates import Estimates
from evaluator.samples import Target

FUTILE_CHANCE = 0.05
"""Of clearing a floor, below which a directive is not worth its samples."""
FORESEEABLE_SPELLS = 10
NARROWING_RUNS = 5
"""Times `run_samples` an evaluation, of one directive: more would go on for hours, whatever the grid does meanwhile."""
LEAST_FURTHER_SAVING = 0.05
"""Share of L0's carbon."""


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
    narrows: bool = False
    """Whether it is for nothing but a narrower bound of a directive that is open."""


@dataclass(slots=True)
class Tally:
    """What one evaluation has done so far."""

    drawn: Counter[Cell] = field(default_factory=Counter)
    """Samples, scored or not."""
    scored: Counter[Cell] = field(default_factory=Counter)
    dry: set[Cell] = field(default_factory=set)
    """Cells of which nothing more can be had in this evaluation."""
    stale: set[Cell] = field(default_factory=set)
    """Cells of which nothing more was served since the last evaluation; of what was before, there may be."""
    refused: Counter[Cell] = field(default_factory=Counter)
    """Samples that no judge takes."""
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
    """What can be judged now: those that are open, and at most one undecided directive, of each (model, task);
    what is worth most first.

    Args:
        targets: those that can be judged, with `waiting` as of now.
    """
    groups: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.cell.model, target.cell.task), []).append(target)
    found = [batch for group in groups.values() for batch in _of_group(group, estimates, economy, tally)]
    # Sorting keeps the order of equals: a task's cheaper directive stays before its dearer one.
    return sorted(
        found,
        key=lambda batch: (not batch.is_maintenance, batch.narrows, -_value(batch.target, estimates, economy)),
    )


def work_waits(
    targets: Sequence[Target], estimates: Estimates, economy: Economy, now: datetime, fresh_seconds: float
) -> tuple[bool, bool]:
    """Whether an evaluation would be worth its start: for a directive that is undecided, and for one that is open and
    was not looked at within `fresh_seconds`."""
    found = batches(targets, estimates, economy, Tally())

    def is_fresh(target: Target) -> bool:
        bound = estimates.bound(target.cell)
        return bound is not None and (now - bound.updated_at).total_seconds() < fresh_seconds

    return (
        any(not batch.is_maintenance and batch.samples >= economy.batch_samples for batch in found),
        any(
            batch.is_maintenance and batch.samples >= economy.maintenance_samples and not is_fresh(batch.target)
            for batch in found
        ),
    )


def _chance(target: Target, estimates: Estimates, economy: Economy) -> float:
    """Of clearing a floor at which it is undecided."""
    more = FORESEEABLE_SPELLS * economy.patience_samples
    bound = estimates.bound(target.cell)
    known = estimates if bound is not None and bound.revision == str(target.revision) else Estimates(lambda cell: ())
    undecided = (floor for floor, verdict in target.verdicts(estimates).items() if verdict == "undecided")
    return max((known.chance_to_clear(target.cell, floor, more) for floor in undecided), default=0.0)


def _value(target: Target, estimates: Estimates, economy: Economy) -> float:
    """Requests' worth of L0 carbon that judging may save, by what judging costs: at worst both answers."""
    carbon = _carbon(target)[0]
    return target.waiting * (1 - carbon) * _chance(target, estimates, economy) / (1 + carbon)


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
    looked_at: list[tuple[Target, int]] = []
    saving = [t for t in group if t.relative_carbon is None or t.relative_carbon < 1]
    for target in sorted(saving, key=_carbon):
        verdicts = target.verdicts(estimates)
        verdict = target.verdict(estimates)
        cleared = [floor for floor, at_floor in verdicts.items() if at_floor == "open"]
        # It answers users, whether or not more is to be told of it.
        if cleared:
            wanted = economy.maintenance_samples - tally.drawn[target.cell]
            if wanted <= 0 and any(
                tally.falls_short(target.cell, estimates.as_scored(target.cell, floor)) for floor in cleared
            ):
                wanted = economy.batch_samples
            samples = min(wanted, target.waiting, budget)
            if target.cell in tally.dry | tally.stale:
                samples = 0
            # First: an undecided one may use up the rest of the budget.
            if samples > 0:
                budget -= samples
                yield Batch(target, samples, samples, is_maintenance=True)
            if target.cell not in tally.dry:
                looked_at.append((target, max(samples, 0)))
        if verdict == "open":
            if len(cleared) == len(verdicts):
                most = _carbon(target)[0] - LEAST_FURTHER_SAVING
                undecided = [cheaper for cheaper in undecided if _carbon(cheaper)[0] <= most]
                break
            continue
        if not target.floors or target.cell in tally.dry:
            continue
        # Most of those that lie far below are ruled out within a spell, which says more than that they are unlikely.
        if verdict == "undecided" and (
            not _spells(target, estimates, economy) or _chance(target, estimates, economy) >= FUTILE_CHANCE
        ):
            undecided.append(target)
        elif not cleared and target.cell not in tally.stale and _is_open_for_some(target, estimates):
            samples = min(economy.maintenance_samples - tally.drawn[target.cell], target.waiting, budget)
            if samples > 0:
                budget -= samples
                yield Batch(target, samples, samples, is_maintenance=True)
    first, in_sight = None, 0
    if undecided:
        fresh = (target for target in undecided if not _spells(target, estimates, economy))
        first = next(fresh, None) or max(undecided, key=lambda target: _value(target, estimates, economy))
        in_sight = max(min(first.waiting, budget), 0)
        if in_sight > 0:
            yield Batch(first, min(economy.batch_samples, in_sight), in_sight, is_maintenance=False)
    for target, samples in looked_at:
        more = _worthwhile(target, estimates, economy, tally) - samples - (in_sight if target is first else 0)
        if more > 0:
            yield Batch(target, min(economy.batch_samples, more), more, is_maintenance=False, narrows=True)


def _worthwhile(target: Target, estimates: Estimates, economy: Economy, tally: Tally) -> int:
    """How many more samples pay in this evaluation, of a directive that is open."""
    bound = estimates.bound(target.cell)
    scored = bound.samples if bound is not None else 0
    left = NARROWING_RUNS * economy.run_samples - tally.drawn[target.cell]
    return min(target.worthwhile - scored, target.waiting, left)


def _is_open_for_some(target: Target, estimates: Estimates) -> bool:
    """Whether it answers users though it is not open for all tenants together: by a tenant's own bound."""
    return any("open" in target.verdicts(estimates, own).values() for own in estimates.of_tenants(target.cell))


def _carbon(target: Target) -> tuple[float, str]:
    return (1.0 if target.relative_carbon is None else target.relative_carbon, target.cell.directive)


def _spells(target: Target, estimates: Estimates, economy: Economy) -> int:
    bound = estimates.bound(target.cell)
    return 0 if bound is None else bound.samples // economy.patience_samples
