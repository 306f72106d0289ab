"""Recorded requests, an hour of a grid's carbon after another, under policies that would have chosen how to answer."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from common.carbon.accounting import CarbonSettings, embodied_grams
from common.carbon.hours import HOUR
from router.replay.demand import Demand
from router.replay.outcome import Outcome, Tally
from router.replay.policies.interface import (
    FOLDS,
    MOST_LABELLED,
    Hour,
    Judged,
    Labelled,
    ReplayPolicy,
    Scope,
    Served,
    Setting,
)
from router.replay.recordings import (
    BASELINE,
    Actions,
    Bools,
    Floats,
    Ints,
    Quality,
    RecordedSet,
    actions_of,
)
from router.replay.trace import Trace
from router.replay.truth import Truth

PUBLISHED_CARBON: Final = CarbonSettings(pue=1.0, embodied_grams_total=26356.568, lifetime_years=5.0)
"""Of the published evaluation: one GPU, energies of the GPU alone."""

Factory = Callable[[Setting, Truth], ReplayPolicy]
"""Makes a policy for one replay; one that plays fair takes nothing of the truth."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of the policies.

    floor, scope: Of L0's quality; the published policies go by `xi` in its place.
    xi: The published policies' greatest loss of preference, at the year's dirtiest hour.
    seed: Of the requests that are drawn, and of policies' own draws.
    labels: Whether policies that play fair see the true tasks.
    """

    quality: Quality = Quality.PREFERENCE
    floor: float = 0.95
    scope: Scope = Scope.WINDOW
    xi: float = 0.1
    seed: int = 0
    labels: bool = False


def replay(
    recorded: RecordedSet,
    trace: Trace,
    start_hour: int,
    demand: Demand,
    policies: Mapping[str, Factory],
    terms: Terms,
    carbon: CarbonSettings = PUBLISHED_CARBON,
    progress: Callable[[str, int], None] = lambda name, hours: None,
) -> dict[str, Outcome]:
    """Every policy over the same requests.

    Args:
        start_hour: Of the trace.
        progress: Told, of a policy by name, how many hours are done.

    Raises ValueError where the window is not within the trace.
    """
    hours = len(demand.requests)
    end = start_hour + hours
    if start_hour < 0 or end > len(trace):
        raise ValueError(f"window: hours {start_hour} to {end} must lie within the {len(trace):,} of the trace")
    rate = embodied_grams(1.0, carbon.embodied_grams_total, carbon.lifetime_seconds)
    truth = Truth(recorded, trace, start_hour, demand, rate, terms.xi)
    return {name: _Run(truth, terms, factory).outcome(partial(progress, name)) for name, factory in policies.items()}


def folds_of(texts: Sequence[str]) -> Ints:
    """Fold of each prompt, by a hash of its text that is the same everywhere; the same text is always in one fold."""
    return np.array(
        [zlib.crc32(text.strip().encode("utf-8", "surrogatepass")) % FOLDS for text in texts], dtype=np.int64
    )


class _SeenTexts:
    """Texts of prompts that were requested by now, or labelled by the operator."""

    def __init__(self, texts: Sequence[str], seen: Bools) -> None:
        self._texts = texts
        self._seen = seen

    def __getitem__(self, prompt: int) -> str:
        if not self._seen[prompt]:
            raise LookupError(f"prompt {prompt} was not requested yet")
        return self._texts[prompt]


class _Run:
    """One policy over the window."""

    def __init__(self, truth: Truth, terms: Terms, factory: Factory) -> None:
        recorded = truth.recorded
        self._truth = truth
        self._terms = terms
        self._seen = np.zeros(len(recorded), dtype=bool)
        folds = folds_of(recorded.texts)
        labelled = _labelled(recorded, folds, terms.seed)
        for of in labelled.values():
            self._seen[of.prompts] = True
        setting = Setting(
            levels=recorded.levels,
            tasks=recorded.tasks,
            checkable=recorded.checkable,
            quality=terms.quality,
            floor=terms.floor,
            scope=terms.scope,
            hours=len(truth.demand.requests),
            requests_per_hour=float(truth.demand.requests.mean()),
            embodied_grams_per_second=truth.embodied_grams_per_second,
            folds=folds,
            labelled=labelled,
            texts=_SeenTexts(recorded.texts, self._seen),
            seed=terms.seed,
        )
        self._policy = factory(setting, truth)
        self._actions = actions_of(recorded, self._policy.composites)
        self._evaluator = MeteredEvaluator(recorded, self._actions)

    def outcome(self, progress: Callable[[int], None]) -> Outcome:
        truth, recorded, actions = self._truth, self._truth.recorded, self._actions
        tally, evaluator = Tally(recorded, actions), self._evaluator
        draws = truth.demand.draws(recorded, self._terms.seed)
        first = 0
        for index, prompts in enumerate(draws):
            moment = truth.start_hour + index
            self._seen[prompts] = True
            hour = Hour(
                index=index,
                start=truth.trace.start + moment * HOUR,
                g_per_kwh=_read_only(truth.trace.g_per_kwh[: moment + 1]),
                requests=np.arange(first, first + len(prompts)),
                prompts=prompts,
                tasks=recorded.task[prompts] if self._terms.labels else None,
            )
            chosen = np.asarray(self._policy.decide(hour, evaluator), dtype=np.int64)
            _check(chosen, len(prompts), len(actions.names))
            joules, seconds, samples = evaluator.take()
            tally.add(
                prompts,
                chosen,
                truth.demand.mix[index],
                grams=self._grams(actions.joules, actions.seconds, prompts, chosen, hour.intensity),
                base_grams=self._grams(recorded.joules, recorded.seconds, prompts, BASELINE, hour.intensity),
                evaluator_grams=float(truth.grams(np.array(joules), np.array(seconds), hour.intensity)),
                evaluator_samples=samples,
            )
            evaluator.served(prompts, chosen)
            generated = actions.generated[prompts, chosen]
            self._policy.observe(
                Served(
                    hour=index,
                    requests=hour.requests,
                    prompts=prompts,
                    actions=chosen,
                    level=actions.served[prompts, chosen],
                    joules=np.where(generated, recorded.joules[prompts], np.nan),
                    seconds=np.where(generated, recorded.seconds[prompts], np.nan),
                )
            )
            first += len(prompts)
            progress(index + 1)
        return tally.outcome()

    def _grams(self, joules: Floats, seconds: Floats, prompts: Ints, chosen: Ints | int, g_per_kwh: float) -> float:
        return float(self._truth.grams(joules[prompts, chosen], seconds[prompts, chosen], g_per_kwh).sum())


class MeteredEvaluator:
    """Judges from the record, and keeps the bill."""

    def __init__(self, recorded: RecordedSet, actions: Actions) -> None:
        self._recorded = recorded
        self._actions = actions
        self._prompts: list[Ints] = []
        self._chosen: list[Ints] = []
        self._ends: list[int] = []
        self._joules = self._seconds = 0.0
        self._samples = 0

    def served(self, prompts: Ints, chosen: Ints) -> None:
        """The requests of an hour, in order."""
        self._prompts.append(prompts)
        self._chosen.append(chosen)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(prompts))

    def take(self) -> tuple[float, float, int]:
        """Joules, seconds and samples since this was last asked."""
        bill = self._joules, self._seconds, self._samples
        self._joules, self._seconds, self._samples = 0.0, 0.0, 0
        return bill

    def judge(self, requests: Ints, levels: Sequence[int] | None = None) -> Judged:
        requests = np.asarray(requests, dtype=np.int64)
        if len(requests) and (requests.min() < 0 or requests.max() >= (self._ends[-1] if self._ends else 0)):
            raise ValueError("requests: only what was served in earlier hours can be judged")
        hours = np.searchsorted(self._ends, requests, side="right")
        starts = np.array([0, *self._ends])
        prompts, chosen = np.empty_like(requests), np.empty_like(requests)
        for hour in np.unique(hours):
            of = hours == hour
            within = requests[of] - starts[hour]
            prompts[of], chosen[of] = self._prompts[hour][within], self._chosen[hour][within]
        had = self._actions.generated[prompts, chosen]
        wanted = np.isin(np.arange(had.shape[1]), range(had.shape[1]) if levels is None else levels)
        return self._judged(prompts, had | wanted, (~had) & wanted)

    def charge(self, joules: float, seconds: float, samples: int = 0) -> None:
        self._joules += joules
        self._seconds += seconds
        self._samples += samples

    def _judged(self, prompts: Ints, known: Bools, charged: Bools) -> Judged:
        recorded = self._recorded
        joules, seconds = recorded.joules[prompts], recorded.seconds[prompts]
        self.charge(float(joules[charged].sum()), float(seconds[charged].sum()), len(prompts))
        compared = known.sum(axis=1, keepdims=True) == known.shape[1]
        return Judged(
            prompts=prompts,
            joules=np.where(known, joules, np.nan),
            seconds=np.where(known, seconds, np.nan),
            preference=np.where(compared, recorded.preference[prompts], np.nan),
            accuracy=np.where(known, recorded.accuracy[prompts], np.nan),
            generated=self._actions.generated[prompts] & compared[:, :, None],
            served=np.where(compared, self._actions.served[prompts], -1),
        )


def _labelled(recorded: RecordedSet, folds: Ints, seed: int) -> dict[int, Labelled]:
    """By fold: at most MOST_LABELLED prompts a task, drawn from the other folds."""
    rng = np.random.default_rng((seed, MOST_LABELLED))
    found = {}
    for fold in range(FOLDS):
        prompts = []
        for task in range(len(recorded.tasks)):
            of = np.flatnonzero((recorded.task == task) & (folds != fold))
            prompts.append(rng.permutation(of)[:MOST_LABELLED])
        chosen = np.concatenate(prompts)
        found[fold] = Labelled(chosen, recorded.task[chosen])
    return found


def _check(chosen: Ints, requests: int, actions: int) -> None:
    if chosen.shape != (requests,) or (requests and (chosen.min() < 0 or chosen.max() >= actions)):
        raise ValueError(f"decide: must give each of {requests} requests an action from 0 to {actions - 1}")


def _read_only(values: Floats) -> Floats:
    view = values.view()
    view.flags.writeable = False
    return view
