"""Databases for every test that needs one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # The kernels' tests run on machines that have no driver for a database.
    from tests.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests, each of which has a database of its own. Absent: fails where CI is set, else skips."""
    from tests.postgres import PostgresUnavailableError, postgres_server, unavailable

    try:
        with postgres_server() as server:
            yield server
    except PostgresUnavailableError as reason:
        unavailable(reason)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the newest schema, or a SQLite file that is yet to be made; see `on_both_databases`."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/router.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_migrated()
    yield url
    server.drop(url)


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create()
    yield url
    server.drop(url)
