"""A PostgreSQL server of the tests' own: it listens on a socket in a folder of its own, and trusts whoever finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from router.store import migrate

DATABASES = ("sqlite", "postgresql")

on_both_databases = pytest.mark.parametrize("database_url", DATABASES, indirect=True)
"""Has a test run on SQLite and on PostgreSQL, by the fixture `database_url`."""

# Nothing here has to survive a power cut, but what was committed a crash of the server.
OPTIONS = "-c fsync=off -c full_page_writes=off -c max_connections=200 -c shared_buffers=32MB"


class PostgresUnavailableError(Exception):
    """This machine has no server; says why."""


class PostgresServer:
    """A server that a test can stop and start again.

    Args:
        programs: Folder of initdb and pg_ctl.
        home: Empty folder; its path must be short, since a socket's name is.
        as_user: Command that runs another one as a user who is not root.
    """

    def __init__(self, programs: Path, home: Path, as_user: tuple[str, ...]) -> None:
        self._programs = programs
        self._home = home
        self._as_user = as_user
        self._template = ""
        self._run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self._home} {OPTIONS}"
        self._run("pg_ctl", "start", "-w", "-l", str(self._home / "log"), "-o", options)

    def stop(self) -> None:
        """As if it had crashed: every connection breaks off, and the next start recovers."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def url(self, database: str) -> str:
        return f"postgresql:///{database}?host={self._home}&user=postgres"

    def create(self, template: str = "template0") -> str:
        """URL of a new database, without any table."""
        name = f"pith_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def create_migrated(self) -> str:
        """URL of a new database with the newest schema; copied, which is much faster than migrating."""
        if not self._template:
            url = make_url(self.create())
            migrate.upgrade(url.set(drivername="postgresql+psycopg"))
            self._template = url.database or ""
        return self.create(self._template)

    def drop(self, url: str) -> None:
        self._execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self._home), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), "-D", str(self._home / "data"), *arguments]
        done = subprocess.run(command, cwd=self._home, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            log = self._home / "log"
            said = done.stderr.strip() or (log.read_text() if log.exists() else "")
            raise PostgresUnavailableError(f"{program} fails: {said[-500:]}")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Raises PostgresUnavailableError where this machine has none."""
    programs = _programs()
    if programs is None:
        raise PostgresUnavailableError("no PostgreSQL server on this machine (initdb not found)")
    as_user: tuple[str, ...] = ()
    if os.getuid() == 0:
        if not shutil.which("runuser") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            raise PostgresUnavailableError(
                "a PostgreSQL server does not run as root, and there is no user postgres to run it as"
            )
        as_user = ("runuser", "-u", "postgres", "--")
    with tempfile.TemporaryDirectory(prefix="pith-postgres-") as folder:
        home = Path(folder)
        if as_user:
            shutil.chown(home, "postgres")
        server = PostgresServer(programs, home, as_user)
        try:
            yield server
        finally:
            try:
                server.stop()
            except PostgresUnavailableError as stopped:
                assert "not running" in str(stopped) or "PID file" in str(stopped), stopped


def unavailable(reason: PostgresUnavailableError) -> None:
    """A machine that tests for others must test all of it."""
    if os.environ.get("CI"):
        pytest.fail(str(reason))
    pytest.skip(str(reason))


def _programs() -> Path | None:
    found = shutil.which("pg_ctl")
    beside = [Path(found).resolve().parent, Path(found).parent] if found else []
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return next((path for path in (*versions, *beside) if (path / "initdb").exists()), None)
