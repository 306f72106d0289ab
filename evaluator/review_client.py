"""Reviews, which the router keeps: pairs out to people, their choices in, and what all of them came to.

Messages are relayed as they are: neither side of a review means anything to the evaluator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
from pith.router.v1 import reviews_pb2, reviews_pb2_grpc

from common.errors import from_rpc_error
from common.quality.agreement import JudgeTotals, RatedScore, Review, judged_preference

_PAGE = 1_000

Reply = TypeVar("Reply")


class ReviewClient:
    """Calls the router, once each time. Every method raises PithError where the router refuses or cannot be reached.

    Args:
        channel: from `common.grpc_client.connect`.
        deadline_seconds: of one call, wall time.
    """

    def __init__(self, channel: grpc.aio.Channel, deadline_seconds: float) -> None:
        self._reviews = reviews_pb2_grpc.ReviewsStub(channel)
        self._deadline_seconds = deadline_seconds

    async def draw(self, request: reviews_pb2.DrawReviewsRequest) -> Sequence[reviews_pb2.Review]:
        return (await self._call(self._reviews.DrawReviews, request)).reviews

    async def record(self, request: reviews_pb2.RecordReviewRequest) -> None:
        await self._call(self._reviews.RecordReview, request)

    async def reviews(self) -> Sequence[Review]:
        """Every choice so far."""
        request, found = reviews_pb2.ListReviewsRequest(page_size=_PAGE), list[Review]()
        while True:
            reply = await self._call(self._reviews.ListReviews, request)
            found += map(_to_review, reply.reviews)
            request.page_token = reply.next_page_token
            if not request.page_token:
                return found

    async def totals(self) -> Sequence[JudgeTotals]:
        reply = await self._call(self._reviews.ListJudgeTotals, reviews_pb2.ListJudgeTotalsRequest())
        return [JudgeTotals(one.judge, one.task, one.scores, one.preferences, one.squares) for one in reply.totals]

    async def rated(self) -> Sequence[RatedScore]:
        """Users' ratings of answers that a judge has scored."""
        request, found = reviews_pb2.ListRatedScoresRequest(page_size=_PAGE), list[RatedScore]()
        while True:
            reply = await self._call(self._reviews.ListRatedScores, request)
            found += (RatedScore(s.judge, s.task, s.directive, s.rating, s.quality, s.compared) for s in reply.scores)
            request.page_token = reply.next_page_token
            if not request.page_token:
                return found

    async def _call(self, call: Callable[..., Awaitable[Reply]], request: object) -> Reply:
        try:
            return await call(request, timeout=self._deadline_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def _to_review(message: reviews_pb2.ListReviewsResponse.Reviewed) -> Review:
    score = message.score
    return Review(
        judge=score.judge,
        task=message.cell.task,
        pair=(message.sample_id, score.directive, score.directive_revision),
        rater=message.rater,
        preference=message.preference,
        judged=judged_preference(score.quality, score.baseline_quality, compared=score.HasField("comparison")),
    )
