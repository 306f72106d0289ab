"""What a replay found: carbon, and the quality that was kept, beside the same requests at L0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router.replay.recordings import BASELINE, Actions, Floats, Ints, RecordedSet


@dataclass(frozen=True, slots=True)
class Kept:
    """Quality of a task's answers over the window, beside that of the same requests at L0.

    value, base: Mean of the answers served, and at L0.
    share: value / base.
    share_error: Standard error of `share` from the recorded prompts being a sample; the same prompts recur in a replay,
        so more requests do not make it smaller. None where a single prompt is all there is.
    """

    value: float
    base: float
    share: float
    share_error: float | None


@dataclass(frozen=True, slots=True)
class HourOutcome:
    """One hour: gCO2eq with and without the policy, evaluator included, requests by action, evaluator samples."""

    grams: float
    base_grams: float
    actions: Ints
    evaluator_samples: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy over one window.

    Attributes:
        carbon_grams: Of serving and of the evaluator.
        base_grams: Of the same requests at L0.
        evaluator_grams: Of the levels that the evaluator had generated, at the hours when it did.
        preference: Share of base: 1 + mean over hours of (d / n) / q0, with d how many more of the hour's n served
            answers than of its L0 answers are the judge's choice, and q0 the share of the judge's choices that L0 has
            in the hour's mix. In the mean that is the published measure, the mean over hours of q.x / q0, and for
            policies that look at single requests what they realise; as d is a difference on the same requests, it has
            no bias where hours have few. None where the judge's choice is not known of all prompts.
        task_preference: By task, over the window: the judge's choices among the served answers, as a share of those
            among the L0 answers of the same requests.
        accuracy: By task that has a grader.
        directive_mix: Share of the requests by action.
        evaluator_runs: Hours with evaluator samples, without the window's first: published counts leave out the run
            that a policy begins with.
        hours: One after another.
    """

    requests: int
    carbon_grams: float
    base_grams: float
    evaluator_grams: float
    evaluator_runs: int
    evaluator_samples: int
    preference: float | None
    task_preference: Mapping[str, Kept]
    accuracy: Mapping[str, Kept]
    directive_mix: Mapping[str, float]
    hours: tuple[HourOutcome, ...]

    @property
    def carbon_saving(self) -> float:
        """Share of base, the evaluator's carbon charged."""
        return 1.0 - self.carbon_grams / self.base_grams

    @property
    def carbon_saving_without_evaluator(self) -> float:
        """Share of base, as published figures are."""
        return 1.0 - (self.carbon_grams - self.evaluator_grams) / self.base_grams


class Tally:
    """Adds up a window, an hour at a time."""

    def __init__(self, recorded: RecordedSet, actions: Actions) -> None:
        self._recorded = recorded
        self._actions = actions
        self._served = np.zeros((len(recorded), len(recorded.levels)))
        """Requests of each prompt by the level served, [prompts, levels]."""
        self._preference: list[float] = []
        self._hours: list[HourOutcome] = []
        self._evaluator_grams = 0.0
        self._l0_preference = recorded.means(recorded.preference)[:, BASELINE]

    def add(
        self,
        prompts: Ints,
        actions: Ints,
        mix: Floats,
        grams: float,
        base_grams: float,
        evaluator_grams: float,
        evaluator_samples: int,
    ) -> None:
        """An hour: what was served, gCO2eq of serving it, of serving it at L0, and of the evaluator."""
        level = self._actions.served[prompts, actions]
        preference = self._recorded.preference
        more = float(preference[prompts, level].sum() - preference[prompts, BASELINE].sum())
        expected = len(prompts) * float(mix @ self._l0_preference)
        # Where the judge never chooses L0, there is nothing to be a share of.
        self._preference.append(more / expected if expected else math.nan)
        np.add.at(self._served, (prompts, level), 1.0)
        by_action = np.bincount(actions, minlength=len(self._actions.names))
        self._hours.append(HourOutcome(grams + evaluator_grams, base_grams, by_action, evaluator_samples))
        self._evaluator_grams += evaluator_grams

    def outcome(self) -> Outcome:
        recorded, hours = self._recorded, tuple(self._hours)
        by_action = np.sum([hour.actions for hour in hours], axis=0)
        requests = int(by_action.sum())
        preference = 1.0 + math.fsum(self._preference) / len(hours)
        return Outcome(
            requests=requests,
            carbon_grams=math.fsum(hour.grams for hour in hours),
            base_grams=math.fsum(hour.base_grams for hour in hours),
            evaluator_grams=self._evaluator_grams,
            evaluator_runs=sum(hour.evaluator_samples > 0 for hour in hours[1:]),
            evaluator_samples=sum(hour.evaluator_samples for hour in hours),
            preference=None if math.isnan(preference) else preference,
            task_preference=self._kept(recorded.preference),
            accuracy=self._kept(recorded.accuracy),
            directive_mix={
                name: float(count) / requests for name, count in zip(self._actions.names, by_action, strict=True)
            },
            hours=hours,
        )

    def _kept(self, quality: Floats) -> dict[str, Kept]:
        """By task; without tasks of which it is not known, or that nobody asked for."""
        found: dict[str, Kept] = {}
        for place, task in enumerate(self._recorded.tasks):
            of = np.flatnonzero((self._recorded.task == place) & (self._served.sum(axis=1) > 0))
            counts = self._served[of]
            got, base = (counts * quality[of]).sum(axis=1), counts.sum(axis=1) * quality[of, BASELINE]
            if not len(of) or not np.isfinite(got).all() or base.sum() == 0:
                continue
            share = got.sum() / base.sum()
            error = None
            if len(of) > 1:
                # Of a ratio of sums, by its linearisation; a prompt is a cluster of the requests that drew it.
                error = float(np.sqrt(((got - share * base) ** 2).sum() * len(of) / (len(of) - 1)) / base.sum())
            found[task] = Kept(float(got.sum() / counts.sum()), float(base.sum() / counts.sum()), float(share), error)
        return found
