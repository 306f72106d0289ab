"""A database that a test turns off and on, behind a ledger: real SQLite, real files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from common.carbon.intensity import Intensity, Scope, Signal, SignalKind
from common.energy.reading import Energy, EnergySource
from router.directives.compile import Turn
from router.ledger import Ledger, LedgerEntry, Rating, Record, Served
from router.samples import Answer, Sample
from router.store.database import Database, StoreUnavailable
from router.store.ledger import LedgerRepository
from router.store.reports import ReportRepository, Window
from router.store.samples import SampleRepository

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SIGNAL = Signal(SignalKind.AVERAGE, Scope.DIRECT)


def entry(request_id: str = "r1", **fields: object) -> LedgerEntry:
    return LedgerEntry(
        **{
            "tenant": "acme",
            "request_id": request_id,
            "task": "qa",
            "model": "m@1",
            "directive": "L1",
            "directive_revision": 1,
            "reason": "planned",
            "planned": "L1",
            "policy": "p",
            "policy_revision": 1,
            "eligible": True,
            "evaluation_sample_id": "",
            "prompt_tokens": 5,
            "cached_tokens": 0,
            "output_tokens": 2,
            "energy": Energy(2.0, EnergySource.MODELLED),
            "busy_seconds": 0.5,
            "operational_grams": 0.1,
            "embodied_grams": 0.2,
            "intensity": Intensity(360.0, "TEST", SignalKind.AVERAGE, Scope.DIRECT, NOW, "test"),
            "engine": "e1",
            "seed": 2**64 - 1,
            "finish_reason": "STOP",
            "started_at": NOW,
            "seconds": 0.1,
            **fields,
        }
    )


def sample(sample_id: str = "s1", text: str = 'Why?\n\x00"') -> Sample:
    return Sample(
        sample_id=sample_id,
        tenant="acme",
        model="m@1",
        task="qa",
        turns=(Turn("user", text),),
        sampling_json="{}",
        limits_json="{}",
        reference="because",
        grader="exact",
        served_at=NOW,
        answers=(Answer("L1", 1, "ä\u2028x", 2),),
    )


class Sink:
    """A database that can be away, and that refuses what it is told to refuse."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.away = False
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.refused: set[str] = set()
        self.written: list[str] = []
        """Every record that a transaction held, in order."""
        self.transactions = 0
        self.tried = asyncio.Condition()

    async def write(self, records: Sequence[Record]) -> None:
        async with self.tried:
            self.tried.notify_all()
        await self.hangs.wait()
        if self.away:
            raise StoreUnavailable("scripted")
        async with self.database.writing() as connection:
            served = [record for record in records if isinstance(record, Served)]
            await LedgerRepository(connection).add_many([record.entry for record in served])
            await SampleRepository(connection).add_many([r.sample for r in served if r.sample is not None])
            if any(name(record) in self.refused for record in records):
                raise TypeError("a record that no database can take")
        self.written += map(name, records)
        self.transactions += 1

    async def until_tried(self) -> None:
        async with self.tried:
            await self.tried.wait()

    async def requests(self) -> int:
        async with self.database.reading() as connection:
            ((_, totals),) = await ReportRepository(connection).totals(Window(), SIGNAL)
        return totals.requests

    async def samples(self) -> int:
        async with self.database.reading() as connection:
            return sum((await SampleRepository(connection).gradable()).values())

    async def until(self, requests: int) -> None:
        while await self.requests() != requests:
            pass


def name(record: Record) -> str:
    return record.entry.request_id if isinstance(record, Served) else f"rating of {record.request_id}"


def rating(request_id: str = "r1", value: float = 1.0) -> Rating:
    return Rating("acme", request_id, value, "good\n\u2028", NOW, "them")


def files(outbox: Path) -> list[Path]:
    """Oldest first."""
    return sorted(outbox.parent.glob(f"{outbox.stem}.*{outbox.suffix}")) if outbox.parent.exists() else []


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def put(path: Path, content: Sequence[bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in content))


def lines(outbox: Path) -> list[bytes]:
    """Of all files; one that could not be written may vanish meanwhile."""
    found = []
    for file in files(outbox):
        with suppress(FileNotFoundError):
            found += file.read_bytes().splitlines()
    return found


async def until_on_disk(outbox: Path, count: int) -> None:
    while await asyncio.to_thread(lambda: len(lines(outbox))) != count:
        pass


@asynccontextmanager
async def writing_in_the_background(ledger: Ledger) -> AsyncIterator[None]:
    ledger.start()
    try:
        yield
    finally:
        await ledger.close()


def eager(sink: Sink, outbox: Path) -> Ledger:
    """One that tries again at once."""
    return Ledger(sink.write, outbox, first_backoff_seconds=0.001, max_backoff_seconds=0.002)
