"""A trial: a directive that need not exist yet, beside L0 on samples drawn at random, before anybody is served it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc

from common.errors import FieldViolation, PithError, invalid_argument
from common.quality.trial import TrialPair, TrialResult, TriedAnswer, summarise
from evaluator.client import RouterClient
from evaluator.judges.base import Judge, Unscored
from evaluator.samples import L0, L0_REVISION, TRIAL, Generated, Sample
from evaluator.spending import Spending

_CANDIDATE_FIELD = "evaluation.candidate"


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What came of a trial."""

    result: TrialResult
    model: str
    failed: int
    """Samples that were left out because an answer could not be had or graded."""


@dataclass(frozen=True, slots=True)
class TrialStep:
    """A moment of a trial; the last one has the outcome."""

    samples_done: int
    samples_planned: int
    outcome: TrialOutcome | None = None


class Trials:
    """Runs trials, so many answers at a time over all of them. Nothing is recorded but what it cost.

    Args:
        alpha: error probability of each bound of the quality.
        spending: where generated answers are added up.
    """

    def __init__(self, router: RouterClient, judge: Judge, concurrency: int, alpha: float, spending: Spending) -> None:
        self._router = router
        self._judge = judge
        self._slots = asyncio.Semaphore(concurrency)
        self._alpha = alpha
        self._spending = spending

    async def run(
        self, candidate: bytes, task: str, model: str, samples: int, floor: float
    ) -> AsyncGenerator[TrialStep]:
        """Tries the directive and tells how far it has come; leaving early ends all that is under way.

        Args:
            candidate: pith.router.v1.Directive.
            model: as for `RouterClient.draw_for_trial`.
            floor: the share of L0's quality that should be kept.

        Raises:
            PithError: INVALID_ARGUMENT (the router refuses the directive), NOT_FOUND (no sample that can be graded),
                or, where not one sample could be answered, what kept the first from it.
        """
        drawn = await self._router.draw_for_trial(task, model, samples)
        if not drawn:
            raise _nothing_to_grade(task)
        tasks = [asyncio.create_task(self._try(candidate, sample)) for sample in drawn]
        try:
            yield TrialStep(0, len(drawn))
            for done, ended in enumerate(asyncio.as_completed(tasks), start=1):
                await ended
                yield TrialStep(done, len(drawn))
            # Not in the order of their ends: those of short answers would come first.
            tried = [task.result() for task in tasks]
        finally:
            for running in tasks:
                running.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        pairs = [one for one in tried if isinstance(one, TrialPair)]
        if not pairs:
            raise next((one for one in tried if isinstance(one, PithError)), None) or _nothing_to_grade(task)
        result = await asyncio.to_thread(summarise, pairs, floor, self._alpha)
        outcome = TrialOutcome(result, drawn[0].model, len(drawn) - len(pairs))
        yield TrialStep(len(drawn), len(drawn), outcome)

    async def _try(self, candidate: bytes, sample: Sample) -> TrialPair | PithError | Unscored:
        refusal = self._judge.refusal(sample)
        if refusal is not None:
            return refusal
        async with self._slots:
            try:
                # First, so that a directive that the router refuses costs no answer.
                answer = await self._generate(sample, TRIAL, candidate)
                baseline = await self._generate(sample, L0, None)
            except PithError as error:
                if faults := _faults_of_candidate(error):
                    raise invalid_argument(faults) from error
                return error
        judgement = await self._judge.judge(sample, answer.answer.text, baseline.answer.text)
        if isinstance(judgement, Unscored):
            return judgement
        return TrialPair(
            sample.sample_id,
            baseline=_tried(baseline, judgement.baseline_quality),
            answer=_tried(answer, judgement.quality),
        )

    async def _generate(self, sample: Sample, directive: str, candidate: bytes | None) -> Generated:
        generated = await self._router.generate(sample, directive, L0_REVISION, candidate)
        self._spending.add(generated)
        return generated


def _tried(generated: Generated, quality: float) -> TriedAnswer:
    return TriedAnswer(generated.answer.text, generated.answer.output_tokens, quality, generated.energy_joules)


def _faults_of_candidate(error: PithError) -> list[FieldViolation]:
    """What the router says of the directive, by the fields that the trial's caller knows."""
    if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
        return []
    return [
        FieldViolation("directive" + fault.field.removeprefix(_CANDIDATE_FIELD), fault.description)
        for fault in error.violations
        if fault.field.startswith(_CANDIDATE_FIELD)
    ]


def _nothing_to_grade(task: str) -> PithError:
    return PithError(
        grpc.StatusCode.NOT_FOUND,
        "RESOURCE_NOT_FOUND",
        f"no sample of task {task!r} can be graded: it takes requests that bring a reference, under a policy that "
        "names a grader and keeps a share of them as samples",
        metadata={"resource": "sample", "name": task},
    )
