"""A live source as an intensity provider: polled in the background, answered from memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from common.carbon.csv_intensity import EXPIRES_AFTER_SECONDS
from common.carbon.hours import HOUR, YEAR, hour_start
from common.carbon.intensity import Intensity, IntensityProvider, Signal
from common.carbon.observation_file import ObservationFile
from common.carbon.observations import Observation, Observations
from common.carbon.source import Source, SourceError
from common.clock import Clock

PUBLISHED_AFTER_SECONDS = 60.0
"""Into an hour: when its value is asked for."""
LATE_SECONDS = 300.0
"""Between two looks for the present hour's value, where it was not there yet."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 30.0, 900.0
"""After a fault; doubled from the first to the last. A source that asks for longer is given that."""
PATIENCE_SECONDS = 3.0
"""Wall time that a start waits for the first answer."""
REVISED_WITHIN = timedelta(days=1)
"""How long a published value is looked at again: estimates give way to what was metered."""

log = structlog.get_logger("carbon")


class PolledIntensity:
    """Hourly values of a source, fetched about once an hour; `current` and `history` only read memory.

    While the source is away, what it last said stays in force, and its observed_at shows the age. From
    expires_after_seconds on, the mean of the last year's observations takes over, whose source says so: of the same
    zone and signal. Only where nothing was ever seen, or nothing before the moment that is asked for, the fallback
    answers, under its own zone and signal, so that grams of one signal are never passed off as another's.

    An outage, which is a source that fails or has had nothing new for expires_after_seconds, is worth two lines in the
    log: one when it begins and one when it ends.

    Args:
        fallback: Any provider that never fails.
        clock: Real time, or a test's: simulated time has no live grid.
        kept: Where observations survive a restart.

    Attributes:
        polls: How often the source was asked, by what came of it: "ok" or a Failure.
        outages: How many have begun.
    """

    def __init__(
        self,
        source: Source,
        fallback: IntensityProvider,
        clock: Clock,
        *,
        expires_after_seconds: float = EXPIRES_AFTER_SECONDS,
        kept: ObservationFile | None = None,
    ) -> None:
        self._source = source
        self._fallback = fallback
        self._clock = clock
        self._expires_after = timedelta(seconds=expires_after_seconds)
        self._kept = kept
        self._observations = Observations()
        self._fault = "not asked yet"
        self._failures = 0
        """In a row."""
        self._retry_after_seconds = 0.0
        self._away_since: datetime | None = None
        self._asked = asyncio.Event()
        """Once the first answer or fault is there."""
        self._polling: asyncio.Task[None] | None = None
        self.polls: Counter[str] = Counter()
        self.outages = 0

    @property
    def fault(self) -> str:
        return self._fault

    @property
    def signal(self) -> Signal:
        """Of the source; the fallback's may be another."""
        return self._source.signal

    def current(self, now: datetime) -> Intensity:
        # Once, as the poller may put others in their place; they themselves never change.
        observations = self._observations
        last = observations.last(now)
        if last is None:
            return self._fallback.current(now)
        source, signal = self._source, self._source.signal
        if now - last.start > self._expires_after:
            value, name = observations.year_mean(last), f"{source.name}, mean of what was seen in the last year"
        else:
            value, name = last.g_per_kwh, f"{source.name}, estimated" if last.estimated else source.name
        return Intensity(value, source.zone, signal.kind, signal.scope, last.start, name)

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        return self._observations.history(now, hours)

    async def start(self) -> None:
        """Takes in what was kept, then polls until `close`. Where nothing kept is in force, this waits a little for the
        source's first answer; that it is away is no reason not to start."""
        if self._kept is not None:
            self._take(await asyncio.to_thread(self._kept.read))
        self._polling = asyncio.create_task(self._poll(), name="intensity")
        if self._expired(self._clock.now()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), PATIENCE_SECONDS)

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait({self._polling})
        await self._source.close()

    async def poll(self) -> None:
        """Asks the source once; never raises for what it does."""
        now = self._clock.now()
        last = self._observations.last(now)
        since = hour_start(now - YEAR if last is None else last.start - REVISED_WITHIN)
        try:
            found = await self._source.fetch(now, since)
            self._take(found)
            if self._expired(now):
                raise SourceError("stale", "it answers, with nothing new")
        except SourceError as fault:
            self._failed(now, fault)
            return
        except Exception as error:
            # Its text may quote what was sent, the token too.
            self._failed(now, SourceError("failed", f"unexpected {type(error).__name__}"))
            return
        self._succeeded(now)
        if self._kept is not None and found:
            await asyncio.to_thread(self._kept.write, self._observations)

    async def _poll(self) -> None:
        while True:
            await self.poll()
            self._asked.set()
            await self._clock.sleep(self._wait_seconds())

    def _expired(self, now: datetime) -> bool:
        last = self._observations.last(now)
        return last is None or now - last.start > self._expires_after

    def _take(self, found: Sequence[Observation]) -> None:
        now = self._clock.now()
        known = [one for one in found if one.start <= now]
        self._observations = self._observations.updated(known, now - YEAR)

    def _wait_seconds(self) -> float:
        if self._failures:
            backoff = FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 16)
            return max(min(backoff, LAST_RETRY_SECONDS), self._retry_after_seconds)
        now = self._clock.now()
        hour = hour_start(now)
        due = (hour + HOUR - now).total_seconds() + PUBLISHED_AFTER_SECONDS
        last = self._observations.last(now)
        return due if last is not None and last.start >= hour else min(due, LATE_SECONDS)

    def _failed(self, now: datetime, fault: SourceError) -> None:
        self.polls[fault.failure] += 1
        self._failures += 1
        self._retry_after_seconds = fault.retry_after_seconds
        self._fault = str(fault)
        if self._away_since is None:
            self._away_since = now
            self.outages += 1
            stands, last = self.current(now), self._observations.last(now)
            log.warning(
                "no fresh carbon intensity",
                source=self._source.name,
                zone=self._source.zone,
                fault=self._fault,
                in_force=f"{stands.g_per_kwh:.0f} g/kWh in {stands.zone} ({stands.source})",
                last_seen=None if last is None else last.start.isoformat(),
            )

    def _succeeded(self, now: datetime) -> None:
        self.polls["ok"] += 1
        self._failures = 0
        self._retry_after_seconds = 0.0
        self._fault = ""
        if self._away_since is not None:
            log.info(
                "carbon intensity is fresh again",
                source=self._source.name,
                zone=self._source.zone,
                away_seconds=round((now - self._away_since).total_seconds()),
            )
            self._away_since = None
