"""The router as the evaluator sees it: samples and answers in, scores and bounds out."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from pith.common.v1 import text_pb2
from pith.router.v1 import feedback_pb2, feedback_pb2_grpc, generation_pb2, generation_pb2_grpc

from common.clock import Clock
from common.code_revision import code_revision
from common.errors import PithError, failed_precondition, from_rpc_error, unavailable
from common.quality.bound import Cell, EpochStart, PairedScore, QualityBound
from evaluator.convert import (
    from_answer,
    from_bound,
    from_score,
    from_time,
    from_withdrawal,
    to_plan,
    to_sample,
    to_score,
    to_signal,
)
from evaluator.samples import Answer, EvaluationPlan, Generated, Sample

_SCORES_PAGE = 5_000
_MAX_BACK_OFF_SECONDS = 30.0
SCORES_MOVED = "SCORES_MOVED"
"""Reason of ABORTED: there are scores that the bounds of a report do not rest on."""
# The same call may succeed later, that reason apart: each is idempotent, a generation by its request_id.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
    }
)

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a sample: its score, and the answers that were generated for it."""

    score: PairedScore
    answers: tuple[Answer, ...]


class RouterClient:
    """Calls the router. Every method raises PithError where the router refuses or cannot be reached.

    Args:
        channel: from `common.grpc_client.connect`, without retries of its own.
        evaluator: name that leases and reports carry, with an ending that is this client's own.
        back_off: what retries wait on; wall time outside of tests, for engines and networks recover in wall time.
        attempts: tries of a generation and of a report.
        call_deadline_seconds, generation_deadline_seconds: of one try, wall time.
        lease_seconds: of drawn samples, on the router's clock.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        evaluator: str,
        back_off: Clock,
        attempts: int,
        call_deadline_seconds: float,
        generation_deadline_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._feedback = feedback_pb2_grpc.FeedbackStub(channel)
        self._generation = generation_pb2_grpc.GenerationStub(channel)
        # Two evaluators may have been given one name: a late report must not pass for that of the lease's holder.
        self._evaluator = f"{evaluator}-{uuid.uuid4().hex[:8]}"
        self._code_revision = code_revision()
        self._back_off = back_off
        self._attempts = attempts
        self._deadline_seconds = call_deadline_seconds
        self._generation_deadline_seconds = generation_deadline_seconds
        self._lease_duration = Duration()
        self._lease_duration.FromTimedelta(timedelta(seconds=lease_seconds))

    async def plan(self, with_mix: bool = False) -> EvaluationPlan:
        """with_mix: whether targets have their mix, which costs the router a look at every score."""
        request = feedback_pb2.GetEvaluationPlanRequest(with_mix=with_mix)
        return to_plan(await self._once(self._feedback.GetEvaluationPlan, request, self._deadline_seconds))

    async def draw(self, cell: Cell, count: int, served_after: datetime | None = None) -> Sequence[Sample]:
        """Leases at most `count` samples that lack a score of the cell's directive and, with a time, were served after
        it: a uniform draw from those.
        """
        request = feedback_pb2.DrawSamplesRequest(
            model=cell.model,
            task=cell.task,
            directives=[cell.directive],
            count=count,
            lease=self._lease_duration,
            evaluator=self._evaluator,
            served_after=None if served_after is None else from_time(served_after),
        )
        reply = await self._once(self._feedback.DrawSamples, request, self._deadline_seconds)
        return [to_sample(sample) for sample in reply.samples]

    async def draw_for_trial(self, task: str, model: str, count: int) -> Sequence[Sample]:
        """At most `count` samples that can be graded, drawn uniformly from those of one model and left as they are.

        Args:
            model: "name@digest", or a name; where more than one fits, or it is empty, that with most samples.
        """
        request = feedback_pb2.DrawSamplesRequest(model=model, task=task, count=count, evaluator=self._evaluator)
        reply = await self._once(self._feedback.DrawSamples, request, self._deadline_seconds)
        return [to_sample(sample) for sample in reply.samples]

    async def generate(
        self, sample: Sample, directive: str, revision: int, candidate: bytes | None = None
    ) -> Generated:
        """Has a sample's prompt answered under a directive, with the sampling, seed and limits it was served with.

        Args:
            candidate: pith.router.v1.Directive that is only tried; `directive` is then TRIAL.

        Tries again after transient errors, when RetryInfo says so. All tries are one request to the router, which
        never generates for the same one twice.
        """
        request = generation_pb2.GenerateRequest.FromString(sample.request)
        request.request_id = uuid.uuid4().hex
        if not request.sampling.HasField("seed"):
            # Served by an engine that told none: the answers to be compared still get the same one.
            request.sampling.seed = zlib.crc32(sample.sample_id.encode())
        if candidate is None:
            request.evaluation.directive = directive
        else:
            request.evaluation.candidate.ParseFromString(candidate)
        reply = await self._persistently(self._generation.Generate, request, self._generation_deadline_seconds)
        served = reply.started.decision.directive
        if served != directive:
            raise failed_precondition("UNSPECIFIED", f"the router served {served!r} where {directive!r} was asked for")
        finished = reply.finished
        if finished.reason == text_pb2.FINISH_REASON_ABORTED:
            raise unavailable("UNSPECIFIED", "the answer was aborted")
        return Generated(
            answer=Answer(directive, revision, reply.text, finished.usage.output_tokens),
            energy_joules=finished.energy.joules if finished.HasField("energy") else None,
            carbon_grams=(
                finished.carbon.operational_grams + finished.carbon.embodied_grams
                if finished.HasField("carbon")
                else None
            ),
            signal=to_signal(finished.carbon.intensity) if finished.HasField("carbon") else None,
        )

    async def report(
        self,
        outcomes: Iterable[Outcome],
        bounds: Iterable[QualityBound],
        withdrawals: Iterable[EpochStart],
        position: str,
    ) -> None:
        """Records what came of samples, in one transaction; tries again after transient errors.

        Args:
            position: of all other scores that bounds and withdrawals rest on, as `scores_after` gave it. Where there
                are more by now, nothing is recorded: PithError ABORTED, SCORES_MOVED.
        """
        request = feedback_pb2.ReportQualityRequest(
            evaluator=self._evaluator,
            scores=[
                feedback_pb2.SampleScores(
                    sample_id=outcome.score.sample_id,
                    scores=[from_score(outcome.score)],
                    answers=[from_answer(answer) for answer in outcome.answers],
                )
                for outcome in outcomes
            ],
            bounds=[from_bound(bound) for bound in bounds],
            withdrawals=[from_withdrawal(start) for start in withdrawals],
            position=position,
            code_revision=self._code_revision,
        )
        await self._persistently(self._feedback.ReportQuality, request, self._deadline_seconds)

    async def scores_after(self, position: str) -> tuple[Sequence[PairedScore], str]:
        """Every score recorded after a position ("": every score), in the order in which they were recorded, but for
        those of a mix of requests that is no longer asked for; and the position of the last."""
        found: list[PairedScore] = []
        page_token = position
        while True:
            request = feedback_pb2.ListScoresRequest(page_size=_SCORES_PAGE, page_token=page_token)
            reply = await self._once(self._feedback.ListScores, request, self._deadline_seconds)
            found.extend(to_score(score) for score in reply.scores if not score.outdated)
            page_token = reply.next_page_token
            if not page_token:
                return found, reply.position

    async def _once(self, call: Callable[..., Awaitable[Reply]], request: object, seconds: float) -> Reply:
        try:
            return await call(request, timeout=seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def _persistently(self, call: Callable[..., Awaitable[Reply]], request: object, seconds: float) -> Reply:
        for attempt in range(1, self._attempts):
            try:
                return await self._once(call, request, seconds)
            except PithError as error:
                if error.code not in _TRANSIENT or error.reason == SCORES_MOVED:
                    raise
                await self._back_off.sleep(back_off_seconds(attempt, error.retry_after_seconds))
        return await self._once(call, request, seconds)


def back_off_seconds(failures: int, asked_seconds: float | None = None) -> float:
    """How long to wait after so many failures in a row: as asked, else 1, 2, 4 ... s; at most half a minute."""
    wanted = 2.0 ** min(failures - 1, 16) if asked_seconds is None else asked_seconds
    return min(max(wanted, 0.0), _MAX_BACK_OFF_SECONDS)
