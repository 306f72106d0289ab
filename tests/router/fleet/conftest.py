"""Engines and a fleet that ends with the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from common.clock import ManualClock
from router.fleet.breaker import Breaker
from router.fleet.engines import Engines
from tests.router.fake_engine import FakeEngine


class Fleet:
    """`engines` over fake ones named a, b, c, ..."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engines = Engines({}, self.clock)
        self._stack = AsyncExitStack()
        self._changed = asyncio.Event()

    async def start(self, *fakes: FakeEngine, make_breaker: Callable[[], Breaker] = Breaker, **options: Any) -> Engines:
        """Returns once all are ready."""
        for fake in fakes:
            await fake.start()
            self._stack.push_async_callback(fake.stop)
        self.engines = Engines(
            dict(zip("abcdef", (fake.address for fake in fakes), strict=False)),
            self.clock,
            make_breaker=make_breaker,
            on_change=self._changed.set,
            first_backoff_seconds=0.001,
            max_backoff_seconds=0.01,
            **options,
        )
        self.engines.start()
        self._stack.push_async_callback(self.engines.close)
        await self.until(lambda: self.engines.ready == len(fakes))
        return self.engines

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns once it holds, looked at after each report or loss."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    yield fleet
    await fleet.close()
