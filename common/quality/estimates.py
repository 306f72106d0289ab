"""What is known about the quality of every (model, task, directive), and what follows for its floors.

Pure state: scores in, bounds out. The same scores, in the same order, always give the same state.
"""

from __future__ import annotations

from collections import ChainMap, Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from datetime import datetime
from typing import Literal

from common.quality.bound import (
    BoundMethod,
    Cell,
    EpochReason,
    EpochStart,
    Floor,
    FloorKind,
    PairedScore,
    QualityBound,
    RawShare,
    is_of_future,
)
from common.quality.confidence import ShareSequence
from common.quality.corrected import LEAST_PAIRS, NOT_YET_CORRECTED, CellPairs, CorrectedShare
from common.quality.drift import DriftDetector
from common.quality.likings import Likings, last_of_series
from common.quality.pairwise import BASELINE_QUALITY

Verdict = Literal["open", "closed", "undecided"]

MAX_TENANTS = 100
"""Tenants of one (model, task, directive) with an estimate of their own: those with most scores. Of the others only the
number of scores is kept. One gets the place of another once it has more than twice as many, which bounds how often
evidence is thrown away for a place."""


class _Epoch:
    """Scores of one cell, judge and revision, between two changes."""

    def __init__(self, judge: str, revision: str, alpha: float, started_at: datetime) -> None:
        self.judge = judge
        self.revision = revision
        self.updated_at = started_at
        self.since: datetime | None = None
        self.share = ShareSequence(alpha)
        self.mean = ShareSequence(alpha, limit=1.0)
        self.detector_of_floor: dict[Floor, DriftDetector] = {}
        self.compared = CellPairs()

    def verdict(self, floor: Floor) -> Verdict:
        sequence = self.share if floor.kind is FloorKind.RELATIVE else self.mean
        if sequence.samples > 0 and sequence.lower >= floor.quality:
            return "open"
        return "closed" if sequence.upper < floor.quality else "undecided"


