"""Brings the schema from any version to any other."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine, event

_SCRIPTS = Path(__file__).parent / "migrations"
# Any number, but the same for every router.
_LOCK = 0x70697468
# For another router's migrations, on SQLite.
_WAIT_SECONDS = 30


class SchemaVersionError(RuntimeError):
    """The database was made by a newer version."""


def upgrade(url: URL, revision: str = "head") -> None:
    """Blocks. All migrations or none; routers that start together wait for one another.

    Raises:
        SchemaVersionError: the database is at a migration that this version does not know.
    """
    _migrate(url, lambda config: command.upgrade(config, revision))


def downgrade(url: URL, revision: str) -> None:
    """As upgrade, the other way; "base" leaves no table."""
    _migrate(url, lambda config: command.downgrade(config, revision))


def _migrate(url: URL, run: Callable[[Config], None]) -> None:
    config = Config()
    # The option is expanded like a format string.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    with _locked(url) as connection:
        _refuse_newer(connection, ScriptDirectory.from_config(config))
        config.attributes["connection"] = connection
        run(config)
        if connection.dialect.name == "sqlite":
            orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if orphans:
                raise RuntimeError(f"the migration leaves rows without their parents: {orphans[:3]}")


@contextmanager
def _locked(url: URL) -> Iterator[Connection]:
    sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(url.set(drivername="sqlite") if sqlite else url, poolclass=NullPool)
    if sqlite:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        if not sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        yield connection


def _configure_sqlite(dbapi_connection: Any, _record: object) -> None:
    # Foreign keys off: a table that is made anew is dropped for a moment, which must not cascade.
    dbapi_connection.isolation_level = None
    dbapi_connection.execute(f"PRAGMA busy_timeout={_WAIT_SECONDS * 1000}")
    dbapi_connection.execute("PRAGMA foreign_keys=OFF")
    # The one statement that does not wait for a lock, and whose effect stays with the file.
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            dbapi_connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise SchemaVersionError(
                f"the database is at migration {revision}, which this version of Pith does not know "
                f"(its newest: {scripts.get_current_head()}); run the version that made it, or a newer one"
            )
