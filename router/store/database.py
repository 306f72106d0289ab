"""The connection to the database: opening with migrations, transactions, and one exception for its failures."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import URL, Connection, event, exc, make_url, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from common.errors import PithError
from router.store import migrate
from router.store.tables import changes

BUSY_TIMEOUT_SECONDS = 5
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_WRITES = "pith_writes"
_NOT_AS_IT_SHOULD_BE = ("42P01", "42703", "42501", "3F000")
"""SQLSTATE: a table, column or schema that is not there, or may not be touched. It is being restored or migrated: what
was to be written waits."""


class StoreUnavailable(PithError):  # noqa: N818
    """The database does not answer, or cannot write. A caller that can do without it goes on."""

    def __init__(self, fault: str) -> None:
        super().__init__(
            grpc.StatusCode.UNAVAILABLE, "DATABASE", "the database does not answer", retry_after_seconds=1.0
        )
        self.fault = fault
        """What the driver said: for the log, not for callers."""

    def __str__(self) -> str:
        return f"{self.message}: {self.fault}"


class Database:
    """One database, by SQLAlchemy URL: `sqlite:///path` (default of Pith) or `postgresql://...`.

    Repositories are views on the connection of a transaction:

        async with database.reading() as connection:
            policies = await PolicyRepository(connection).all()

    Raises:
        ValueError: no such URL, another kind of database, or SQLite in memory (which each connection has its own of).
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        options: dict[str, Any] = {
            "pool_pre_ping": True,
            "connect_args": {
                "connect_timeout": BUSY_TIMEOUT_SECONDS,
                # Without these, a server that vanishes from the network is waited for by the hour.
                "tcp_user_timeout": BUSY_TIMEOUT_SECONDS * 1000,
                "keepalives_idle": BUSY_TIMEOUT_SECONDS,
                "keepalives_interval": 1,
            },
        }
        if self.url.get_backend_name() == "sqlite":
            options = {}
        try:
            self._engine = create_async_engine(
                self.url,
                # Parameters are prompts and answers, which no log may hold.
                hide_parameters=True,
                **options,
            )
        except ModuleNotFoundError as error:
            raise ValueError(f"database URL: it needs the package {error.name} (extra postgres)") from error
        if self.url.get_backend_name() == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
            event.listen(self._engine.sync_engine, "invalidate", _roll_back_sqlite)

    async def open(self) -> None:
        """Brings the schema to this version's, whatever it is now.

        Raises:
            SchemaVersionError: a newer Pith has been at work on it.
            StoreUnavailable: the database cannot be reached.
        """
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            await asyncio.to_thread(_make_private, Path(self.url.database))
        with _failures():
            await asyncio.to_thread(migrate.upgrade, self.url)

    async def forget_erased(self) -> None:
        """Empties SQLite's log of what has been written, where erased text stays until it is written over. As far as
        readers let it: what they still see goes with the next time."""
        if self.url.get_backend_name() == "sqlite":
            await asyncio.to_thread(_truncate_log, str(self.url.database))

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state throughout. Raises StoreUnavailable, as do all of them."""
        with _failures():
            async with self._engine.connect() as connection:
                if self.url.get_backend_name() == "postgresql":
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the end, or rolled back where the block raises."""
        with _failures():
            async with self._engine.connect() as connection:
                await connection.execution_options(**{_WRITES: True})
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncConnection]:
        """As `writing`, for directives, policies and bounds: tells other routers, and only one at a time is at it.

        So what a block has read stays true until it has written: etags, and which policy names which directive.
        """
        async with self.writing() as connection:
            # Before all else: the row is the lock.
            await connection.execute(update(changes).values(counter=changes.c.counter + 1))
            yield connection


async def change_counter(connection: AsyncConnection) -> int:
    """A number that is another one after every committed `changing` transaction."""
    return int((await connection.execute(select(changes.c.counter))).scalar_one())


def _checked(text: str) -> URL:
    try:
        url = make_url(text)
    except exc.ArgumentError as error:
        raise ValueError("database URL: must be sqlite:///PATH or postgresql://USER@HOST/NAME") from error
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise ValueError(f"database URL: {backend!r} is not supported; must be sqlite or postgresql")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("database URL: SQLite needs a file, sqlite:///PATH")
    return url.set(drivername=_DRIVERS[backend])


def _configure_sqlite(dbapi_connection: Any, _record: object) -> None:
    # The driver's own idea of when a transaction begins leaves reads outside of it; BEGIN is ours, below.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in (
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
        "foreign_keys=ON",
        # What is erased is written over.
        "secure_delete=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _make_private(path: Path) -> None:
    """Makes the file, if it is not there, for its owner alone: it holds what users and models said. SQLite gives its
    other files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Where that fails, SQLite says why.
    with contextlib.suppress(OSError):
        path.touch(mode=0o600)


def _truncate_log(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer fails at once where another has written since, whatever the timeout.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError) as error:
        if getattr(error.orig, "sqlstate", None) not in _NOT_AS_IT_SHOULD_BE:
            raise  # a fault of ours, not of the database
        raise StoreUnavailable(str(error.orig).partition("\n")[0]) from error
    except (exc.DBAPIError, exc.TimeoutError) as error:
        # After its first line, a database may quote the row.
        raise StoreUnavailable(str(getattr(error, "orig", None) or error).partition("\n")[0]) from error


def _roll_back_sqlite(dbapi_connection: Any, _record: object, _error: BaseException | None) -> None:
    """Before a connection is thrown away, which is what becomes of one whose task was cancelled within a statement.

    A statement that has rows left keeps a closed connection, and its lock on the file, for as long as anything refers
    to it: the frames of the very error, where somebody keeps that.
    """
    if dbapi_connection is not None:
        # A connection that is broken altogether holds nothing.
        with contextlib.suppress(Exception):
            dbapi_connection.run_async(lambda connection: connection.rollback())
