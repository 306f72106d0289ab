"""Samples of served requests, their answers, and who holds them at the moment."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.quality.bound import Cell
from common.quality.pairwise import PAIRWISE
from router.directives.compile import Turn
from router.samples import Answer, Sample
from router.store.erasure import ErasureRepository
from router.store.tables import answers, samples, scores
from router.store.upsert import insert_new

MAX_TASKS = 1_000
"""That an evaluator is told of: a task is any string that a caller names."""
_GRADABLE = and_(
    samples.c.grader != "",
    # Who compares answers with one another needs no right one.
    or_(samples.c.reference != "", samples.c.grader == PAIRWISE),
    samples.c.erased_at.is_(None),
)


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds a sample, until when; both None where nobody does."""

    model: str
    task: str
    holder: str | None
    until: datetime | None


class SampleRepository:
    """Within one transaction; all that changes something within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_many(self, kept: Sequence[Sample]) -> None:
        """Idempotent by sample_id, and for their answers as `add_answers`. What its tenant had erased is left out."""
        if not kept:
            return
        erased = await ErasureRepository(self._connection).hold({sample.tenant for sample in kept})
        kept = [s for s in kept if s.tenant not in erased or s.served_at >= erased[s.tenant]]
        rows = [
            {
                "sample_id": sample.sample_id,
                "tenant": sample.tenant,
                "model": sample.model,
                "task": sample.task,
                "turns": [[turn.role, turn.content] for turn in sample.turns],
                "prompt_characters": sum(len(turn.content) for turn in sample.turns),
                "sampling_json": sample.sampling_json,
                "limits_json": sample.limits_json,
                "reference": sample.reference,
                "grader": sample.grader,
                "served_at": sample.served_at,
            }
            for sample in kept
        ]
        await insert_new(self._connection, samples, rows, ("sample_id",))
        await self.add_answers([(sample.sample_id, answer) for sample in kept for answer in sample.answers])

    async def add_answers(self, given: Sequence[tuple[str, Answer]]) -> None:
        """(sample_id, answer); idempotent by sample_id, directive and its revision. The samples must exist.

        Of a sample whose text is erased none is kept.
        """
        query = (
            select(samples.c.sample_id, samples.c.erased_at)
            .where(samples.c.sample_id.in_({sample_id for sample_id, _ in given}))
            .order_by(samples.c.sample_id)
            # None of them is erased before this transaction has ended, and its answers are there to be erased.
            .with_for_update(read=True)
        )
        erased = {row.sample_id for row in await self._connection.execute(query) if row.erased_at is not None}
        rows = [
            {
                "sample_id": sample_id,
                "directive": answer.directive,
                "directive_revision": answer.directive_revision,
                "text": answer.text,
                "output_tokens": answer.output_tokens,
            }
            for sample_id, answer in given
            if sample_id not in erased
        ]
        await insert_new(self._connection, answers, rows, ("sample_id", "directive", "directive_revision"))

    async def draw(
        self,
        model: str,
        task: str,
        revisions: Mapping[str, int],
        count: int,
        holder: str,
        now: datetime,
        lease_seconds: float,
        served_after: datetime | None = None,
        graders: Collection[str] = (),
    ) -> tuple[Sample, ...]:
        """Leases samples that nobody holds, can be graded, and lack a score: a uniform draw from those.

        Args:
            revisions: present revision of each directive whose score is wanted; a score of another does not count.
            graders: that samples must have one of; none: any.
        """
        scored = (
            select(func.count())
            .where(scores.c.sample_id == samples.c.sample_id, _any_revision(revisions))
            .correlate(samples)
            .scalar_subquery()
        )
        query = (
            select(samples.c.sample_id)
            .where(
                samples.c.model == model,
                samples.c.task == task,
                _GRADABLE,
                or_(samples.c.leased_until.is_(None), samples.c.leased_until <= now),
                scored < len(revisions),
                *([] if served_after is None else [samples.c.served_at > served_after]),
                *([samples.c.grader.in_(graders)] if graders else []),
            )
            # Sample ids are hashes, so their order has nothing to do with what is in the samples.
            .order_by(samples.c.sample_id)
            .limit(count)
            .with_for_update(skip_locked=True)
        )
        drawn = (await self._connection.execute(query)).scalars().all()
        until = now + timedelta(seconds=lease_seconds)
        await self._connection.execute(
            update(samples).where(samples.c.sample_id.in_(drawn)).values(lease_holder=holder, leased_until=until)
        )
        return await self.get_many(drawn)

    async def draw_any(self, task: str, count: int, rng: random.Random, model: str = "") -> tuple[Sample, ...]:
        """Samples of one model that can be graded, whatever their leases and scores: drawn uniformly at
        random, and left as they are.

        Args:
            model: As cells have it, or by name alone; where more than one fits, that with most samples.
        """
        fitting: Counter[str] = Counter()
        for (identity, of_task, _), samples_of_model in (await self.gradable()).items():
            if of_task == task and model in ("", identity, identity.partition("@")[0]):
                fitting[identity] += samples_of_model
        if not fitting:
            return ()
        total, identity = max((total, identity) for identity, total in fitting.items())
        places = rng.sample(range(total), min(count, total))
        numbered = (
            select(samples.c.sample_id, (func.row_number().over(order_by=samples.c.sample_id) - 1).label("place"))
            .where(samples.c.model == identity, samples.c.task == task, _GRADABLE)
            .subquery()
        )
        drawn = await self._connection.execute(select(numbered.c.sample_id).where(numbered.c.place.in_(places)))
        return await self.get_many(drawn.scalars().all())

    async def release(self, sample_ids: Collection[str], holder: str) -> None:
        """Ends the holder's leases on them; those of others stay."""
        await self._connection.execute(
            update(samples)
            .where(samples.c.sample_id.in_(sample_ids), samples.c.lease_holder == holder)
            .values(lease_holder=None, leased_until=None)
        )

    async def leases(self, sample_ids: Collection[str]) -> dict[str, Lease]:
        """Of those of the samples that exist; nobody draws these before the transaction has ended."""
        query = (
            select(samples)
            .where(samples.c.sample_id.in_(sample_ids))
            # In the order in which all that locks several does it.
            .order_by(samples.c.sample_id)
            .with_for_update()
        )
        return {
            row.sample_id: Lease(row.model, row.task, row.lease_holder, row.leased_until)
            for row in await self._connection.execute(query)
        }

    async def answered(self, sample_ids: Collection[str]) -> set[tuple[str, str, int]]:
        """(sample_id, directive, revision) of the answers at hand for these samples."""
        query = select(answers.c.sample_id, answers.c.directive, answers.c.directive_revision)
        rows = await self._connection.execute(query.where(answers.c.sample_id.in_(sample_ids)))
        return {(row.sample_id, row.directive, row.directive_revision) for row in rows}

    async def get_many(self, sample_ids: Collection[str]) -> tuple[Sample, ...]:
        """Those that exist, oldest first."""
        query = (
            select(samples)
            .where(samples.c.sample_id.in_(sample_ids))
            .order_by(samples.c.served_at, samples.c.sample_id)
        )
        rows = (await self._connection.execute(query)).all()
        of_sample: dict[str, list[Answer]] = {row.sample_id: [] for row in rows}
        at_hand = (
            select(answers)
            .where(answers.c.sample_id.in_(sample_ids))
            .order_by(answers.c.directive, answers.c.directive_revision)
        )
        for row in await self._connection.execute(at_hand):
            of_sample[row.sample_id].append(Answer(row.directive, row.directive_revision, row.text, row.output_tokens))
        return tuple(_sample(row, of_sample[row.sample_id]) for row in rows)

    async def gradable(self) -> dict[tuple[str, str, str], int]:
        """How many samples of each (model, task, grader) can be graded: of the `MAX_TASKS` that have most."""
        group = (samples.c.model, samples.c.task, samples.c.grader)
        query = select(*group, func.count().label("n")).where(_GRADABLE).group_by(*group)
        most = query.order_by(func.count().desc(), samples.c.task, samples.c.grader).limit(MAX_TASKS)
        return {(row.model, row.task, row.grader): row.n for row in await self._connection.execute(most)}

    async def scored(self) -> dict[tuple[Cell, int, str], int]:
        """How many of those have a score, by cell, revision of the directive, and grader of the sample."""
        group = (samples.c.model, samples.c.task, scores.c.directive, scores.c.directive_revision, samples.c.grader)
        query = select(*group, func.count().label("n")).join(samples).where(_GRADABLE).group_by(*group)
        return {
            (Cell(row.model, row.task, row.directive), row.directive_revision, row.grader): row.n
            for row in await self._connection.execute(query)
        }


def _any_revision(revisions: Mapping[str, int]) -> ColumnElement[bool]:
    return or_(
        *(
            and_(scores.c.directive == directive, scores.c.directive_revision == revision)
            for directive, revision in revisions.items()
        )
    )


def _sample(row: Row[Any], at_hand: Sequence[Answer]) -> Sample:
    return Sample(
        sample_id=row.sample_id,
        tenant=row.tenant,
        model=row.model,
        task=row.task,
        turns=tuple(Turn(role, content) for role, content in row.turns),
        sampling_json=row.sampling_json,
        limits_json=row.limits_json,
        reference=row.reference,
        grader=row.grader,
        served_at=row.served_at,
        answers=tuple(at_hand),
    )
