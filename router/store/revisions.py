"""Tables whose rows are revisions: nothing is changed, the newest row of a name is in force."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection


class Action(StrEnum):
    """What made a revision."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    ROLLBACK = "rollback"


def in_force(table: Table) -> Select[Any]:
    """The newest row of every name, deleted ones left out."""
    newest = (
        select(table.c.name, func.max(table.c.revision).label("revision")).group_by(table.c.name).subquery("newest")
    )
    return (
        select(table)
        .join(newest, (table.c.name == newest.c.name) & (table.c.revision == newest.c.revision))
        .where(table.c.action != Action.DELETE.value)
    )


async def last_revision(connection: AsyncConnection, table: Table, name: str) -> int:
    """The newest revision of a name, deleted or not; 0 where there never was one.

    A name that is used again counts on, so that neither etags nor bounds of its former self fit the new one.
    """
    newest = await connection.execute(select(func.max(table.c.revision)).where(table.c.name == name))
    return newest.scalar_one() or 0


async def last_revisions(connection: AsyncConnection, table: Table) -> dict[str, int]:
    """Of every name that was ever used."""
    query = select(table.c.name, func.max(table.c.revision).label("revision")).group_by(table.c.name)
    return {row.name: row.revision for row in await connection.execute(query)}
