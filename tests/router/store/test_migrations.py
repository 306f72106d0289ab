"""The schema that migrations make, and databases that a router opens, or does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Double, text

from common.clock import ManualClock
from router.directives.levels import Directive
from router.snapshot import seed
from router.store import migrate
from router.store.database import Database, change_counter
from router.store.directives import DirectiveRepository
from router.store.migrate import SchemaVersionError
from router.store.policies import PolicyRepository
from router.store.revisions import Action
from router.store.tables import metadata
from tests.router.store.schemas import (
    FIRST_TABLES,
    NEW_YEAR,
    connected,
    differences,
    fill,
    of_first_tables,
    rows_of,
    table_names,
)


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
