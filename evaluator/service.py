"""pith.evaluator.v1.Evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing

from pith.evaluator.v1 import evaluation_pb2
from pith.router.v1 import feedback_pb2, reviews_pb2

from common.auth import Role
from common.code_revision import code_revision
from common.errors import FieldViolation, Violations, invalid_argument
from common.grpc_server import Context
from common.limits import MAX_ID_CHARACTERS
from common.quality.bound import Cell
from common.quality.estimates import Verdict
from common.quality.graders import GRADERS, grade, judge_name
from common.quality.trial import DEFAULT_TRIAL_FLOOR, DEFAULT_TRIAL_SAMPLES, MAX_TRIAL_SAMPLES
from evaluator.agreement import AgreementWatch
from evaluator.agreement_messages import from_agreement
from evaluator.convert import from_bound, from_cell, from_interval, from_time
from evaluator.loop import EvaluationLoop
from evaluator.progress import Progress
from evaluator.review_client import ReviewClient
from evaluator.trial import TrialOutcome, Trials, TrialStep

DESCRIPTOR = evaluation_pb2.DESCRIPTOR.services_by_name["Evaluation"]
ROLES: Mapping[str, Collection[Role]] = {
    "Score": {Role.CLIENT},
    "RunEvaluation": (),
    "ListEstimates": (),
    "GetStatus": (),
    "TrialDirective": (),
    "SubmitRating": {Role.CLIENT},
    "ListPendingReviews": (),
    "GetAgreement": (),
}
WATCHES = ("RunEvaluation", "TrialDirective")

MAX_ANSWER_CHARACTERS = 262_144
MAX_REFERENCE_CHARACTERS = 8_192
MAX_PROMPT_CHARACTERS = 262_144

_VERDICTS: Mapping[Verdict, evaluation_pb2.Verdict.ValueType] = {
    "undecided": evaluation_pb2.VERDICT_UNDECIDED,
    "open": evaluation_pb2.VERDICT_OPEN,
    "closed": evaluation_pb2.VERDICT_CLOSED,
}


class EvaluationService:
    """Speaks for loop, trials and agreement; what reviewers ask for and say, it passes on to the router."""

    def __init__(self, loop: EvaluationLoop, trials: Trials, reviews: ReviewClient, agreement: AgreementWatch) -> None:
        self._loop = loop
        self._trials = trials
        self._reviews = reviews
        self._agreement = agreement

    async def Score(self, request: evaluation_pb2.ScoreRequest, context: Context) -> evaluation_pb2.ScoreResponse:
        violations = Violations()
        violations.require(request.grader in GRADERS, "grader", f"must be one of {', '.join(sorted(GRADERS))}")
        for field, text, limit in (
            ("answer", request.answer, MAX_ANSWER_CHARACTERS),
            ("reference", request.reference, MAX_REFERENCE_CHARACTERS),
            ("prompt", request.prompt, MAX_PROMPT_CHARACTERS),
        ):
            violations.require(len(text) <= limit, field, f"has {len(text)} characters; at most {limit} are allowed")
        violations.raise_if_any()
        try:
            quality = await asyncio.to_thread(grade, request.grader, request.answer, request.reference, request.prompt)
        except ValueError as error:
            raise invalid_argument([FieldViolation("reference", str(error))]) from error
        return evaluation_pb2.ScoreResponse(quality=quality, judge=judge_name(request.grader))

    async def RunEvaluation(
        self, request: evaluation_pb2.RunEvaluationRequest, context: Context
    ) -> AsyncIterator[evaluation_pb2.EvaluationProgress]:
        async for progress in self._loop.start(request.task).progress.watch():
            yield _from_progress(progress)

    async def TrialDirective(
        self, request: evaluation_pb2.TrialDirectiveRequest, context: Context
    ) -> AsyncIterator[evaluation_pb2.TrialProgress]:
        samples = request.samples or DEFAULT_TRIAL_SAMPLES
        floor = request.floor if request.HasField("floor") else DEFAULT_TRIAL_FLOOR
        violations = Violations()
        violations.require(request.HasField("directive"), "directive", "is missing")
        for field, text in (("task", request.task), ("model", request.model)):
            violations.require(
                len(text) <= MAX_ID_CHARACTERS, field, f"has {len(text):,} characters; at most {MAX_ID_CHARACTERS}"
            )
        violations.require(samples <= MAX_TRIAL_SAMPLES, "samples", f"is {samples:,}; must be 1 to {MAX_TRIAL_SAMPLES}")
        violations.require(0 < floor <= 1, "floor", f"is {floor:g}; must be above 0 and at most 1")
        violations.raise_if_any()
        candidate = request.directive.SerializeToString()
        async with aclosing(self._trials.run(candidate, request.task, request.model, samples, floor)) as steps:
            async for step in steps:
                yield _from_trial(step)

    async def ListPendingReviews(
        self, request: evaluation_pb2.ListPendingReviewsRequest, context: Context
    ) -> evaluation_pb2.ListPendingReviewsResponse:
        asked = reviews_pb2.DrawReviewsRequest(
            rater=request.rater, task=request.task if request.HasField("task") else None, count=request.count
        )
        return evaluation_pb2.ListPendingReviewsResponse(reviews=await self._reviews.draw(asked))

    async def SubmitRating(
        self, request: evaluation_pb2.SubmitRatingRequest, context: Context
    ) -> evaluation_pb2.SubmitRatingResponse:
        await self._reviews.record(
            reviews_pb2.RecordReviewRequest(review_id=request.review_id, rater=request.rater, choice=request.choice)
        )
        return evaluation_pb2.SubmitRatingResponse()

    async def GetAgreement(
        self, request: evaluation_pb2.GetAgreementRequest, context: Context
    ) -> evaluation_pb2.Agreement:
        return from_agreement(await self._agreement.look(), self._agreement)

    async def ListEstimates(
        self, request: evaluation_pb2.ListEstimatesRequest, context: Context
    ) -> evaluation_pb2.ListEstimatesResponse:
        cells = self._loop.knowledge.estimates.cells()
        return evaluation_pb2.ListEstimatesResponse(estimates=[self._estimate(cell) for cell in cells])

    async def GetStatus(self, request: evaluation_pb2.GetStatusRequest, context: Context) -> evaluation_pb2.Status:
        loop = self._loop
        return evaluation_pb2.Status(
            evaluations=loop.evaluations,
            last_run_at=from_time(loop.last_run_at) if loop.last_run_at is not None else None,
            running=loop.running,
            reason=loop.reason,
            samples_scored=loop.knowledge.scores,
            energy_joules=loop.spending.energy_joules,
            carbon_grams=loop.spending.carbon_grams,
            last_fault=loop.last_fault,
            answers_generated=loop.spending.answers,
            version=code_revision(),
        )

    def _estimate(self, cell: Cell) -> evaluation_pb2.Estimate:
        knowledge = self._loop.knowledge
        bound = knowledge.estimates.bound(cell)
        target = knowledge.plan.target(cell) if knowledge.plan is not None else None
        return evaluation_pb2.Estimate(
            # After a drop, all that is left is the cell.
            bound=from_bound(bound) if bound is not None else feedback_pb2.QualityBound(cell=from_cell(cell)),
            # No policy asks for it any more: there is no floor to hold it against.
            verdict=(
                _VERDICTS[target.verdict(knowledge.estimates)]
                if target is not None
                else evaluation_pb2.VERDICT_UNSPECIFIED
            ),
            drift_alarms=knowledge.estimates.drift_alarms(cell),
        )


def _from_progress(progress: Progress) -> evaluation_pb2.EvaluationProgress:
    return evaluation_pb2.EvaluationProgress(
        samples_done=progress.samples_done,
        samples_planned=progress.samples_planned,
        event=progress.event,
        done=progress.done,
        energy_joules=progress.energy_joules,
        carbon_grams=progress.carbon_grams,
    )


def _from_trial(step: TrialStep) -> evaluation_pb2.TrialProgress:
    return evaluation_pb2.TrialProgress(
        samples_done=step.samples_done,
        samples_planned=step.samples_planned,
        result=None if step.outcome is None else _from_outcome(step.outcome),
    )


def _from_outcome(outcome: TrialOutcome) -> evaluation_pb2.TrialResult:
    result = outcome.result
    return evaluation_pb2.TrialResult(
        samples=result.samples,
        failed=outcome.failed,
        model=outcome.model,
        output_tokens=result.output_tokens,
        baseline_output_tokens=result.baseline_output_tokens,
        token_share=from_interval(result.token_share),
        quality=result.quality,
        baseline_quality=result.baseline_quality,
        quality_share=from_interval(result.quality_share),
        energy_share=from_interval(result.energy_share),
        recommendation=evaluation_pb2.Recommendation.Value(f"RECOMMENDATION_{result.recommendation}"),
        explanation=result.explanation,
        pairs=[
            evaluation_pb2.TrialResult.Pair(
                sample_id=pair.sample_id,
                baseline=pair.baseline.text,
                answer=pair.answer.text,
                baseline_quality=pair.baseline.quality,
                quality=pair.answer.quality,
            )
            for pair in result.pairs
        ],
    )
