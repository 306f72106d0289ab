"""An engine that does sums, and a place for what is started."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.integration.evaluators.evaluating import Arithmetic
from tests.router.fake_engine import FakeEngine


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def arithmetic() -> Arithmetic:
    return Arithmetic()


@pytest.fixture
async def engine(arithmetic: Arithmetic) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(arithmetic.__call__)
    engine.load.max_running = 64
    await engine.start()
    yield engine
    arithmetic.go.set()
    await engine.stop()