class Estimates:
    """Bounds of all cells, from their scores: of each for all tenants together, and for each tenant.

    floors_of: the floors that policies set for a cell, asked at every score.
    judge_of: the judge whose scores count for a cell, asked whenever something is to be known of it; "" where no
        policy names one, which is then that of the latest score.
    alpha: error probability of each bound over one epoch.
    drift_alpha: reciprocal of the least mean number of scores to a false drift alarm.

    Every judge has an estimate of its own, which the scores of others leave as it is: two policies may name different
    graders for one task. An epoch of a cell and judge ends, and a new one begins without any score, when the revision
    changes, when a floor that was cleared is found broken, or when the scores contradict one constant share and no
    floor is cleared. Within an epoch bounds only tighten (a contradiction apart, which lowers the lower one), so that
    a verdict, once reached, stands: that is the hysteresis between open and closed. alpha holds for each
    epoch anew.

    Where a judge compares answers, what decides is the share at equal length (`corrected`), of which the bounds follow
    the latest estimate instead; it is made by `correct`, not with every score. Drift and contradictions are looked for
    in the scores as they are.

    A score counts for its cell and for that of its tenant, an estimate like any other: with epochs and drift detectors
    of its own, at the floors of all policies and by the judge of the cell. What a tenant's scores show changes nothing
    for all tenants together. The other way round, a new text ends the tenants' epochs too; and where quality is found
    to have fallen below a floor for all together, so do those of the tenants that are not closed at that floor: most
    drops are everybody's, a tenant's own few scores would take long to tell, and what they said before is of no use to
    open a directive again. What is closed for a tenant stays so by its own scores.
    """

    def __init__(
        self,
        floors_of: Callable[[Cell], Sequence[Floor]],
        alpha: float = 0.05,
        drift_alpha: float = 0.01,
        judge_of: Callable[[Cell], str] = lambda cell: "",
    ) -> None:
        self._floors_of = floors_of
        self._judge_of = judge_of
        self._alpha = alpha
        self._drift_alpha = drift_alpha
        self._epoch_of_judge: dict[Cell, dict[str, _Epoch]] = {}
        self._scores_of_tenant: defaultdict[Cell, Counter[str]] = defaultdict(Counter)
        """By the cell of all."""
        self._of_tenant: defaultdict[Cell, dict[str, Cell]] = defaultdict(dict)
        """The tenants' own cells, of those that have an estimate; by the cell of all."""
        self._drift_alarms: dict[tuple[Cell, str], int] = {}
        self._likings: dict[str, Likings] = {}
        """By judge."""
        self._corrected_at: dict[str, int] = {}
        """A judge's pairs as the corrected shares have them."""
        self._corrected: dict[tuple[Cell, str], CorrectedShare | None] = {}
        """By cell and judge; None where there is nothing to correct."""
        self._seen: ChainMap[tuple[Cell, str, str, str], None] = ChainMap()

    def observe(self, score: PairedScore) -> tuple[EpochStart, ...]:
        """Take in one score; the epochs that it ended, that of all tenants first.

        A score of a sample that the same judge has scored at the same revision before has no effect, nor
        has one of another revision that is older than the judge's latest score: it is a straggler of the
        past.
        """
        key = (score.cell, score.sample_id, score.judge, score.revision)
        if key in self._seen:
            return ()
        self._seen[key] = None
        epoch = self._epoch_of_judge.get(score.cell, {}).get(score.judge)
        start = None
        if epoch is not None and epoch.revision != score.revision:
            if score.scored_at < epoch.updated_at:
                return ()
            epoch = None
            start = EpochStart(score.cell, score.judge, EpochReason.REVISION, score.scored_at)
            for own in self._of_tenant[score.cell].values():
                self._epoch_of_judge[own].pop(score.judge, None)
        start = self._extend(score.cell, epoch or self._begin(score.cell, score), score) or start
        return (*(() if start is None else (start,)), *self._observe_tenants(score, start))

    def observe_all(self, scores: Iterable[PairedScore]) -> tuple[EpochStart, ...]:
        """Take in scores, oldest first and by sample id where times are equal; the events, in that order.

        So a state rebuilt from all scores at once equals the one that grew with them, run by run.
        """
        ordered = sorted(scores, key=lambda score: (score.scored_at, score.sample_id))
        starts = tuple(start for score in ordered for start in self.observe(score))
        self.correct()
        return starts

    def correct(self) -> None:
        """Takes the scores of comparisons so far into the bounds of the cells that they were made for: until then those
        are what they were. It may take seconds where a judge has compared thousands of pairs.
        """
        for judge, likings in self._likings.items():
            if likings.taken == self._corrected_at.get(judge):
                continue
            self._corrected = {of: share for of, share in self._corrected.items() if of[1] != judge} | {
                (cell, judge): epoch.compared.corrected(likings, self._alpha)
                for cell, epochs in self._epoch_of_judge.items()
                if (epoch := epochs.get(judge)) is not None and epoch.compared
            }
            self._corrected_at[judge] = likings.taken

    def supposing(self, scores: Iterable[PairedScore]) -> tuple[Estimates, tuple[EpochStart, ...]]:
        """What would be known with these scores too, and the events, as `observe_all`; this state stays as it is.

        Of use until this state takes in its next score: what the scores do not touch, the two share.
        """
        given = tuple(scores)
        touched = {score.cell for score in given}
        supposed = copy(self)
        supposed._seen = self._seen.new_child()
        for name, state in vars(self).items():
            if isinstance(state, dict):
                own = copy(state)
                own.update((key, deepcopy(of_key)) for key, of_key in state.items() if _touches(key, touched))
                setattr(supposed, name, own)
        return supposed, supposed.observe_all(given)

    def has_score(self, cell: Cell, sample_id: str, revision: str) -> bool:
        """Whether a score of the sample, by any judge, has been taken in."""
        return any((cell, sample_id, judge, revision) in self._seen for judge in self.judges(cell))

    def cells(self) -> tuple[Cell, ...]:
        """Every cell that has been scored, of all tenants, in the order of the first score."""
        # Of a copy, which a thread that takes in scores cannot change meanwhile.
        return tuple(cell for cell in tuple(self._epoch_of_judge) if not cell.tenant)

    def of_tenants(self, cell: Cell) -> tuple[Cell, ...]:
        """The tenants' own of a cell of all. None where all scores are of one tenant: then the two are the same."""
        if len(self._scores_of_tenant.get(cell, ())) < 2:
            return ()
        return tuple(self._of_tenant.get(cell, {}).values())

    def judges(self, cell: Cell) -> tuple[str, ...]:
        """Every judge that has scored a cell, in the order of their first scores."""
        return tuple(self._epoch_of_judge.get(cell, ()))

    def bound(self, cell: Cell) -> QualityBound | None:
        """Bounds of a cell; None where its judge never scored it, or not since the present epoch began."""
        epoch = self._epoch(cell)
        if epoch is None or epoch.share.samples == 0:
            return None
        bound = QualityBound(
            cell=cell,
            lower=epoch.share.lower,
            upper=epoch.share.upper,
            share=epoch.share.share,
            absolute_lower=epoch.mean.lower,
            samples=epoch.share.samples,
            judge=epoch.judge,
            revision=epoch.revision,
            updated_at=epoch.updated_at,
            since=epoch.since,
            absolute_upper=epoch.mean.upper,
        )
        corrected = self._corrected_share(cell, epoch)
        if corrected is None:
            return bound
        return replace(
            bound,
            lower=corrected.lower,
            upper=corrected.upper,
            share=corrected.share,
            absolute_lower=corrected.lower * BASELINE_QUALITY,
            absolute_upper=min(1.0, corrected.upper * BASELINE_QUALITY),
            method=BoundMethod.LENGTH_CORRECTED,
            raw=RawShare(bound.lower, bound.upper, bound.share),
        )

    def settled(self, cell: Cell, floor: float, kind: FloorKind) -> Verdict:
        """What the scores say about a floor: cleared, out of reach, or more scores are needed to tell."""
        epoch = self._epoch(cell)
        if epoch is None:
            return "undecided"
        corrected = self._corrected_share(cell, epoch)
        if corrected is None:
            return epoch.verdict(Floor(floor, kind))
        return corrected.verdict(Floor(floor, kind))

    def as_scored(self, cell: Cell, floor: Floor) -> Floor:
        """Where scores lie when the share is at a floor: at the floor itself, unless they are corrected first."""
        epoch = self._epoch(cell)
        corrected = None if epoch is None else self._corrected_share(cell, epoch)
        return floor if epoch is None or corrected is None else _as_scored(floor, corrected, epoch.share)

    def chance_to_clear(self, cell: Cell, floor: Floor, more: int) -> float:
        """About how likely a floor is to be cleared with so many more scores (`ShareSequence.chance_to_clear`)."""
        epoch = self._epoch(cell)
        if epoch is None:
            return ShareSequence(self._alpha).chance_to_clear(floor.quality, more)
        if (corrected := self._corrected_share(cell, epoch)) is not None:
            return corrected.chance_to_clear(floor, more)
        sequence = epoch.share if floor.kind is FloorKind.RELATIVE else epoch.mean
        return sequence.chance_to_clear(floor.quality, more)

    def drift_alarms(self, cell: Cell) -> int:
        """How often a cell's estimate began anew because quality had changed (DRIFT or CONTRADICTION)."""
        epoch = self._epoch(cell)
        return 0 if epoch is None else self._drift_alarms.get((cell, epoch.judge), 0)

    def _epoch(self, cell: Cell) -> _Epoch | None:
        epochs = self._epoch_of_judge.get(cell, {})
        judge = self._judge_of(cell.of_all)
        return epochs.get(judge) if judge else max(epochs.values(), key=lambda epoch: epoch.updated_at, default=None)

    def _corrected_share(self, cell: Cell, epoch: _Epoch) -> CorrectedShare | None:
        """None where the raw one decides."""
        return self._corrected.get((cell, epoch.judge), NOT_YET_CORRECTED) if epoch.compared else None

    def _begin(self, cell: Cell, score: PairedScore) -> _Epoch:
        epoch = _Epoch(score.judge, score.revision, self._alpha, score.scored_at)
        self._epoch_of_judge.setdefault(cell, {})[score.judge] = epoch
        self._corrected.pop((cell, score.judge), None)
        return epoch

    def _observe_tenants(self, score: PairedScore, start: EpochStart | None) -> Iterator[EpochStart]:
        """The epochs of tenants that the score ended.

        start: of the epoch of all that it ended, if it did.
        """
        if (own := self._own(score)) is not None:
            epoch = self._epoch_of_judge.get(own, {}).get(score.judge) or self._begin(own, score)
            if (ended := self._extend(own, epoch, score)) is not None:
                yield ended
        if start is not None and start.reason is EpochReason.DRIFT and start.floor is not None:
            for cell in self._of_tenant[score.cell].values():
                of_judge = self._epoch_of_judge.get(cell, {}).get(score.judge)
                if of_judge and of_judge.share.samples and of_judge.verdict(start.floor) != "closed":
                    yield self._end(cell, score, start.reason, start.floor)

    def _own(self, score: PairedScore) -> Cell | None:
        """The cell of the score's tenant, where it has an estimate of its own."""
        scores, kept = self._scores_of_tenant[score.cell], self._of_tenant[score.cell]
        scores[score.tenant] += 1
        if not score.tenant or score.tenant in kept:
            return kept.get(score.tenant)
        if len(kept) == MAX_TENANTS:
            least = min(kept, key=lambda tenant: (scores[tenant], tenant))
            if scores[score.tenant] <= 2 * scores[least]:
                return None
            self._epoch_of_judge.pop(kept.pop(least), None)
        kept[score.tenant] = replace(score.cell, tenant=score.tenant)
        return kept[score.tenant]

    def _extend(self, cell: Cell, epoch: _Epoch, score: PairedScore) -> EpochStart | None:
        # A clock that has gone back must not leave the bound in the future, where it opens nothing.
        went_back = is_of_future(epoch.updated_at, score.scored_at)
        epoch.updated_at = score.scored_at if went_back else max(epoch.updated_at, score.scored_at)
        epoch.since = epoch.since or score.scored_at
        # As the scores before this one have them: a level that knew this score would not be one to bet against.
        established = {FloorKind.RELATIVE: epoch.share.lower, FloorKind.ABSOLUTE: epoch.mean.lower}
        epoch.share.update(score.quality, score.baseline_quality)
        epoch.mean.update(score.quality, 1.0)
        if score.comparison is not None:
            likings = self._likings.setdefault(score.judge, Likings())
            epoch.compared.take(score.sample_id, score.comparison, likings, teaches=not cell.tenant)
        broken = None
        floors = self._floors_of(score.cell)
        for floor in epoch.detector_of_floor.keys() - set(floors):
            # Asked for again, it would go by what it saw before.
            del epoch.detector_of_floor[floor]
        for floor in floors:
            detector = epoch.detector_of_floor.get(floor)
            if detector is not None:
                baseline = score.baseline_quality if floor.kind is FloorKind.RELATIVE else 1.0
                if detector.update(score.quality, baseline, established[floor.kind], epoch.share.samples):
                    broken = floor
            elif epoch.verdict(floor) == "open":
                # Armed only now: below a floor that was never cleared there is nothing to close.
                epoch.detector_of_floor[floor] = DriftDetector(floor.quality, self._drift_alpha)
        self._watch_corrected(epoch, floors)
        if broken is not None:
            return self._end(cell, score, EpochReason.DRIFT, broken)
        # While a floor is cleared its detector watches: a change that stays above it closes nothing.
        is_contradicted = epoch.share.contradicted or epoch.mean.contradicted
        if is_contradicted and all(epoch.verdict(floor) != "open" for floor in floors):
            return self._end(cell, score, EpochReason.CONTRADICTION, None)
        return None

    def _watch_corrected(self, epoch: _Epoch, floors: Sequence[Floor]) -> None:
        """Arms detectors at floors that the corrected share clears. They watch the raw scores, at the level of these at
        which it would be at the floor."""
        pairs = len(epoch.compared)
        # By the number of pairs alone: a rebuilt state must have them from the same score on.
        if pairs < LEAST_PAIRS or pairs != last_of_series(pairs):
            return
        corrected = epoch.compared.corrected(self._likings[epoch.judge], self._alpha)
        if corrected is None:
            return
        for floor in floors:
            if floor not in epoch.detector_of_floor and corrected.verdict(floor) == "open":
                level = _as_scored(floor, corrected, epoch.share)
                epoch.detector_of_floor[floor] = DriftDetector(level.quality, self._drift_alpha)

    def _end(self, cell: Cell, score: PairedScore, reason: EpochReason, floor: Floor | None) -> EpochStart:
        # The new epoch begins after this score, which is part of the evidence against the old one.
        self._begin(cell, score)
        of_judge = (cell, score.judge)
        self._drift_alarms[of_judge] = self._drift_alarms.get(of_judge, 0) + 1
        return EpochStart(cell, score.judge, reason, score.scored_at, floor)


def _as_scored(floor: Floor, corrected: CorrectedShare, raw: ShareSequence) -> Floor:
    if not corrected.share or not raw.share:
        return floor
    return replace(floor, quality=min(1.0, floor.quality * raw.share / corrected.share))


def _touches(key: object, cells: Collection[Cell]) -> bool:
    """Whether scores of these cells may change what is kept under a key: not what is of another cell alone."""
    cell = key[0] if isinstance(key, tuple) else key
    return not isinstance(cell, Cell) or cell.of_all in cells
