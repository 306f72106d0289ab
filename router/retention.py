"""How long text is kept: samples and comments for a set time, those of a tenant until it wants them erased."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from common.clock import Clock
from router.store.database import Database, StoreUnavailable
from router.store.erasure import ErasureRepository

BATCH = 500
"""Rows a transaction, so that who serves and who writes the ledger never waits long."""
SWEEP_SECONDS = 3600.0
"""Between two looks for what has become too old, on the service's clock."""

log = structlog.get_logger("retention")


@dataclass(frozen=True, slots=True)
class Erased:
    """Of how many the text is gone."""

    samples: int
    comments: int


async def erase(database: Database, before: datetime, now: datetime, tenant: str | None = None) -> Erased:
    """Erases text from before a moment, of one tenant or of all, a batch a transaction.

    Raises:
        StoreUnavailable: what was done until then stays done; the same again does the rest.
    """
    samples = comments = 0
    while True:
        async with database.writing() as connection:
            erasures = ErasureRepository(connection)
            of_samples = await erasures.erase_samples(before, now, BATCH, tenant)
            of_comments = await erasures.erase_comments(before, BATCH, tenant)
        samples, comments = samples + of_samples, comments + of_comments
        if max(of_samples, of_comments) < BATCH:
            if samples or comments:
                await database.forget_erased()
            return Erased(samples, comments)


class Retention:
    """Erases in the background what is older than it may be. Every router does; it is harmless when repeated.

    Args:
        keep_for: Age of text from which on it is erased; None keeps it for ever.
    """

    def __init__(self, database: Database, clock: Clock, keep_for: timedelta | None) -> None:
        self._database = database
        self._clock = clock
        self._keep_for = keep_for
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def sweep(self) -> Erased:
        """Erases what is due now. Raises StoreUnavailable."""
        now = self._clock.now()
        async with self._database.reading() as connection:
            # Of a tenant's erasure, what its router had left undone when it died.
            due: list[tuple[str | None, datetime]] = [*(await ErasureRepository(connection).all()).items()]
        if self._keep_for is not None:
            due.append((None, now - self._keep_for))
        done = [await erase(self._database, before, now, tenant) for tenant, before in due]
        erased = Erased(sum(one.samples for one in done), sum(one.comments for one in done))
        if erased != Erased(0, 0):
            log.info("erased", samples=erased.samples, comments=erased.comments)
        return erased

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.warning("text is kept for longer: the database is down", fault=error.fault)
            except Exception:
                # Whatever it was: the next sweep must come.
                log.exception("text could not be erased")
            await self._clock.sleep(SWEEP_SECONDS)
