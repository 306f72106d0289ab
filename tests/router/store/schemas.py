"""What a database's schema is, the first tables of all, and rows for them at the limits of their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Float,
    Integer,
    MetaData,
    Table,
    create_engine,
    insert,
    inspect,
    select,
)
from sqlalchemy.types import DateTime, TypeDecorator

from router.directives.policy import FloorKind, Mode
from router.store.tables import metadata

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)

FIRST_TABLES = {"answers", "bounds", "changes", "directives", "ledger", "policies", "samples", "scores"}

DIRECTIVES = [
    {
        "name": "L1",
        "revision": revision,
        "action": action,
        "reason": "kürzer 🌍\u2028; DROP TABLE directives --",
        "text": "Always answer \"briefly\",\n'please' \\",
        "placement": "tail",
        "max_output_tokens": 2**63 - 1,
        "stop": ["\n\n", "Ende.", '"', "\U0001f30d"],
        "suppressed_words": [],
        "history_messages": 0,
        "updated_at": NEW_YEAR,
        "updated_by": "",
    }
    for revision, action in ((1, "create"), (2, "update"))
]

POLICY = {
    "name": "acme-qa",
    "revision": 1,
    "action": "create",
    "reason": "",
    "tenant": "acme",
    "task": "qa",
    "mode": Mode.ON.value,
    "traffic_share": 1 / 3,
    "floor": 0.95,
    "floor_kind": FloorKind.RELATIVE.value,
    "directives": ["L1"],
    "holdback_share": 5e-324,
    "sample_share": 1.0,
    "grader": "exact",
    "bound_max_age_seconds": 604800,
    "updated_at": NEW_YEAR,
    "updated_by": "an admin",
}

STRINGS = ["", "Größe 🌍 \u2028 '\"\\ %s :x NULL", "x" * 20_000, "\ufffd\x01\t\r\n"]
WHOLE = {True: [0, 2**63 - 1, -(2**63), 1], False: [0, 2**31 - 1, -(2**31), 1]}
REAL = [0.0, 1.7976931348623157e308, 5e-324, -1 / 3]
MOMENTS = [
    datetime(1, 1, 2, tzinfo=UTC),
    datetime(9999, 12, 30, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 30, 0, 1, tzinfo=UTC),
    NEW_YEAR,
]
DOCUMENTS: list[Any] = [[], {}, [["user", 'Größe 🌍 " \\ \u2028'], ["system", ""]], {"a": [None, True, 1.5, "null"]}]


def extreme(column: Column[Any], row: int) -> Any:
    """A value of the column's type; what is a key, or part of one, differs from row to row."""
    if column.name == "sample_id":
        return f"{row}-{STRINGS[row]}"
    if column.nullable and row == 0:
        return None
    kind = column.type.impl if isinstance(column.type, TypeDecorator) else column.type
    if isinstance(kind, Boolean):
        return row % 2 == 0
    if isinstance(kind, Integer):
        return 10 + row if column.primary_key else WHOLE[isinstance(kind, BigInteger)][row]
    if isinstance(kind, (Double, Float)):
        return REAL[row]
    if isinstance(kind, DateTime):
        return MOMENTS[row]
    if isinstance(kind, JSON):
        return DOCUMENTS[row]
    return f"{row}-{STRINGS[row]}" if column.primary_key else STRINGS[row]


@contextmanager
def connected(url: URL) -> Iterator[Connection]:
    engine = create_engine(url.set(drivername=url.drivername.replace("+aiosqlite", "")))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def table_names(url: URL) -> set[str]:
    with connected(url) as connection:
        return set(inspect(connection).get_table_names())


def of_first_tables(url: URL) -> dict[str, Table]:
    """With the columns that the database has now, of the code's types."""
    with connected(url) as connection:
        there = {name: [c["name"] for c in inspect(connection).get_columns(name)] for name in FIRST_TABLES}
    known = metadata.tables
    return {
        name: Table(
            name,
            MetaData(),
            *(
                Column(
                    c,
                    known[name].c[c].type,
                    primary_key=known[name].c[c].primary_key,
                    nullable=known[name].c[c].nullable,
                )
                for c in columns
            ),
        )
        for name, columns in there.items()
    }


def fill(url: URL, tables: Mapping[str, Table]) -> None:
    with connected(url) as connection:
        for name in sorted(tables, key=lambda name: (name in ("answers", "scores"), name)):
            table = tables[name]
            rows = [{column.name: extreme(column, row) for column in table.c} for row in range(len(STRINGS))]
            connection.execute(insert(table), rows)
        connection.execute(insert(tables["directives"]), DIRECTIVES)
        connection.execute(insert(tables["policies"]), [POLICY])


def rows_of(url: URL, tables: Mapping[str, Table]) -> dict[str, list[str]]:
    """Of the columns that these tables have."""
    with connected(url) as connection:
        return {name: sorted(map(repr, connection.execute(select(table)))) for name, table in tables.items()}


def differences(url: URL) -> Any:
    with connected(url) as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
