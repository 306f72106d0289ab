"""The ledger: what every request used and why it was served as it was."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import structlog
from pydantic import TypeAdapter

from common.carbon.intensity import Intensity
from common.config import MEBIBYTE
from common.energy.reading import Energy
from common.errors import PithError
from router.backoff import backoff_seconds
from router.outbox import Outbox, append_whole
from router.samples import Sample

BATCH = 500
"""Records a transaction."""

_RECORD_BYTES = 2_000

CLOSE_SECONDS = 5.0
"""Wall time that the database has to take what is left when a router stops."""

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
    """That began the answer; empty for one of the caller's own."""
    seed: int | None
    finish_reason: str
    started_at: datetime
    """When the request arrived, on the router's clock."""
    seconds: float
    """From arrival to the last token, on the router's clock."""
    pue: float | None = None
    """Of the building, by which the operational grams were counted; None where carbon is unknown, and in lines of the
    outbox that versions before it wrote."""


@dataclass(frozen=True, slots=True)
class Rating:
    """What a user thought of an answer."""

    tenant: str
    request_id: str
    rating: float
    """In [0, 1]."""
    comment: str
    rated_at: datetime
    rated_by: str


@dataclass(frozen=True, slots=True)
class Served:
    """What one request leaves behind."""

    entry: LedgerEntry
    sample: Sample | None = None


Record = Served | Rating

Write = Callable[[Sequence[Record]], Awaitable[None]]
"""Writes records in one transaction, in order; harmless when repeated. Raises PithError UNAVAILABLE while the database
does not answer, and anything else for a record that it cannot take."""


