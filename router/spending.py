"""What each policy's requests have emitted today, over all routers: what carbon budgets are held against."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

import structlog

from common.carbon.hours import day_start
from common.carbon.intensity import Signal
from common.clock import Clock
from router.ledger import LedgerEntry
from router.store.database import Database, StoreUnavailable
from router.store.spending import SpendingRepository

POLL_SECONDS = 1.0
"""Wall time; what one router has spent, the others know within 5 s."""

log = structlog.get_logger("spending")

PolicyDay = tuple[str, datetime, Signal]
"""A policy, the first moment of a day (UTC), and what the grams count."""


def grams_of(entry: LedgerEntry) -> float:
    """What an entry counts against its policy's budget: 0 where its carbon is unknown, where no policy decided, and for
    what a caller tells of an engine of its own, which nobody can check and which others may share the budget with."""
    if not entry.policy or not entry.engine or entry.operational_grams is None or entry.intensity is None:
        return 0.0
    return entry.operational_grams + (entry.embodied_grams or 0.0)


class Spending:
    """Grams by policy for the present day (UTC, by the service's clock): the database's, which all routers add to, and
    what this router has settled since. A request counts for the day in which it arrived, once it is answered: those in
    flight, whose carbon nobody knows yet, are how far a budget can be overdrawn. What energy is not known of is not
    counted.

    On a day on which the router's signal changes, the grams under each are counted apart, and the most under any one is
    what is spent: a budget that was reached stays so.

    While the database is away, what it last said stands, and this router's own count goes on.

    Args:
        poll_seconds: Wall time between two looks at the database.
    """

    def __init__(self, database: Database, clock: Clock, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._recorded: dict[PolicyDay, float] = {}
        self._unwritten: defaultdict[PolicyDay, float] = defaultdict(float)
        self._written: defaultdict[PolicyDay, float] = defaultdict(float)
        """Written since the database was last asked."""
        self._signals: frozenset[Signal] = frozenset()
        self._began_at = clock.now()
        self._stale = False
        self._polling: asyncio.Task[None] | None = None

    def today(self, policy: str) -> float:
        """gCO2eq of the policy's requests so far today."""
        day = day_start(self._clock.now())
        return max((self._of((policy, day, signal)) for signal in self._signals), default=0.0)

    def settled(self, entry: LedgerEntry) -> None:
        """Counts a request that this router is about to write down."""
        if (key := self._key(entry)) is not None:
            self._signals |= {key[2]}
            self._unwritten[key] += grams_of(entry)

    def written(self, entries: Iterable[LedgerEntry]) -> None:
        """They are in the database."""
        for entry in entries:
            if (key := self._key(entry)) is not None:
                grams = grams_of(entry)
                left = self._unwritten.pop(key, 0.0) - grams
                # An entry that was written twice is taken off twice; what is left then heals once all are written.
                if left > 0 and not math.isclose(left, 0.0, abs_tol=1e-12):
                    self._unwritten[key] = left
                self._written[key] += grams

    async def start(self) -> None:
        """Asks the database, then polls until `close`."""
        await self.refresh()
        self._polling = asyncio.create_task(self._poll(), name="spending")

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait({self._polling})

    async def refresh(self) -> None:
        """Takes in what all routers have written; never raises for an outage of the database."""
        # What is written from here on may be in the answer as well: it counts twice until the next look, not never.
        before, self._written = self._written, defaultdict(float)
        day = day_start(self._clock.now())
        try:
            async with self._database.reading() as connection:
                grams = await SpendingRepository(connection).of_day(day)
        except BaseException as error:
            for key, more in before.items():
                self._written[key] += more
            if not isinstance(error, StoreUnavailable):
                raise
            if not self._stale:
                log.warning("database is down; carbon budgets go on by this router's own count", fault=error.fault)
            self._stale = True
            return
        self._stale = False
        self._recorded = {(policy, day, signal): spent for (policy, signal), spent in grams.items()}
        self._signals |= {signal for _, signal in grams}

    def _of(self, key: PolicyDay) -> float:
        return self._recorded.get(key, 0.0) + self._unwritten.get(key, 0.0) + self._written.get(key, 0.0)

    def _key(self, entry: LedgerEntry) -> PolicyDay | None:
        """None for an entry that is not counted."""
        # What an earlier run left in the outbox was never counted as settled here, so it is not taken off either.
        if entry.intensity is None or entry.started_at < self._began_at or grams_of(entry) <= 0:
            return None
        return entry.policy, day_start(entry.started_at), entry.intensity.signal

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.refresh()
            except Exception:
                log.exception("spending could not be refreshed")
