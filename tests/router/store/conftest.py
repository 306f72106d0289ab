"""Every test of the store runs on both databases."""

from collections.abc import AsyncIterator

import pytest

from router.store.database import Database
from tests.postgres import DATABASES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in {"database_url", "empty_database_url"} & set(metafunc.fixturenames):
        metafunc.parametrize(name, DATABASES, indirect=True)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()
