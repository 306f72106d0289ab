"""What is known about the quality of every (model, task, directive), and what follows for its floors.

Pure state: scores in, bounds out. The same scores, in the same order, always give the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Literal

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind, PairedScore, QualityBound
from common.quality.confidence import ShareSequence
from common.quality.drift import DriftDetector

Verdict = Literal["open", "closed", "undecided"]


class _Epoch:
    """Scores of one cell, judge and revision, between two changes."""

    def __init__(self, judge: str, revision: str, alpha: float, started_at: datetime) -> None:
        self.judge = judge
        self.revision = revision
        self.updated_at = started_at
        self.share = ShareSequence(alpha)
        self.mean = ShareSequence(alpha, limit=1.0)
        self.detector_of_floor: dict[Floor, DriftDetector] = {}

    def verdict(self, floor: Floor) -> Verdict:
        sequence = self.share if floor.kind is FloorKind.RELATIVE else self.mean
        if sequence.samples > 0 and sequence.lower >= floor.quality:
            return "open"
        return "closed" if sequence.upper < floor.quality else "undecided"


class Estimates:
    """Bounds of all cells, from their scores.

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
        self._drift_alarms: dict[tuple[Cell, str], int] = {}
        self._seen: set[tuple[Cell, str, str, str]] = set()

    def observe(self, score: PairedScore) -> EpochStart | None:
        """Take in one score; the event, where it ended an epoch.

        A score of a sample that the same judge has scored at the same revision before has no effect, nor
        has one of another revision that is older than the judge's latest score: it is a straggler of the
        past.
        """
        key = (score.cell, score.sample_id, score.judge, score.revision)
        if key in self._seen:
            return None
        self._seen.add(key)
        epoch = self._epoch_of_judge.get(score.cell, {}).get(score.judge)
        event = None
        if epoch is None:
            epoch = self._begin(score)
        elif epoch.revision != score.revision:
            if score.scored_at < epoch.updated_at:
                return None
            epoch = self._begin(score)
            event = EpochStart(score.cell, score.judge, EpochReason.REVISION, score.scored_at)
        return self._extend(epoch, score) or event

    def observe_all(self, scores: Iterable[PairedScore]) -> tuple[EpochStart, ...]:
        """Take in scores, oldest first and by sample id where times are equal; the events, in that order.

        So a state rebuilt from all scores at once equals the one that grew with them, run by run.
        """
        ordered = sorted(scores, key=lambda score: (score.scored_at, score.sample_id))
        return tuple(event for score in ordered if (event := self.observe(score)) is not None)

    def cells(self) -> tuple[Cell, ...]:
        """Every cell that has been scored, in the order of the first score."""
        return tuple(self._epoch_of_judge)

    def judges(self, cell: Cell) -> tuple[str, ...]:
        """Every judge that has scored a cell, in the order of their first scores."""
        return tuple(self._epoch_of_judge.get(cell, ()))

    def bound(self, cell: Cell) -> QualityBound | None:
        """Bounds of a cell; None where its judge never scored it, or not since the present epoch began."""
        epoch = self._epoch(cell)
        if epoch is None or epoch.share.samples == 0:
            return None
        return QualityBound(
            cell=cell,
            lower=epoch.share.lower,
            upper=epoch.share.upper,
            share=epoch.share.share,
            absolute_lower=epoch.mean.lower,
            samples=epoch.share.samples,
            judge=epoch.judge,
            revision=epoch.revision,
            updated_at=epoch.updated_at,
        )

    def settled(self, cell: Cell, floor: float, kind: FloorKind) -> Verdict:
        """What the scores say about a floor: cleared, out of reach, or more scores are needed to tell."""
        epoch = self._epoch(cell)
        return epoch.verdict(Floor(floor, kind)) if epoch is not None else "undecided"

    def chance_to_clear(self, cell: Cell, floor: Floor, more: int) -> float:
        """About how likely a floor is to be cleared with so many more scores (`ShareSequence.chance_to_clear`)."""
        epoch = self._epoch(cell)
        if epoch is None:
            return ShareSequence(self._alpha).chance_to_clear(floor.quality, more)
        sequence = epoch.share if floor.kind is FloorKind.RELATIVE else epoch.mean
        return sequence.chance_to_clear(floor.quality, more)

    def drift_alarms(self, cell: Cell) -> int:
        """How often a cell's estimate began anew because quality had changed (DRIFT or CONTRADICTION)."""
        epoch = self._epoch(cell)
        return 0 if epoch is None else self._drift_alarms.get((cell, epoch.judge), 0)

    def _epoch(self, cell: Cell) -> _Epoch | None:
        epochs = self._epoch_of_judge.get(cell, {})
        judge = self._judge_of(cell)
        return epochs.get(judge) if judge else max(epochs.values(), key=lambda epoch: epoch.updated_at, default=None)

    def _begin(self, score: PairedScore) -> _Epoch:
        epoch = _Epoch(score.judge, score.revision, self._alpha, score.scored_at)
        self._epoch_of_judge.setdefault(score.cell, {})[score.judge] = epoch
        return epoch

    def _extend(self, epoch: _Epoch, score: PairedScore) -> EpochStart | None:
        epoch.updated_at = max(epoch.updated_at, score.scored_at)
        # As the scores before this one have them: a level that knew this score would not be one to bet against.
        established = {FloorKind.RELATIVE: epoch.share.lower, FloorKind.ABSOLUTE: epoch.mean.lower}
        epoch.share.update(score.quality, score.baseline_quality)
        epoch.mean.update(score.quality, 1.0)
        broken = None
        floors = self._floors_of(score.cell)
        for floor in floors:
            detector = epoch.detector_of_floor.get(floor)
            if detector is not None:
                baseline = score.baseline_quality if floor.kind is FloorKind.RELATIVE else 1.0
                if detector.update(score.quality, baseline, established[floor.kind]):
                    broken = floor
            elif epoch.verdict(floor) == "open":
                # Armed only now: below a floor that was never cleared there is nothing to close.
                epoch.detector_of_floor[floor] = DriftDetector(floor.quality, self._drift_alpha)
        if broken is not None:
            return self._end(score, EpochReason.DRIFT, broken)
        # While a floor is cleared its detector watches: a change that stays above it closes nothing.
        is_contradicted = epoch.share.contradicted or epoch.mean.contradicted
        if is_contradicted and all(epoch.verdict(floor) != "open" for floor in floors):
            return self._end(score, EpochReason.CONTRADICTION, None)
        return None

    def _end(self, score: PairedScore, reason: EpochReason, floor: Floor | None) -> EpochStart:
        # The new epoch begins after this score, which is part of the evidence against the old one.
        self._begin(score)
        of_judge = (score.cell, score.judge)
        self._drift_alarms[of_judge] = self._drift_alarms.get(of_judge, 0) + 1
        return EpochStart(score.cell, score.judge, reason, score.scored_at, floor)
