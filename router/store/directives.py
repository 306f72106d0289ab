"""Directives in the database, with all their revisions. L0 is none of them: it is always there and never changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.directives.levels import Directive, Placement
from router.store import revisions
from router.store.revisions import Action, RevisionKey
from router.store.tables import directives


@dataclass(frozen=True, slots=True)
class DirectiveRevision:
    """A directive as it was; who and when are in the directive."""

    directive: Directive
    action: Action
    reason: str

    @property
    def key(self) -> RevisionKey:
        return self.directive.updated_at, self.directive.name, self.directive.revision


class DirectiveRepository:
    """Within one transaction; `add` within `Database.changing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def all(self) -> tuple[Directive, ...]:
        """Those in force, by name."""
        rows = (await self._connection.execute(revisions.in_force(directives))).all()
        # Sorted here: the order of a database's text depends on its locale.
        return tuple(sorted(map(_directive, rows), key=lambda directive: directive.name))

    async def get(self, name: str) -> Directive | None:
        found = await self._connection.execute(revisions.in_force(directives).where(directives.c.name == name))
        row = found.one_or_none()
        return None if row is None else _directive(row)

    async def last_revision(self, name: str) -> int:
        """0 where the name was never used."""
        return await revisions.last_revision(self._connection, directives, name)

    async def revision(self, name: str, revision: int) -> DirectiveRevision | None:
        query = select(directives).where(directives.c.name == name, directives.c.revision == revision)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _revision(row)

    async def revisions(self, name: str, limit: int, before: int | None = None) -> tuple[DirectiveRevision, ...]:
        """Newest first, of deleted directives too; `before` is a revision, exclusive."""
        query = select(directives).where(directives.c.name == name).order_by(directives.c.revision.desc()).limit(limit)
        if before is not None:
            query = query.where(directives.c.revision < before)
        return tuple(map(_revision, (await self._connection.execute(query)).all()))

    async def revisions_after(self, key: RevisionKey | None, limit: int) -> tuple[DirectiveRevision, ...]:
        """Of all names, by time; None: from the first."""
        return tuple(map(_revision, await revisions.after(self._connection, directives, key, limit)))

    async def newest_as_of(self, key: RevisionKey) -> tuple[DirectiveRevision, ...]:
        """The newest of every name, deleted ones too, among the revisions up to and with a key."""
        return tuple(map(_revision, await revisions.as_of(self._connection, directives, key)))

    async def add(self, directive: Directive, action: Action, reason: str) -> None:
        """Makes it the newest revision of its name. Raises IntegrityError where that revision exists."""
        await self.add_many([(directive, action)], reason)

    async def add_many(self, changed: Sequence[tuple[Directive, Action]], reason: str) -> None:
        """As `add`, each."""
        if changed:
            rows = [_row(directive, action, reason) for directive, action in changed]
            await self._connection.execute(insert(directives), rows)

    async def last_revisions(self) -> dict[str, int]:
        """Of every name that was ever used."""
        return await revisions.last_revisions(self._connection, directives)


def _row(directive: Directive, action: Action, reason: str) -> dict[str, Any]:
    return {
        "name": directive.name,
        "revision": directive.revision,
        "action": action.value,
        "reason": reason,
        "text": directive.text,
        "placement": directive.placement.value,
        "max_output_tokens": directive.max_output_tokens,
        "stop": directive.stop,
        "suppressed_words": directive.suppressed_words,
        "history_messages": directive.history_messages,
        "template_variables": dict(directive.template_variables),
        "model": directive.model,
        "updated_at": directive.updated_at,
        "updated_by": directive.updated_by,
    }


def _directive(row: Row[Any]) -> Directive:
    return Directive(
        name=row.name,
        text=row.text,
        placement=Placement(row.placement),
        max_output_tokens=row.max_output_tokens,
        stop=tuple(row.stop),
        suppressed_words=tuple(row.suppressed_words),
        history_messages=row.history_messages,
        template_variables=tuple(sorted(row.template_variables.items())),
        model=row.model,
        revision=row.revision,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
    )


def _revision(row: Row[Any]) -> DirectiveRevision:
    return DirectiveRevision(_directive(row), Action(row.action), row.reason)
