"""Insertion that is harmless when repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Row, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

# Statements of few rows are parsed once and kept by the driver, and cost less than half of what long ones do.
_ROWS_A_STATEMENT = {"insertmanyvalues_page_size": 50}


async def insert_new(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    unique: Sequence[str],
    returning: Sequence[Column[Any]] = (),
) -> Sequence[Row[Any]]:
    """Inserts the rows whose `unique` columns are not taken, and leaves those that are as they were.

    Returns:
        The columns `returning` of the rows that were inserted; none where it is empty.
    """
    if not rows:
        return ()
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing(index_elements=list(unique))
    # In one order everywhere, so that two routers with the same rows never wait for each other.
    ordered = sorted(rows, key=lambda row: tuple(row[column] for column in unique))
    if not returning:
        await connection.execute(statement, ordered)
        return ()
    inserted = await connection.execute(statement.returning(*returning), ordered, execution_options=_ROWS_A_STATEMENT)
    return inserted.all()
