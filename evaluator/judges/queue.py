"""Who waits for the judge: few, so that a slow judge costs samples and not memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from common.metrics import Metrics
from evaluator.judges.judge_model import Failure, JudgeError


class JudgeQueue:
    """Lets so many in at a time and so many more wait; whoever comes then is turned away, and counted.

    Args:
        concurrency: how many are inside at most.
        length: how many wait at most.
    """

    def __init__(self, concurrency: int, length: int, metrics: Metrics) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._length = length
        self._waiting = 0
        self._depth = metrics.gauge("judge_queue", "Comparisons that wait for the judge.", unit="samples")
        self._dropped = metrics.counter(
            "judge_queue_dropped", "Comparisons turned away because too many waited.", unit="samples"
        )

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Within it the caller has the judge. Raises JudgeError where too many wait already."""
        if self._slots.locked() and self._waiting >= self._length:
            self._dropped.inc()
            raise JudgeError(Failure.QUEUE, f"{self._length:,} comparisons wait for the judge already")
        self._waiting += 1
        self._depth.set(self._waiting)
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
            self._depth.set(self._waiting)
        try:
            yield
        finally:
            self._slots.release()
