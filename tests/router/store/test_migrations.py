"""The schema, from nothing to the newest and back, with data in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
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
    text,
)
from sqlalchemy.types import DateTime, TypeDecorator

from common.clock import ManualClock
from router.directives.levels import Directive
from router.directives.policy import FloorKind, Mode, Policy, Trait
from router.snapshot import seed
from router.store import migrate
from router.store.columns import Text, UtcDateTime
from router.store.database import Database, change_counter
from router.store.directives import DirectiveRepository
from router.store.migrate import SchemaVersionError
from router.store.policies import PolicyRepository
from router.store.revisions import Action
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


async def test_what_migrations_make_is_what_the_code_expects(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    await database.open()
    assert differences(database.url) == []
    await database.close()


CHANGES: dict[str, Callable[[Operations], None]] = {
    "an index is missing": lambda op: op.drop_index("ix_ledger_started_at", table_name="ledger"),
    "an index is new": lambda op: op.create_index("ix_ledger_engine", "ledger", ["engine"]),
    "a column is missing": lambda op: batch(op, "policies", lambda table: table.drop_column("leave_alone")),
    "a column may be null": lambda op: batch(
        op, "policies", lambda table: table.alter_column("leave_alone", nullable=True)
    ),
    "a type differs": lambda op: batch(op, "tenants", lambda table: table.alter_column("tenant", type_=Double())),
    "a default is new": lambda op: batch(
        op, "policies", lambda table: table.alter_column("leave_alone", server_default="[]")
    ),
    "a unique constraint is missing": lambda op: batch(
        op, "tokens", lambda table: table.drop_constraint("uq_tokens_sha256", type_="unique")
    ),
    "a foreign key is missing": lambda op: batch(
        op, "scores", lambda table: table.drop_constraint("fk_scores_sample_id", type_="foreignkey")
    ),
    "a table is missing": lambda op: op.drop_table("seals"),
}


def batch(op: Operations, table: str, change: Callable[[Any], None]) -> None:
    with op.batch_alter_table(table) as altered:
        change(altered)


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_sees_what_differs(database_url: str, change: str) -> None:
    database = Database(database_url)
    migrate.upgrade(database.url)
    kind = "USING 0" if "type" in change and database.url.get_backend_name() == "postgresql" else ""
    with connected(database.url) as connection:
        if kind:
            connection.execute(text(f"ALTER TABLE tenants ALTER tenant TYPE double precision {kind}"))
        else:
            CHANGES[change](Operations(MigrationContext.configure(connection)))
    assert len(differences(database.url)) >= 1


async def test_every_row_survives_the_way_up_and_down_and_up(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    url = database.url
    migrate.upgrade(url, "0001")
    assert table_names(url) == {"alembic_version", *FIRST_TABLES}
    tables = of_first_tables(url)
    fill(url, tables)
    before = rows_of(url, tables)
    assert all(len(rows) >= len(STRINGS) for rows in before.values())

    migrate.upgrade(url)
    assert rows_of(url, tables) == before
    with connected(url) as connection:
        said = {column: set(map(repr, connection.scalars(select(metadata.tables[table].c[column]))))
                for table, column in NEW_COLUMNS}  # fmt: skip
    assert said == {column: {repr(value)} for (_, column), value in NEW_COLUMNS.items()}

    migrate.downgrade(url, "0001")
    assert table_names(url) == {"alembic_version", *FIRST_TABLES}
    assert rows_of(url, tables) == before

    migrate.upgrade(url)
    assert rows_of(url, tables) == before
    assert differences(url) == []
    migrate.downgrade(url, "base")
    assert table_names(url) == {"alembic_version"}
    migrate.upgrade(url)
    assert {name: len(rows) for name, rows in rows_of(url, tables).items() if rows} == {"changes": 1}
    await database.close()


NEW_COLUMNS: dict[tuple[str, str], Any] = {
    ("directives", "template_variables"): {},
    ("policies", "latency_seconds"): None,
    ("policies", "latency_share"): None,
    ("policies", "carbon_grams_per_day"): None,
    ("policies", "when_carbon_spent"): None,
    ("policies", "leave_alone"): ["code", "explicit_length", "opt_out", "structured_output", "tools"],
    ("samples", "erased_at"): None,
    ("scores", "characters"): None,
    ("scores", "shown_first"): None,
    ("bounds", "tenant"): "",
    ("bounds", "method"): "BETTING",
    ("bounds", "since"): None,
    ("bounds", "code_revision"): "",
}
"""What later ones say of rows that were there before them."""


async def test_0005_counts_the_characters_of_prompts_and_gives_graders_their_first_revision(
    empty_database_url: str,
) -> None:
    """More rows than it counts at once; text that was erased, or is none, has a length that nobody knows."""
    database = Database(empty_database_url)
    url = database.url
    migrate.upgrade(url, "0004")
    known: Any = {
        "plain": ([["system", "kürzer 🌍"], ["user", "four"]], None, 12),
        "no turns": ([], None, 0),
        "erased": ([], NEW_YEAR, None),
        "odd": ([{"role": "user"}], None, None),
    }
    known |= {f"n{number:04d}": ([["user", "x" * number]], None, number) for number in range(2_100)}
    columns = {"tenant": "a", "model": "m@1", "task": "t", "sampling_json": "{}", "limits_json": "{}"}
    columns |= {"reference": "", "grader": "", "lease_holder": None, "leased_until": None}
    judges = ["grader:exact", "grader:numeric", "pairwise:m@1/prompt-1", ""]
    with connected(url) as connection:
        samples = Table("samples", MetaData(), *(Column(c.name, c.type) for c in metadata.tables["samples"].c))
        scores = Table("scores", MetaData(), *(Column(c.name, c.type) for c in metadata.tables["scores"].c))
        connection.execute(
            insert(samples),
            [
                {**columns, "sample_id": name, "turns": turns, "served_at": NEW_YEAR, "erased_at": erased_at}
                for name, (turns, erased_at, _) in known.items()
            ],
        )
        connection.execute(
            insert(scores),
            [
                {
                    "id": 1 + number,
                    "sample_id": "plain",
                    "directive": "L1",
                    "directive_revision": 1 + number,
                    "quality": 1.0,
                    "baseline_quality": 1.0,
                    "judge": judge,
                    "scored_at": NEW_YEAR,
                }
                for number, judge in enumerate(judges)
            ],
        )
    migrate.upgrade(url)
    with connected(url) as connection:
        counted = {row.sample_id: row.prompt_characters for row in connection.execute(select(samples))}
        assert counted == {name: characters for name, (_, _, characters) in known.items()}
        named = connection.scalars(select(scores.c.judge).order_by(scores.c.id)).all()
        assert named == ["grader:exact@1", "grader:numeric@1", "pairwise:m@1/prompt-1", ""]
    migrate.downgrade(url, "0004")
    with connected(url) as connection:
        assert connection.scalars(select(scores.c.judge).order_by(scores.c.id)).all() == judges
    await database.close()


async def test_the_code_of_today_reads_and_writes_what_0001_kept(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    migrate.upgrade(database.url, "0001")
    tables = of_first_tables(database.url)
    with connected(database.url) as connection:
        connection.execute(insert(tables["directives"]), DIRECTIVES)
        connection.execute(insert(tables["policies"]), [POLICY])
        rows = [{column.name: extreme(column, row) for column in tables["bounds"].c} for row in range(2)]
        connection.execute(insert(tables["bounds"]), [{**row, "id": 1 + number} for number, row in enumerate(rows)])
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT setval('bounds_id_seq', 2)"))
    await database.open()
    async with database.changing() as connection:
        assert await DirectiveRepository(connection).all() == (
            Directive(
                "L1",
                DIRECTIVES[0]["text"],
                max_output_tokens=2**63 - 1,
                stop=tuple(DIRECTIVES[0]["stop"]),
                revision=2,
            ),
        )
        assert await PolicyRepository(connection).all() == (
            Policy(
                "acme-qa",
                tenant="acme",
                task="qa",
                mode=Mode.ON,
                traffic_share=1 / 3,
                directives=("L1",),
                holdback_share=5e-324,
                sample_share=1.0,
                grader="exact",
                leave_alone=frozenset(Trait),
            ),
        )
        await connection.execute(
            insert(metadata.tables["bounds"]),
            {key: value for key, value in rows[1].items() if key != "id"}
            | {"tenant": "", "method": "BETTING", "code_revision": ""},
        )
        assert (await connection.scalars(select(metadata.tables["bounds"].c.id))).all() == [1, 2, 3]
    await database.close()


async def test_opening_again_changes_nothing(database: Database) -> None:
    directive = Directive("L1", "Briefly", updated_at=NEW_YEAR)
    async with database.changing() as connection:
        await DirectiveRepository(connection).add(directive, Action.CREATE, "")
    await database.open()
    async with database.reading() as connection:
        assert await DirectiveRepository(connection).all() == (directive,)
        assert await change_counter(connection) == 1


async def test_routers_that_start_together_migrate_once(empty_database_url: str) -> None:
    databases = [Database(empty_database_url) for _ in range(5)]

    async def start(database: Database) -> None:
        await database.open()
        await seed(database, ManualClock())

    await asyncio.gather(*map(start, databases))
    assert differences(databases[0].url) == []
    async with databases[0].reading() as connection:
        assert await change_counter(connection) == 5
        assert [policy.revision for policy in await PolicyRepository(connection).all()] == [1]
        assert [directive.revision for directive in await DirectiveRepository(connection).all()] == [1, 1]
    for database in databases:
        await database.close()


async def test_a_newer_database_is_refused_and_left_alone(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionError, match=r"at migration 9999, .* \(its newest: \d{4}\)"):
        await database.open()
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar() == "9999"


async def test_a_migration_that_fails_leaves_nothing_half_made(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(empty_database_url)
    migrate.upgrade(database.url, "0001")
    tables = of_first_tables(database.url)
    fill(database.url, tables)
    before = rows_of(database.url, tables)
    scripts = tmp_path / "migrations"
    shipped = Path(migrate.__file__).parent / "migrations"
    (scripts / "versions").mkdir(parents=True)
    for script in ("env.py", "versions/first_tables.py", "versions/policies_and_access.py"):
        (scripts / script).write_text((shipped / script).read_text())
    second = scripts / "versions" / "policies_and_access.py"
    broken = '    op.create_table(\n        "seals"'
    assert broken in second.read_text()
    second.write_text(second.read_text().replace(broken, f'    op.execute("INSERT INTO nowhere VALUES (1)")\n{broken}'))
    monkeypatch.setattr(migrate, "_SCRIPTS", scripts)
    with pytest.raises(Exception, match="nowhere"):
        await database.open()
    assert table_names(database.url) == {"alembic_version", *FIRST_TABLES}
    assert rows_of(database.url, tables) == before
    monkeypatch.undo()
    await database.open()
    assert rows_of(database.url, tables) == before
    assert table_names(database.url) == {"alembic_version", *metadata.tables}
    await database.close()


async def test_what_budgets_have_spent_is_of_the_signal_there_was(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    url, day = database.url, datetime(2026, 1, 1, tzinfo=UTC)
    migrate.upgrade(url, "0002")
    old = [{"policy": policy, "day": moment, "grams": grams} for policy, moment, grams in (
        ("a", day, 1.5), ("a", day - timedelta(days=1), 2.5), ("b", day, 0.25),
    )]  # fmt: skip
    tables = of_first_tables(url)
    row = {column.name: extreme(column, 1) for column in tables["ledger"].c}
    newest = row | {"intensity_kind": "AVERAGE", "intensity_scope": "DIRECT", "started_at": NEW_YEAR}
    unknown = row | {"request_id": "later", "intensity_kind": None, "intensity_scope": None}
    days = [Column("policy", Text), Column("day", UtcDateTime), Column("grams", Double)]
    with connected(url) as connection:
        connection.execute(insert(tables["ledger"]), [newest, unknown | {"started_at": NEW_YEAR + timedelta(days=9)}])
        connection.execute(insert(Table("spent", MetaData(), *days)), old)
    migrate.upgrade(url)
    spent = metadata.tables["spent"]
    signal = {"intensity_kind": "AVERAGE", "intensity_scope": "DIRECT"}
    with connected(url) as connection:
        found = [dict(one) for one in connection.execute(select(spent).order_by(spent.c.grams)).mappings()]
        assert found == [one | signal for one in sorted(old, key=lambda one: one["grams"])]
        connection.execute(insert(spent), [{**old[0], **signal, "intensity_kind": "MARGINAL", "grams": 7.0}])
    assert differences(url) == []
    # Never a sum of two: the most under one.
    migrate.downgrade(url, "0002")
    with connected(url) as connection:
        rows = connection.execute(text("SELECT policy, grams FROM spent ORDER BY grams")).all()
    assert [tuple(row) for row in rows] == [("b", 0.25), ("a", 2.5), ("a", 7.0)]
    migrate.upgrade(url)
    assert differences(url) == []
    await database.close()


async def test_without_a_ledger_nothing_was_spent(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    migrate.upgrade(database.url, "0002")
    with connected(database.url) as connection:
        connection.execute(text("INSERT INTO spent VALUES ('a', '2026-01-01 00:00:00', 1.0)"))
    await database.open()
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM spent"))).scalar() == 0
    await database.close()