class Ledger:
    """Takes records at once and writes them in the background, in order, a batch a transaction.

    From the database's first failure on, every batch goes to the outbox instead, and from there to the database once it
    answers again. Whatever is written twice counts once: a request's entry has a key, and the first one stays.

    Args:
        linger_seconds: Wall time for which a batch is gathered: a transaction costs far more than a record in it.
        patience_seconds: Wall time after which a write that goes on is taken for a failure, though it may yet succeed.
        max_waiting_bytes: Of records in memory, where they stay only while neither database nor disk takes them: some
            2 kB each, and the text of those that are samples too. What comes beyond that is lost, counted and logged.
        first_backoff_seconds, max_backoff_seconds: Wall time between attempts while the database is away.
    """

    def __init__(
        self,
        write: Write,
        outbox: Path,
        *,
        linger_seconds: float = 0.1,
        patience_seconds: float = 1.0,
        max_waiting_bytes: int = 128 * MEBIBYTE,
        first_backoff_seconds: float = 0.2,
        max_backoff_seconds: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        self._write = write
        self._adapter: TypeAdapter[Record] = TypeAdapter(Record)
        self._outbox = Outbox(outbox, self._adapter)
        self._linger_seconds = linger_seconds
        self._patience_seconds = patience_seconds
        self._max_waiting_bytes = max_waiting_bytes
        self._first_backoff_seconds = first_backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._rng = rng or random.Random()
        self._waiting: deque[Record] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._gathered = asyncio.Event()
        self._writing = asyncio.Lock()
        self._spilling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._written_out = 0
        self.lost = 0
        """Records that neither the database nor the disk nor memory could hold."""
        self.database_away = False
        """It did not answer when a record was last written."""

    @property
    def waiting(self) -> int:
        """Records in memory."""
        return len(self._waiting)

    @property
    def outbox_in_use(self) -> bool:
        """Records lie on disk, on their way to the database."""
        return self._outbox.in_use

    @property
    def outbox_files(self) -> int:
        return self._outbox.files

    @property
    def outbox_bytes(self) -> int:
        return self._outbox.bytes

    def record(self, entry: LedgerEntry, sample: Sample | None = None) -> None:
        """Takes one request's record. Does no I/O and cannot fail: requests go on whatever becomes of the database."""
        self._take(Served(entry, sample))

    def rate(self, rating: Rating) -> None:
        """Takes a rating, as `record` does; the last of a request is the one that counts."""
        self._take(rating)

    def start(self) -> None:
        """Begins to write; what an earlier run has left in the outbox comes first. Raises OutboxShared."""
        self._outbox.claim()
        self._gathered.set()
        self._tasks = [
            asyncio.create_task(self._gather(), name="ledger gathers"),
            asyncio.create_task(self._run(), name="ledger writes"),
        ]

    async def flush(self) -> bool:
        """Puts all records so far where they survive a crash; True where that is the database, False the outbox."""
        async with self._writing:
            try:
                await self._write_out()
                return True
            except PithError as error:
                log.warning("database away", fault=str(error), waiting=len(self._waiting))
                return False

    async def close(self) -> None:
        """Stops writing in the background and flushes."""
        # Not while records are on their way to the disk: they would be taken for still waiting.
        async with self._spilling:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush()
        except TimeoutError:
            await self._spill()
        self._outbox.release()
        if self._waiting:
            log.error("records lost: no database, no disk", lost=self.lost + len(self._waiting))

    def _take(self, record: Record) -> None:
        size = _size_bytes(record)
        if self._waiting_bytes + size > self._max_waiting_bytes:
            self.lost += 1
            log.error("record lost: no database, no disk, memory full", lost=self.lost)
            return
        self._waiting.append(record)
        self._waiting_bytes += size
        self._arrived.set()

    async def _gather(self) -> None:
        """Puts batches on disk while the database is away or behind, whatever the writer is waiting for."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._linger_seconds)
            self._arrived.clear()
            try:
                if self.database_away or self._outbox.in_use:
                    await self._spill()
            except Exception:
                log.exception("records stay in memory")
            self._gathered.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._gathered.wait()
            self._gathered.clear()
            try:
                async with self._writing:
                    await self._write_out()
            except Exception as error:
                # Whatever it was: without this task, no record would be written any more.
                failures += 1
                # What any other error says may quote a record.
                told = {"fault": str(error)} if isinstance(error, PithError) else {"exc_info": error}
                log.warning("database away", failures=failures, **told)
                pause = backoff_seconds(failures, self._first_backoff_seconds, self._max_backoff_seconds, self._rng)
                await asyncio.sleep(pause)
                self._gathered.set()
                continue
            failures = 0

    async def _write_out(self) -> None:
        """Writes the outbox, then what waits in memory, the oldest first. Raises PithError while the database is away,
        with the outbox holding what is left."""
        while self._outbox.in_use or self._waiting:
            segment = await asyncio.to_thread(self._outbox.oldest) if self._outbox.in_use else None
            if segment is not None:
                await self._write_batch(segment.records)
                # Before the file goes: a close between the two would otherwise never tell of these.
                self._written_out += len(segment.records)
                await asyncio.to_thread(self._outbox.remove, segment)
            else:
                batch = list(islice(self._waiting, BATCH))
                await self._write_batch(batch)
                self._drop(batch)
        if self._written_out:
            log.info("outbox written out", records=self._written_out)
            self._written_out = 0

    async def _write_batch(self, batch: Sequence[Record]) -> None:
        if not batch:
            return
        try:
            await self._write_patiently(batch)
        except PithError:
            self.database_away = True
            await self._spill()
            raise
        except Exception as error:
            # One record that the database will never take must hold back no other.
            if len(batch) > 1:
                for record in batch:
                    await self._write_batch([record])
            else:
                await self._reject(batch[0], error)
        else:
            self.database_away = False

    async def _write_patiently(self, batch: Sequence[Record]) -> None:
        writing = asyncio.ensure_future(self._write(batch))
        try:
            await asyncio.wait({writing}, timeout=self._patience_seconds)
            if not writing.done():
                self.database_away = True
                await self._spill()
            await writing
        finally:
            # To its end: what another write finds half rolled back is a database that is locked.
            writing.cancel()
            await asyncio.wait({writing})

    async def _spill(self) -> None:
        """Moves what waits in memory to the outbox; what the disk does not take stays."""
        async with self._spilling:
            while self._waiting:
                batch = list(islice(self._waiting, BATCH))
                try:
                    await asyncio.to_thread(self._outbox.append, batch)
                except OSError as error:
                    log.error("outbox cannot be written", fault=str(error), waiting=len(self._waiting))
                    return
                self._drop(batch)

    def _drop(self, batch: Sequence[Record]) -> None:
        """Forgets those of the oldest records that are in the batch: a slow write and the disk may both have them."""
        gone = set(map(id, batch))
        while self._waiting and id(self._waiting[0]) in gone:
            self._waiting_bytes -= _size_bytes(self._waiting.popleft())

    async def _reject(self, record: Record, error: Exception) -> None:
        of = record.entry if isinstance(record, Served) else record
        log.error("record rejected", tenant=of.tenant, request_id=of.request_id, exc_info=error)
        # Without its text, which nobody would erase there.
        kept = Served(record.entry) if isinstance(record, Served) else replace(record, comment="")
        line = self._adapter.dump_json(kept) + b"\n"
        try:
            await asyncio.to_thread(append_whole, self._outbox.path.with_suffix(".rejected"), line)
        except OSError as error:
            self.lost += 1
            log.error("rejected record lost", fault=str(error), lost=self.lost)


def _size_bytes(record: Record) -> int:
    """In memory, roughly, and rather too much."""
    if isinstance(record, Rating):
        texts = [record.comment]
    elif record.sample is None:
        texts = []
    else:
        texts = [turn.content for turn in record.sample.turns] + [answer.text for answer in record.sample.answers]
    return _RECORD_BYTES + 4 * sum(map(len, texts))
