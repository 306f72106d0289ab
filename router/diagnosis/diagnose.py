"""A request log's diagnosis: what directives would save there, by task and in all, and where they would not. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.quality.interval import Interval
from router.diagnosis.effect import Effect
from router.diagnosis.evidence import BASELINE, Evidence
from router.diagnosis.law import Law
from router.diagnosis.log import Log
from router.diagnosis.published import QUALITY, PublishedQuality, published_name
from router.diagnosis.saving import MIN_TASKS, Common, Lengths, energy_with, energy_without

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

FLOOR: Final = 0.95
HOLDBACK_SHARE: Final = 0.02
"""Of requests that stay at L0, to compare with."""
DRAWS: Final = 2_000
METHOD: Final = "draws from effects, answers' scatter, tasks' and models' differences; the widest over the batch sizes"
BANDS: Final = ((0, 32), (32, 256), (256, None))
"""Of output tokens."""


@dataclass(frozen=True, slots=True)
class Saving:
    """What a directive would save of a task's energy, or of all."""

    directive: str
    share: Interval | None
    """Of the energy; below 0 where it would cost. None where nothing is known of the directive."""
    known: bool
    """Whether the evidence is of this task, and not of others."""
    evidence: str
    """Its source."""
    quality: PublishedQuality | None = None
    extrapolated_share: float = 0.0
    """Of requests whose answers are shorter or longer than nearly all of the evidence's."""


@dataclass(frozen=True, slots=True)
class Band:
    """Requests whose answers have from `least` up to `below` tokens."""

    least: int
    below: int | None
    requests: int
    energy_share: float
    """Of all requests' energy, at the batch size in the middle."""


