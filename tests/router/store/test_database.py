"""Transactions, what they guarantee, and what a failing database looks like."""

import asyncio
import os
import sqlite3
import stat
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import exc, text

from router.directives.levels import Directive
from router.store.database import Database, StoreUnavailable, change_counter
from router.store.directives import DirectiveRepository
from router.store.revisions import Action
from tests.postgres import PostgresUnavailableError, unavailable

NEW_YEAR = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("no url", "must be sqlite:///PATH or postgresql://"),
        ("mysql://host/name", "'mysql' is not supported"),
        ("sqlite://", "SQLite needs a file"),
        ("sqlite:///:memory:", "SQLite needs a file"),
    ],
)
def test_an_unusable_url_says_what_is_wrong(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Database(url)


async def test_a_block_that_raises_leaves_no_trace(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.changing() as connection:
            await DirectiveRepository(connection).add(
                Directive("L1", updated_at=NEW_YEAR), Action.CREATE, "half of a change"
            )
            raise ZeroDivisionError
    async with database.reading() as connection:
        assert await DirectiveRepository(connection).all() == ()
        assert await change_counter(connection) == 0


async def test_the_change_counter_moves_with_changes_alone(database: Database) -> None:
    async with database.writing():
        pass
    async with database.changing():
        pass
    async with database.reading() as connection:
        assert await change_counter(connection) == 1


async def test_changes_exclude_one_another_from_the_first_read_on(database: Database) -> None:
    """Read, decide, write, without another in between: otherwise two would add the same revision."""
    seen: list[int] = []

    async def add() -> None:
        async with database.changing() as connection:
            directives = DirectiveRepository(connection)
            revision = await directives.last_revision("L1") + 1
            await asyncio.sleep(0)
            await directives.add(Directive("L1", revision=revision, updated_at=NEW_YEAR), Action.UPDATE, "")
            seen.append(revision)

    await asyncio.gather(*(add() for _ in range(8)))
    assert seen == list(range(1, 9))


async def test_a_reader_sees_one_state_throughout(database: Database) -> None:
    async with database.reading() as reader:
        before = await change_counter(reader)
        async with database.changing():
            pass
        assert await change_counter(reader) == before
    async with database.reading() as reader:
        assert await change_counter(reader) == before + 1


async def test_a_moment_comes_back_as_the_same_moment_in_utc(database: Database) -> None:
    elsewhere = NEW_YEAR.astimezone(timezone(timedelta(hours=5, minutes=30)))
    async with database.changing() as connection:
        await DirectiveRepository(connection).add(Directive("L1", updated_at=elsewhere), Action.CREATE, "")
    async with database.reading() as connection:
        found = await DirectiveRepository(connection).get("L1")
    assert found is not None
    assert found.updated_at == NEW_YEAR
    assert found.updated_at.tzinfo is UTC


async def test_a_naive_moment_is_refused(database: Database) -> None:
    with pytest.raises(exc.StatementError, match="must carry a time zone"):
        async with database.changing() as connection:
            await DirectiveRepository(connection).add(
                Directive("L1", updated_at=datetime(2026, 1, 1)),
                Action.CREATE,
                "",
            )


async def test_sqlite_is_set_up_for_more_than_one_connection(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/folder/pith.db")
    await database.open()
    async with database.reading() as connection:
        settings = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        ]
    assert settings == ["wal", 1, 5000, 1]
    await database.close()


async def test_a_new_sqlite_database_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        database = Database(f"sqlite:///{tmp_path}/new/pith.db")
        await database.open()
        async with database.changing():
            files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()}
        await database.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert files == {"pith.db": 0o600, "pith.db-wal": 0o600, "pith.db-shm": 0o600}


async def test_a_sqlite_writer_has_the_lock_before_it_reads(tmp_path: Path) -> None:
    """One that took it only when it writes would fail at once where another had written since, whatever the timeout."""
    database = Database(f"sqlite:///{tmp_path}/pith.db")
    await database.open()
    other = sqlite3.connect(tmp_path / "pith.db", timeout=0)
    async with database.writing():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")
    other.close()
    await database.close()


async def test_a_writer_that_is_cancelled_leaves_no_lock(tmp_path: Path) -> None:
    """Wherever that is: in a statement that returns rows too, and though its error, with all its frames, is kept."""
    database = Database(f"sqlite:///{tmp_path / 'router.db'}")
    await database.open()
    async with database.writing() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))

    async def write(begun: asyncio.Event) -> None:
        async with database.writing() as connection:
            begun.set()
            while True:
                await connection.execute(text("INSERT INTO t VALUES (1), (2), (3) RETURNING a"))

    ended = []
    for steps in range(100):
        begun = asyncio.Event()
        task = asyncio.create_task(write(begun))
        await begun.wait()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        ended += await asyncio.gather(task, return_exceptions=True)
        with sqlite3.connect(tmp_path / "router.db", timeout=0, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        other.close()
    assert any(isinstance(one, asyncio.CancelledError) for one in ended)
    await database.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "pith.db"
    file.write_bytes(b"no database at all, though long enough to look for a header in it" * 100)
    with pytest.raises(StoreUnavailable) as caught:
        await Database(f"sqlite:///{file}").open()
    assert "not a database" in caught.value.fault
    assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "DATABASE")
    assert caught.value.retry_after_seconds is not None


async def test_a_locked_database_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.store.database.BUSY_TIMEOUT_SECONDS", 0)
    database = Database(f"sqlite:///{tmp_path}/pith.db")
    await database.open()
    hog = sqlite3.connect(tmp_path / "pith.db")
    hog.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="database is locked"):
        async with database.writing():
            pytest.fail("the lock was not ours")
    hog.rollback()
    hog.close()
    async with database.writing():
        pass
    await database.close()


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"needs the package psycopg \(extra postgres\)"):
        Database("postgresql://host/pith")


def test_a_machine_without_postgresql_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no initdb"):
        unavailable(PostgresUnavailableError("no initdb"))
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no initdb"):
        unavailable(PostgresUnavailableError("no initdb"))


async def test_no_server_is_unavailable(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the driver is not installed (extra postgres)")
    database = Database(f"postgresql:///pith?host={tmp_path}&user=pith")
    with pytest.raises(StoreUnavailable):
        await database.open()
    with pytest.raises(StoreUnavailable):
        async with database.reading():
            pytest.fail("there is no server")
    await database.close()
