"""Engines and a fleet that ends with the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2

from common.clock import ManualClock
from common.metrics import Metrics
from router.fleet.breaker import Breaker
from router.fleet.dispatch import Dispatcher, Event, Prepare
from router.fleet.engine import Engine
from router.fleet.engines import Engines
from tests.router.fake_engine import FakeEngine

FOREVER = 3600.0


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


def request(engine: Engine, _tried: Collection[str]) -> tuple[Engine, inference_pb2.GenerateRequest]:
    return engine, inference_pb2.GenerateRequest(text="Hi", sampling=text_pb2.Sampling(seed=7))


def dispatch(
    engines: Engines,
    stall_seconds: float = FOREVER,
    relayed: list[bytes] | None = None,
    timeout_seconds: float | None = None,
    metrics: Metrics | None = None,
    prepare: Prepare = request,
) -> AsyncGenerator[Event]:
    """One answer."""
    dispatcher = Dispatcher(engines, stall_seconds, metrics or Metrics("router"))
    return dispatcher.stream("", prepare, lambda: timeout_seconds, [] if relayed is None else relayed)


async def collect(
    engines: Engines,
    *,
    stall_seconds: float = FOREVER,
    timeout_seconds: float | None = None,
    metrics: Metrics | None = None,
    prepare: Prepare = request,
    into: list[Event] | None = None,
) -> list[Event]:
    """The events of one answer."""
    events = [] if into is None else into
    relayed: list[bytes] = []
    async with aclosing(dispatch(engines, stall_seconds, relayed, timeout_seconds, metrics, prepare)) as stream:
        async for event in stream:
            events.append(event)
            assert relayed == [delta for delta in events if isinstance(delta, bytes)]
    return events


def sticky(faults: int = 1) -> Callable[[], Breaker]:
    """A breaker that opens after so many faults and stays open."""
    return lambda: Breaker(faults, FOREVER)
