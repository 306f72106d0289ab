"""Prompts that an admin has labelled with their tasks, in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.tables import task_examples, task_revisions


@dataclass(frozen=True, slots=True)
class TaskExample:
    """A labelled prompt."""

    task: str
    text: str


@dataclass(frozen=True, slots=True)
class TaskRevision:
    """Who labelled prompts, when and why."""

    revision: int
    examples: int
    """How many; 0 where they were forgotten."""
    reason: str
    updated_at: datetime
    updated_by: str


class TaskExampleRepository:
    """Within one transaction; `replace` within `Database.changing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def newest(self) -> TaskRevision | None:
        """None where no prompts were ever labelled."""
        query = select(task_revisions).order_by(task_revisions.c.revision.desc()).limit(1)
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            return None
        return TaskRevision(row.revision, row.examples, row.reason, row.updated_at, row.updated_by)

    async def all(self) -> tuple[TaskExample, ...]:
        """Of the newest revision, in the order in which they were given."""
        query = select(task_examples).order_by(task_examples.c.position)
        return tuple(TaskExample(row.task, row.text) for row in await self._connection.execute(query))

    async def counts(self) -> Counter[str]:
        """Of them by task, in the order of each task's first one."""
        first = func.min(task_examples.c.position)
        query = select(task_examples.c.task, func.count().label("n")).group_by(task_examples.c.task).order_by(first)
        return Counter({row.task: row.n for row in await self._connection.execute(query)})

    async def replace(
        self, examples: Sequence[TaskExample], reason: str, updated_at: datetime, updated_by: str
    ) -> TaskRevision:
        """Puts these in place of all; returns the revision that they are."""
        last = await self.newest()
        revision = TaskRevision(last.revision + 1 if last else 1, len(examples), reason, updated_at, updated_by)
        await self._connection.execute(delete(task_examples))
        if examples:
            rows = [{"position": position, "task": one.task, "text": one.text} for position, one in enumerate(examples)]
            await self._connection.execute(insert(task_examples), rows)
        await self._connection.execute(
            insert(task_revisions).values(
                revision=revision.revision,
                examples=revision.examples,
                reason=revision.reason,
                updated_at=revision.updated_at,
                updated_by=revision.updated_by,
            )
        )
        return revision
