"""Pairs of answers that people compare, and what they chose.

The text is the sample's, read anew each time it is shown: erased there, it is gone here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, Select, and_, case, cast, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.quality.agreement import JudgeTotals
from router.directives.compile import Turn
from router.directives.levels import L0
from router.reviews import Review, Reviewed
from router.store.quality import score_of
from router.store.tables import answers, reviews, samples, scores
from router.store.upsert import insert_new

_ours = answers.alias("ours")
_baseline = answers.alias("baseline")


@dataclass(frozen=True, slots=True)
class Given:
    """Who was given a review, and whether the directive's answer is the first of it."""

    rater: str
    shown_first: bool


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """L0's answer to a sample and a directive's, which a judge has scored."""

    sample_id: str
    directive: str
    directive_revision: int


_PAIR = tuple(field.name for field in fields(ScoredPair))


class ReviewRepository:
    """Within one transaction; all that changes something within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def waiting(self, rater: str, task: str | None, count: int) -> Sequence[str]:
        """Ids of reviews that the rater was given and has not answered, oldest first: of those whose text is at hand.

        Args:
            task: None for every task.
        """
        query = (
            select(reviews.c.review_id)
            .select_from(_with_text(reviews))
            .where(reviews.c.rater == rater, reviews.c.preference.is_(None), *_of_task(task))
            .order_by(reviews.c.drawn_at, reviews.c.review_id)
            .limit(count)
        )
        return (await self._connection.execute(query)).scalars().all()

    async def draw(self, rater: str, task: str | None, count: int, rng: random.Random) -> tuple[ScoredPair, ...]:
        """Uniformly from the scored pairs whose text is at hand and that the rater was never given. Looks at all of
        them, some seconds where there are hundreds of thousands, and changes nothing."""
        new = (
            select(scores.c.id, *(scores.c[column] for column in _PAIR))
            .select_from(_with_text(scores))
            .where(*_of_task(task), ~exists().where(_same_pair(reviews, scores), reviews.c.rater == rater))
        )
        total = (await self._connection.execute(select(func.count()).select_from(new.subquery()))).scalar_one()
        places = rng.sample(range(total), min(count, total))
        return tuple(
            ScoredPair(row.sample_id, row.directive, row.directive_revision)
            for row in await self._connection.execute(_at(new, places))
        )

    async def give(self, rater: str, pairs: Sequence[ScoredPair], now: datetime, rng: random.Random) -> None:
        """Each in an order that is drawn; those that the rater has been given meanwhile are left as they are."""
        rows = [
            {
                "review_id": f"{rng.getrandbits(128):032x}",
                **asdict(pair),
                "rater": rater,
                "shown_first": rng.random() < 0.5,
                "drawn_at": now,
            }
            for pair in pairs
        ]
        await insert_new(self._connection, reviews, rows, (*_PAIR, "rater"))

    async def read(self, review_ids: Sequence[str], most_bytes: int) -> tuple[Review, ...]:
        """In this order, as far as their text is together no longer than that; the first in any case."""
        found: list[Review] = []
        for review_id in review_ids:
            review = await self._review(review_id)
            most_bytes -= review.bytes
            if found and most_bytes < 0:
                break
            found.append(review)
        return tuple(found)

    async def given(self, review_id: str) -> Given | None:
        """None where there is no such review."""
        query = select(reviews.c.rater, reviews.c.shown_first).where(reviews.c.review_id == review_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else Given(row.rater, row.shown_first)

    async def record(self, review_id: str, preference: float, reviewed_at: datetime) -> None:
        """The last one counts. preference: for the directive's answer, 0, 1/2 or 1."""
        await self._connection.execute(
            update(reviews)
            .where(reviews.c.review_id == review_id)
            .values(preference=preference, reviewed_at=reviewed_at)
        )

    async def answered_after(self, review_id: str, limit: int) -> tuple[Reviewed, ...]:
        """Reviews with a choice, in order of their ids; the first page is after the empty one."""
        query = (
            select(
                scores,
                *(samples.c.model, samples.c.task, samples.c.tenant),
                *(reviews.c.review_id, reviews.c.rater, reviews.c.preference, reviews.c.reviewed_at),
            )
            .select_from(reviews.join(scores, _same_pair(reviews, scores)).join(samples, _of_sample(reviews)))
            .where(reviews.c.preference.is_not(None), reviews.c.review_id > review_id)
            .order_by(reviews.c.review_id)
            .limit(limit)
        )
        return tuple(
            Reviewed(row.review_id, score_of(row), row.rater, row.preference, row.reviewed_at)
            for row in await self._connection.execute(query)
        )

    async def judge_totals(self) -> tuple[JudgeTotals, ...]:
        """Of all scores, by judge and task."""
        # As common.quality.agreement.judged_preference.
        preference = cast(
            case(
                (scores.c.shown_first.is_not(None), scores.c.quality),
                (scores.c.quality > scores.c.baseline_quality, 1.0),
                (scores.c.quality == scores.c.baseline_quality, 0.5),
                else_=0.0,
            ),
            Float(53),
        )
        group = (scores.c.judge, samples.c.task)
        query = (
            select(
                *group,
                func.count().label("n"),
                func.sum(preference).label("preferences"),
                func.sum(preference * preference).label("squares"),
            )
            .select_from(scores.join(samples))
            .group_by(*group)
            .order_by(*group)
        )
        return tuple(
            JudgeTotals(row.judge, row.task, row.n, row.preferences, row.squares)
            for row in await self._connection.execute(query)
        )

    async def _review(self, review_id: str) -> Review:
        query = (
            select(
                reviews.c.shown_first,
                *(samples.c.task, samples.c.turns),
                _ours.c.text.label("ours"),
                _baseline.c.text.label("baseline"),
            )
            .select_from(_with_text(reviews))
            .where(reviews.c.review_id == review_id)
        )
        row = (await self._connection.execute(query)).one()
        shown = (row.ours, row.baseline) if row.shown_first else (row.baseline, row.ours)
        return Review(review_id, row.task, tuple(Turn(role, content) for role, content in row.turns), *shown)


def _at(query: Select[Any], places: Sequence[int]) -> Select[Any]:
    """The rows at these places in order of `scores.id`."""
    place = (func.row_number().over(order_by=scores.c.id) - 1).label("place")
    numbered = query.add_columns(place).subquery()
    return select(numbered).where(numbered.c.place.in_(places)).order_by(numbered.c.place)


def _with_text(of: Any) -> Any:
    """Reviews or scores with their sample and both answers; without those of which one is not at hand, or erased."""
    return (
        of.join(samples, _of_sample(of))
        .join(_ours, _same_pair(of, _ours))
        .join(
            _baseline,
            and_(
                _baseline.c.sample_id == of.c.sample_id,
                _baseline.c.directive == L0.name,
                _baseline.c.directive_revision == L0.revision,
            ),
        )
    )


def _of_task(task: str | None) -> list[ColumnElement[bool]]:
    return [] if task is None else [samples.c.task == task]


def _of_sample(of: Any) -> ColumnElement[bool]:
    same: ColumnElement[bool] = samples.c.sample_id == of.c.sample_id
    return same


def _same_pair(one: Any, other: Any) -> ColumnElement[bool]:
    return and_(*(one.c[column] == other.c[column] for column in _PAIR))
