"""Time as a parameter: the same code runs on wall time, on a simulated day, and under a test's hand."""

import asyncio
import heapq
import itertools
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What Pith asks of time. One second of `monotonic` and `sleep` is one second of `now`.

    Deadlines, latencies and keepalive belong to the network and stay on wall time: they never use a Clock.
    """

    def now(self) -> datetime:
        """The present moment, timezone-aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns once `seconds` have passed on this clock; at once (after other tasks ran) if <= 0."""
        ...


class SystemClock:
    """Wall time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ScaledClock:
    """Simulated time: `start + (wall - anchor) * factor`.

    Processes given the same three values agree on the simulated moment without talking to one another.

    Args:
        start: simulated moment, timezone-aware.
        factor: simulated seconds in a wall second, > 0.
        anchor: wall moment at which the simulated time is `start`, timezone-aware.
    Raises:
        ValueError: a moment without a timezone, or a factor that is not finite and > 0.
    """

    def __init__(self, start: datetime, factor: float, anchor: datetime) -> None:
        if start.tzinfo is None or anchor.tzinfo is None:
            raise ValueError("start and anchor need a timezone")
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor is {factor}; it must be a finite number > 0")
        self._start = start.astimezone(UTC)
        self._factor = factor
        self._anchor = anchor.astimezone(UTC)

    def now(self) -> datetime:
        return self._start + (datetime.now(UTC) - self._anchor) * self._factor

    def monotonic(self) -> float:
        return time.monotonic() * self._factor

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._factor)


class ManualClock:
    """Time that moves only when a test says so.

    Args:
        start: the first moment, timezone-aware; by default an arbitrary fixed one.
    """

    # Turns of the event loop given to woken tasks before time moves on: enough for a chain of awaits without
    # I/O to reach its next sleep. A task that does I/O between sleeps is awaited with `asleep`.
    _TURNS = 20

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("start needs a timezone")
        self._start = start.astimezone(UTC)
        self._elapsed_seconds = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_seconds)

    def monotonic(self) -> float:
        return self._elapsed_seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_seconds + seconds, next(self._order), woken))
        self._changed.set()
        await woken

    async def advance(self, seconds: float) -> None:
        """Moves time on by `seconds` (>= 0), stopping at each sleeper's moment, in order, to let it run.

        A task that sleeps again within the span is woken again: a period of 10 s runs six times in a minute.
        """
        if seconds < 0:
            raise ValueError(f"seconds is {seconds}; time does not go backwards")
        end = self._elapsed_seconds + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heapq.heappop(self._sleepers)
            if woken.done():  # its task was cancelled
                continue
            self._elapsed_seconds = due
            woken.set_result(None)
            await self._settle()
        self._elapsed_seconds = end

    async def asleep(self, tasks: int = 1) -> None:
        """Returns once at least `tasks` tasks sleep on this clock."""
        while sum(not woken.done() for _, _, woken in self._sleepers) < tasks:
            self._changed.clear()
            await self._changed.wait()

    async def _settle(self) -> None:
        for _ in range(self._TURNS):
            await asyncio.sleep(0)


def clock_from_spec(spec: str | None) -> Clock:
    """The clock that the environment variable PITH_CLOCK asks for.

    Args:
        spec: None, "" or "system": wall time. "scaled:START:FACTOR" or "scaled:START@ANCHOR:FACTOR":
            simulated time, FACTOR simulated seconds a wall second; START is the simulated moment at the wall
            moment ANCHOR (default: now), both ISO 8601 with a timezone. Several processes agree only when
            ANCHOR is given.
    Raises:
        ValueError: names the part that is wrong.
    """
    if spec is None or spec in ("", "system"):
        return SystemClock()
    kind, _, rest = spec.partition(":")
    if kind != "scaled":
        raise ValueError(f"clock {spec!r}: must be 'system' or 'scaled:START[@ANCHOR]:FACTOR'")
    moments, _, factor_text = rest.rpartition(":")
    start_text, at, anchor_text = moments.partition("@")
    start = _moment(spec, "START", start_text)
    anchor = _moment(spec, "ANCHOR", anchor_text) if at else datetime.now(UTC)
    try:
        return ScaledClock(start, float(factor_text), anchor)
    except ValueError as error:
        raise ValueError(f"clock {spec!r}: FACTOR {factor_text!r} must be a finite number > 0") from error


def _moment(spec: str, name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"clock {spec!r}: {name} {text!r} is not an ISO 8601 time") from error
    if moment.tzinfo is None:
        # Without this, a forgotten FACTOR would be read from the seconds of START.
        raise ValueError(f"clock {spec!r}: {name} {text!r} has no timezone; add Z for UTC")
    return moment
