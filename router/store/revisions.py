"""Tables whose rows are revisions: nothing is changed, the newest row of a name is in force."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

RevisionKey = tuple[datetime, str, int]
"""(time, name, revision): the order in which the revisions of all names are read."""


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


async def after(connection: AsyncConnection, table: Table, key: RevisionKey | None, limit: int) -> Sequence[Row[Any]]:
    """The revisions of all names that follow a key, in the order of their keys; None: from the first."""
    order = (table.c.updated_at, table.c.name, table.c.revision)
    query = select(table).order_by(*order).limit(limit)
    if key is not None:
        query = query.where(tuple_(*order) > _literals(table, key))
    return (await connection.execute(query)).all()


async def as_of(connection: AsyncConnection, table: Table, key: RevisionKey) -> Sequence[Row[Any]]:
    """The newest row of every name among those up to and with a key, deletions too."""
    order = (table.c.updated_at, table.c.name, table.c.revision)
    newest = (
        select(table.c.name, func.max(table.c.revision).label("revision"))
        .where(tuple_(*order) <= _literals(table, key))
        .group_by(table.c.name)
        .subquery("newest")
    )
    query = select(table).join(newest, (table.c.name == newest.c.name) & (table.c.revision == newest.c.revision))
    return (await connection.execute(query)).all()


def _literals(table: Table, key: RevisionKey) -> ColumnElement[Any]:
    columns = (table.c.updated_at, table.c.name, table.c.revision)
    return tuple_(*(literal(value, column.type) for column, value in zip(columns, key, strict=True)))