@dataclass(frozen=True, slots=True)
class TaskDiagnosis:
    """One task of the log, or its requests without one."""

    task: str
    requests: int
    input_tokens: float
    """Mean."""
    output_tokens: float
    """Mean."""
    energy_share: float
    """Of all requests' energy, at the batch size in the middle."""
    answers_share: tuple[float, float]
    """Of the task's energy, what its answers take and not its prompts, least and most over batch sizes: no directive
    saves more."""
    savings: tuple[Saving, ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """Every task under the directive that would save most of those that no published quality speaks against."""

    directives: Mapping[str, str]
    """By task; L0 where none is left, or none saves."""
    share: Interval
    """Of all requests' energy."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All of it. Shares are of energy; carbon goes with it, embodied carbon too, as both go with device time."""

    requests: int
    input_tokens: int
    output_tokens: int
    recorded_joules: float | None
    """None where not every request's energy is recorded; the law says then how they compare."""
    law: Law
    tasks: tuple[TaskDiagnosis, ...]
    """Largest share of energy first."""
    bands: tuple[Band, ...]
    savings: tuple[Saving, ...]
    """Of all requests under one directive."""
    mix: Mix
    floor: float
    holdback_share: float
    confidence: float
    evidence: tuple[str, ...]
    notes: tuple[str, ...]


def diagnose(
    log: Log,
    evidence: Sequence[Evidence],
    law: Law,
    *,
    floor: float = FLOOR,
    holdback_share: float = HOLDBACK_SHARE,
    confidence: float = 0.95,
    seed: int = 0,
) -> Diagnosis:
    """What the directives of the first evidence would save on a log that was served without.

    Args:
        evidence: The best first; what one does not know of a task or of other tasks, the next is asked for.
        floor: The share of L0's quality that a directive must keep.

    Raises ValueError where the log is empty or costs nothing by the law.
    """
    import numpy as np

    if not log:
        raise ValueError("the log holds no request")
    place = np.frombuffer(log.task_index, np.uint32)
    ends = np.cumsum(np.bincount(place, minlength=len(log.tasks)))
    rows = dict(zip(log.tasks, np.split(np.argsort(place, kind="stable"), ends[:-1]), strict=True))
    book = _Book(log, rows, evidence, law, served=1 - holdback_share, confidence=confidence, seed=seed)
    inputs, outputs = np.frombuffer(log.input_tokens, np.int64), np.frombuffer(log.output_tokens, np.int64)
    tasks = tuple(
        TaskDiagnosis(
            task=task,
            requests=len(its),
            input_tokens=float(inputs[its].mean()),
            output_tokens=float(outputs[its].mean()),
            energy_share=book.before[task][0][0] / book.total_joules,
            answers_share=book.answers_share(task),
            savings=tuple(book.saving(task, directive, outputs[its]) for directive in book.directives),
        )
        for task, its in rows.items()
    )
    chosen = {found.task: best.directive for found in tasks if (best := candidate(found, floor))}
    joules = float(np.frombuffer(log.energy_joules, np.float64).sum()) if book.recorded else None
    return Diagnosis(
        requests=len(log),
        input_tokens=int(inputs.sum()),
        output_tokens=int(outputs.sum()),
        recorded_joules=joules,
        law=law,
        tasks=tuple(sorted(tasks, key=lambda found: -found.energy_share)),
        bands=tuple(_bands(log, law)),
        savings=tuple(book.saving_of_all(directive) for directive in book.directives),
        mix=Mix({task: chosen.get(task, BASELINE) for task in log.tasks}, book.share_saved(chosen, log.tasks)),
        floor=floor,
        holdback_share=holdback_share,
        confidence=confidence,
        evidence=tuple(source.source for source in evidence),
        notes=tuple(_notes(log, book.recorded, evidence)),
    )


def candidate(found: TaskDiagnosis, floor: float) -> Saving | None:
    """What would save most of a task's energy of the directives that no published quality speaks against; None where
    there is none, or none that is more likely to save than to cost."""
    allowed = [s for s in found.savings if s.share and not (s.quality and s.quality.falls_below(floor))]
    best = max(allowed, key=lambda saving: saving.share.value if saving.share else 0.0, default=None)
    return best if best and best.share and best.share.value > 0 else None


Source = tuple[int, Effect | None, Sequence[Effect]]
"""Which evidence, its effect on the task, and its effects on others."""


class _Book:
    """Draws of what every task would have cost under every directive, at every batch size."""

    def __init__(
        self,
        log: Log,
        rows: Mapping[str, NDArray[np.int64]],
        evidence: Sequence[Evidence],
        law: Law,
        *,
        served: float,
        confidence: float,
        seed: int,
    ) -> None:
        self.directives = evidence[0].directives
        self.before: dict[str, list[tuple[float, float]]] = {task: [] for task in rows}
        """Joules, and those of the answers among them, by batch size."""
        self.recorded = _recorded(log)
        self._evidence = evidence
        self._batches = range(len(law.batches))
        self._served = served
        self._confidence = confidence
        self._sources = {(t, d): _source(evidence, t, d) for t in rows for d in self.directives}
        self._after: dict[tuple[str, str], list[Vector]] = {key: [] for key, source in self._sources.items() if source}
        commons = [Common.draw(DRAWS, source.transfer_freedom, seed) for source in evidence]
        for place, (task, its) in enumerate(rows.items(), 1):
            lengths = Lengths.of(log, its, recorded=self.recorded)
            for batch in law.batches:
                self.before[task].append(energy_without(lengths, law.model, batch))
                for number, directive in enumerate(self.directives):
                    if source := self._sources[task, directive]:
                        at, known, others = source
                        transfer = evidence[at].transfer_deviation, commons[at]
                        drawn = energy_with(lengths, law.model, batch, known, others, *transfer, (place, number))
                        self._after[task, directive].append(drawn)
        if self.total_joules <= 0:
            raise ValueError("by the energy law, the log's requests cost nothing: there is nothing to save")

    @property
    def total_joules(self) -> float:
        """At the batch size in the middle."""
        return sum(joules[0][0] for joules in self.before.values())

    def answers_share(self, task: str) -> tuple[float, float]:
        shares = [answers / joules if joules else 0.0 for joules, answers in self.before[task]]
        return min(shares), max(shares)

    def share_saved(self, chosen: Mapping[str, str], tasks: Sequence[str]) -> Interval:
        """Of `tasks`' energy, each under its directive of `chosen` and else as it was; the widest over batch sizes."""
        import numpy as np

        tails, drawn = (1 - self._confidence) / 2, []
        for batch in self._batches:
            joules = sum(self.before[task][batch][0] for task in tasks)
            saved = np.zeros(DRAWS)
            for task in set(chosen).intersection(tasks):
                saved += self.before[task][batch][0] - self._after[task, chosen[task]][batch]
            drawn.append(self._served * saved / (joules or 1.0))
        lower = min(float(np.quantile(saved, tails)) for saved in drawn)
        upper = max(float(np.quantile(saved, 1 - tails)) for saved in drawn)
        return Interval(float(np.median(drawn[0])), lower, upper, self._confidence, METHOD)

    def saving(self, task: str, directive: str, outputs: NDArray[np.int64]) -> Saving:
        source = self._sources[task, directive]
        known = source[1] if source else None
        return Saving(
            directive=directive,
            share=self.share_saved({task: directive}, [task]) if source else None,
            known=known is not None,
            evidence=self._evidence[source[0]].source if source else "",
            quality=QUALITY.get((published_name(task), directive)),
            extrapolated_share=_extrapolated(known, outputs) if known else 0.0,
        )

    def saving_of_all(self, directive: str) -> Saving:
        sources = {task: self._sources[task, directive] for task in self.before}
        complete = all(source is not None for source in sources.values())
        share = self.share_saved(dict.fromkeys(sources, directive), [*sources]) if complete else None
        known = all(source is not None and source[1] is not None for source in sources.values())
        names = dict.fromkeys(self._evidence[source[0]].source for source in sources.values() if source)
        return Saving(directive, share, known, "; ".join(names))


def _source(evidence: Sequence[Evidence], task: str, directive: str) -> Source | None:
    for name in (task, published_name(task)):
        for at, source in enumerate(evidence):
            if name in (its := source.of(directive)):
                return at, its[name], ()
    for at, source in enumerate(evidence):
        if len(its := source.of(directive)) >= MIN_TASKS:
            return at, None, [*its.values()]
    return None


def _extrapolated(effect: Effect, outputs: NDArray[np.int64]) -> float:
    outside = (outputs < effect.shortest_tokens) | (outputs > effect.longest_tokens)
    return float(outside.mean())


def _recorded(log: Log) -> bool:
    """Whether every request's energy is, and is above 0."""
    import numpy as np

    return bool((np.frombuffer(log.energy_joules, np.float64) > 0).all())


def _bands(log: Log, law: Law) -> Iterator[Band]:
    import numpy as np

    outputs = np.frombuffer(log.output_tokens, np.int64)

    def joules(rows: NDArray[np.int64] | slice) -> float:
        return energy_without(Lengths.of(log, rows, recorded=_recorded(log)), law.model, law.batch)[0]

    whole = joules(slice(None))
    for least, below in BANDS:
        (rows,) = np.nonzero((outputs >= least) & (outputs < (np.inf if below is None else below)))
        yield Band(least, below, len(rows), joules(rows) / whole if len(rows) else 0.0)


def _notes(log: Log, recorded: bool, evidence: Sequence[Evidence]) -> Iterator[str]:
    import numpy as np

    known = int((np.frombuffer(log.energy_joules, np.float64) > 0).sum())
    if known and not recorded:
        yield f"only {known:,} of {len(log):,} requests have their energy recorded: the energy law stands for all"
    for source in evidence:
        yield from source.notes
