"""Every test of the store runs on both databases: SQLite in a file, PostgreSQL in a server of its own."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from router.store.database import Database


def _server_programs() -> Path | None:
    found = shutil.which("pg_ctl")
    beside = [Path(found).parent] if found else []
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in (*versions, *beside) if (path / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Query part of a URL that reaches the server, as user postgres."""
    pytest.importorskip("psycopg", reason="the driver is not installed (extra postgres)")
    programs = _server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (initdb not found)")
    as_user: list[str] = []
    if os.getuid() == 0:
        if not shutil.which("runuser") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("a PostgreSQL server does not run as root, and there is no user postgres to run it as")
        as_user = ["runuser", "-u", "postgres", "--"]
    with tempfile.TemporaryDirectory(prefix="pith-postgres-") as directory:
        home, data = Path(directory), Path(directory, "data")
        if as_user:
            shutil.chown(home, "postgres")

        def run(program: str, *arguments: str) -> None:
            command = [*as_user, str(programs / program), *arguments]
            done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60)
            if done.returncode:
                pytest.skip(f"the PostgreSQL server cannot be started: {done.stderr.strip()[-300:]}")

        run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={home} -c fsync=off -c max_connections=200"
        run("pg_ctl", "start", "-w", "-D", str(data), "-l", str(home / "log"), "-o", options)
        try:
            yield f"host={home}&user=postgres"
        finally:
            run("pg_ctl", "stop", "-w", "-D", str(data), "-m", "immediate")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/pith.db"
    server = request.getfixturevalue("postgres_server")
    name = f"pith_{uuid.uuid4().hex}"
    host = server.split("&")[0].removeprefix("host=")
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(host=host, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql:///{name}?{server}"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.open()
    yield database
    await database.close()
