"""Service Reviews: pairs of answers out to people, what they chose in; and what users said of answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict

import grpc
from pith.router.v1 import reviews_pb2 as pb
from pith.router.v1 import reviews_pb2_grpc

from common.auth import Role
from common.clock import Clock
from common.errors import PithError, Violations, not_found
from common.grpc_server import Context
from common.limits import MAX_ID_CHARACTERS
from router import convert, pagination
from router.limits import check_text
from router.reviews import Choice, Review, Reviewed
from router.store.database import Database
from router.store.ratings import RatingRepository
from router.store.reviews import ReviewRepository

SERVICE = pb.DESCRIPTOR.services_by_name["Reviews"]
ROLES = {method.name: {Role.EVALUATOR} for method in SERVICE.methods}

MAX_DRAWN = 50
MAX_DRAWN_BYTES = 4 << 20
"""Of text, in one answer to DrawReviews."""
DEFAULT_PAGE = 500
MAX_PAGE = 5_000
_BEFORE_ALL = ""
_BEFORE_ALL_RATINGS = ("", "")
_CHOICES = {pb.CHOICE_FIRST: Choice.FIRST, pb.CHOICE_SECOND: Choice.SECOND, pb.CHOICE_TIE: Choice.TIE}


class ReviewsService(reviews_pb2_grpc.ReviewsServicer):
    """All state is in the database.

    Args:
        secret: By which samples are named (see `router.samples.sample_id`).
        rng: Draws pairs, their order, and the ids of reviews, which nobody may guess.
    """

    def __init__(self, database: Database, clock: Clock, secret: bytes, rng: random.Random | None = None) -> None:
        self._database = database
        self._clock = clock
        self._secret = secret
        self._rng = rng or random.SystemRandom()

    async def DrawReviews(self, request: pb.DrawReviewsRequest, context: Context) -> pb.DrawReviewsResponse:
        faults = Violations()
        _check_id(faults, "rater", request.rater)
        check_text(faults, "task", request.task, MAX_ID_CHARACTERS)
        faults.require(1 <= request.count <= MAX_DRAWN, "count", f"is {request.count:,}; must be 1 to {MAX_DRAWN}")
        faults.raise_if_any()
        task = request.task if request.HasField("task") else None
        async with self._database.reading() as connection:
            repository = ReviewRepository(connection)
            waiting = await repository.waiting(request.rater, task, request.count)
            # Apart from the writing below, which keeps others from theirs and must be short.
            missing = request.count - len(waiting)
            new = await repository.draw(request.rater, task, missing, self._rng) if missing else ()
        if new:
            async with self._database.writing() as connection:
                await ReviewRepository(connection).give(request.rater, new, self._clock.now(), self._rng)
        async with self._database.reading() as connection:
            repository = ReviewRepository(connection)
            waiting = await repository.waiting(request.rater, task, request.count)
            shown = await repository.read(waiting, MAX_DRAWN_BYTES)
        return pb.DrawReviewsResponse(reviews=map(_from_review, shown))

    async def RecordReview(self, request: pb.RecordReviewRequest, context: Context) -> pb.RecordReviewResponse:
        faults = Violations()
        _check_id(faults, "review_id", request.review_id)
        _check_id(faults, "rater", request.rater)
        choice = _CHOICES.get(request.choice)
        faults.require(choice is not None, "choice", "must be first, second or tie")
        faults.raise_if_any()
        assert choice is not None
        async with self._database.writing() as connection:
            repository = ReviewRepository(connection)
            given = await repository.given(request.review_id)
            if given is None:
                raise not_found("review", request.review_id)
            if given.rater != request.rater:
                raise PithError(
                    grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", "rater: the review is another rater's"
                )
            preference = choice.preference(shown_first=given.shown_first)
            await repository.record(request.review_id, preference, self._clock.now())
        return pb.RecordReviewResponse()

    async def ListReviews(self, request: pb.ListReviewsRequest, context: Context) -> pb.ListReviewsResponse:
        after = pagination.read_token("reviews", request.page_token, _BEFORE_ALL)
        size = pagination.page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
        async with self._database.reading() as connection:
            found = await ReviewRepository(connection).answered_after(after, size + 1)
        return pb.ListReviewsResponse(
            reviews=map(_from_reviewed, found[:size]),
            next_page_token=_next("reviews", [one.review_id for one in found], size),
        )

    async def ListJudgeTotals(self, request: pb.ListJudgeTotalsRequest, context: Context) -> pb.ListJudgeTotalsResponse:
        async with self._database.reading() as connection:
            totals = await ReviewRepository(connection).judge_totals()
        return pb.ListJudgeTotalsResponse(
            totals=[pb.ListJudgeTotalsResponse.JudgeTotals(**asdict(one)) for one in totals]
        )

    async def ListRatedScores(self, request: pb.ListRatedScoresRequest, context: Context) -> pb.ListRatedScoresResponse:
        after = pagination.read_token("ratings", request.page_token, _BEFORE_ALL_RATINGS)
        size = pagination.page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
        async with self._database.reading() as connection:
            repository = RatingRepository(connection)
            rated = await repository.answers_after(after, size + 1)
            scores = await repository.scores_of(rated[:size], self._secret)
        return pb.ListRatedScoresResponse(
            scores=[pb.ListRatedScoresResponse.RatedScore(**asdict(one)) for one in scores],
            next_page_token=_next("ratings", [(one.tenant, one.request_id) for one in rated], size),
        )


def _next(kind: str, keys: Sequence[str] | Sequence[tuple[str, ...]], size: int) -> str:
    return pagination.write_token(kind, keys[size - 1]) if len(keys) > size else ""


def _check_id(faults: Violations, field: str, value: str) -> None:
    if faults.require(value.strip() != "", field, "is empty"):
        check_text(faults, field, value, MAX_ID_CHARACTERS)


def _from_review(review: Review) -> pb.Review:
    return pb.Review(
        review_id=review.review_id,
        task=review.task,
        messages=convert.from_turns(review.turns),
        first=review.first,
        second=review.second,
    )


def _from_reviewed(reviewed: Reviewed) -> pb.ListReviewsResponse.Reviewed:
    scored = convert.from_score(reviewed.score)
    return pb.ListReviewsResponse.Reviewed(
        cell=scored.cell,
        sample_id=scored.sample_id,
        score=scored.score,
        rater=reviewed.rater,
        preference=reviewed.preference,
        reviewed_at=convert.timestamp(reviewed.reviewed_at),
    )
