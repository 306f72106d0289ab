"""The schema, from nothing to the newest and back, with data in it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from router.directives.levels import Directive
from router.store import migrate
from router.store.database import Database, change_counter
from router.store.directives import DirectiveRepository
from router.store.migrate import SchemaVersionError
from router.store.revisions import Action
from router.store.tables import metadata


def _tables(database: Database) -> set[str]:
    driver = database.url.drivername.replace("+aiosqlite", "")
    engine = create_engine(database.url.set(drivername=driver))
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


async def test_what_migrations_make_is_what_the_code_expects(database: Database) -> None:
    driver = database.url.drivername.replace("+aiosqlite", "")
    engine = create_engine(database.url.set(drivername=driver))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


async def test_opening_again_changes_nothing(database: Database) -> None:
    directive = Directive("L1", "Briefly", updated_at=datetime(2026, 1, 1, tzinfo=UTC))
    async with database.changing() as connection:
        await DirectiveRepository(connection).add(directive, Action.CREATE, "")
    await database.open()
    async with database.reading() as connection:
        assert await DirectiveRepository(connection).all() == (directive,)
        assert await change_counter(connection) == 1


async def test_down_and_up_again_with_data(database: Database) -> None:
    async with database.changing() as connection:
        await DirectiveRepository(connection).add(
            Directive("L1", updated_at=datetime(2026, 1, 1, tzinfo=UTC)), Action.CREATE, ""
        )
    await database.close()
    migrate.downgrade(database.url, "base")
    assert _tables(database) == {"alembic_version"}
    await database.open()
    assert _tables(database) == {"alembic_version", *metadata.tables}
    async with database.reading() as connection:
        assert await DirectiveRepository(connection).all() == ()


async def test_a_newer_database_is_refused_and_left_alone(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionError, match=r"at migration 9999, .* \(its newest: \d{4}\)"):
        await database.open()
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar() == "9999"


async def test_a_migration_that_fails_leaves_nothing_half_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "migrations"
    shipped = Path(migrate.__file__).parent / "migrations"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text((shipped / "env.py").read_text())
    first = (shipped / "versions" / "first_tables.py").read_text()
    broken = first.replace('op.execute("INSERT', 'op.execute("INSERT INTO nowhere VALUES (1)")\n    op.execute("INSERT')
    (scripts / "versions" / "first_tables.py").write_text(broken)
    monkeypatch.setattr(migrate, "_SCRIPTS", scripts)
    database = Database(url)
    with pytest.raises(Exception, match="nowhere"):
        await database.open()
    assert _tables(database) == set()
    monkeypatch.undo()
    await database.open()
    assert _tables(database) == {"alembic_version", *metadata.tables}
    await database.close()
