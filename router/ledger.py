"""The ledger: what every request used and why it was served as it was."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import structlog

from common.carbon.intensity import Intensity
from common.energy.reading import Energy
from common.errors import PithError
from router.backoff import backoff_seconds
from router.outbox import Outbox
from router.samples import Sample

BATCH = 500
"""Records a transaction."""

log = structlog.get_logger("ledger")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One served request; unique by (tenant, request_id), which is what makes billing exactly-once."""

    tenant: str
    request_id: str
    task: str
    model: str
    """Name and digest, as cells have it."""
    directive: str
    directive_revision: int
    reason: str
    """`Reason.value`."""
    planned: str
    policy: str
    policy_revision: int
    eligible: bool
    """Part of the population that the counterfactual speaks of."""
    evaluation_sample_id: str
    """Set where an evaluator asked for the answer: then the product pays, not the tenant."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    energy: Energy | None
    busy_seconds: float
    operational_grams: float | None
    embodied_grams: float | None
    intensity: Intensity | None
    engine: str
    """That began the answer."""
    seed: int
    finish_reason: str
    started_at: datetime
    """When the request arrived, on the router's clock."""
    seconds: float
    """From arrival to the last token, on the router's clock."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one request leaves behind."""

    entry: LedgerEntry
    sample: Sample | None = None


Write = Callable[[Sequence[Record]], Awaitable[None]]
"""Writes records in one transaction; one that is there already is left as it is. Raises PithError UNAVAILABLE while the
database does not answer, and anything else for a record that it cannot take."""


class Ledger:
    """Takes records at once and writes them in the background, a batch a transaction.

    While the database does not answer they wait in memory, beyond `max_waiting` and at the end in the outbox, which is
    written out first when it answers again. The ledger's key makes the outcome exactly-once, whatever is written twice.

    Args:
        linger_seconds: Wall time for which a batch is gathered: a transaction costs far more than a record in it.
        max_waiting: Records in memory from which on they go to the outbox. Where that cannot be written either, ten
            times as many may wait; what comes beyond that is lost, counted and logged.
        first_backoff_seconds, max_backoff_seconds: Wall time between attempts while the database is away.
    """

    def __init__(
        self,
        write: Write,
        outbox: Path,
        *,
        linger_seconds: float = 0.02,
        max_waiting: int = 5_000,
        first_backoff_seconds: float = 0.2,
        max_backoff_seconds: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        self._write = write
        self._outbox = Outbox(outbox, Record)
        self._rejected = Outbox(outbox.with_suffix(".rejected"), Record)
        self._linger_seconds = linger_seconds
        self._max_waiting = max_waiting
        self._first_backoff_seconds = first_backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._rng = rng or random.Random()
        self._waiting: deque[Record] = deque()
        self._spilled = True  # something may lie there from an earlier run
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.lost = 0
        """Records that neither the database nor the disk nor memory could hold."""

    @property
    def waiting(self) -> int:
        """Records in memory."""
        return len(self._waiting)

    def record(self, entry: LedgerEntry, sample: Sample | None = None) -> None:
        """Takes one request's record. Does no I/O and cannot fail: requests go on whatever becomes of the database."""
        if len(self._waiting) >= 10 * self._max_waiting:
            self.lost += 1
            log.error("record lost: no database, no disk, memory full", lost=self.lost)
            return
        self._waiting.append(Record(entry, sample))
        self._wake.set()

    def start(self) -> None:
        """Begins to write; what an earlier run has left in the outbox comes first."""
        self._wake.set()
        self._task = asyncio.create_task(self._run(), name="ledger")

    async def flush(self) -> bool:
        """Puts all records so far where they survive a crash; True where that is the database, False the outbox."""
        async with self._writing:
            try:
                await self._write_out()
                return True
            except PithError as error:
                log.warning("database away", fault=str(error), waiting=len(self._waiting))
                await self._spill()
                return False

    async def close(self) -> None:
        """Stops writing in the background and flushes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

    async def _run(self) -> None:
        failures = 0
        while True:
            if failures == 0:
                await self._wake.wait()
                await asyncio.sleep(self._linger_seconds)
            self._wake.clear()
            try:
                async with self._writing:
                    await self._write_out()
                if failures:
                    log.info("database back", failures=failures)
                failures = 0
            except PithError as error:
                failures += 1
                log.warning("database away", fault=str(error), waiting=len(self._waiting), failures=failures)
                async with self._writing:
                    if len(self._waiting) >= self._max_waiting:
                        await self._spill()
                pause = backoff_seconds(failures, self._first_backoff_seconds, self._max_backoff_seconds, self._rng)
                await asyncio.sleep(pause)

    async def _write_out(self) -> None:
        """Writes the outbox, then what waits in memory. Raises PithError while the database is away."""
        if self._spilled:
            await self._write_outbox()
        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            await self._write_batch(batch)
            for _ in batch:
                self._waiting.popleft()

    async def _write_outbox(self) -> None:
        try:
            batches = self._outbox.read(BATCH)
            while batch := await asyncio.to_thread(next, batches, None):
                await self._write_batch(batch)
            await asyncio.to_thread(self._outbox.clear)
        except OSError as error:
            # Left for the next attempt: a disk at fault must not keep from the database what waits in memory.
            log.error("outbox cannot be read", fault=str(error))
            return
        self._spilled = False

    async def _write_batch(self, batch: Sequence[Record]) -> None:
        try:
            await self._write(batch)
        except PithError:
            raise
        except Exception:
            # One record that the database will never take must hold back no other.
            if len(batch) > 1:
                for record in batch:
                    await self._write_batch([record])
                return
            log.exception("record rejected", tenant=batch[0].entry.tenant, request=batch[0].entry.request_id)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._rejected.append, batch)

    async def _spill(self) -> None:
        """Moves what waits in memory to the outbox; where that fails it stays."""
        batch = list(self._waiting)
        if not batch:
            return
        try:
            await asyncio.to_thread(self._outbox.append, batch)
        except OSError as error:
            log.error("outbox cannot be written", fault=str(error), waiting=len(batch))
            return
        self._spilled = True
        for _ in batch:
            self._waiting.popleft()
