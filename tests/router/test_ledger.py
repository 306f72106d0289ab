"""Records reach the database exactly once, whatever becomes of database, disk and process. Real SQLite, real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource
from router.directives.compile import Turn
from router.ledger import BATCH, Ledger, LedgerEntry, Record
from router.outbox import Outbox
from router.samples import Answer, Sample
from router.store.database import Database, StoreUnavailable
from router.store.ledger import LedgerRepository, Window
from router.store.samples import SampleRepository

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


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


def sample(sample_id: str = "s1") -> Sample:
    return Sample(
        sample_id=sample_id,
        tenant="acme",
        model="m@1",
        task="qa",
        turns=(Turn("user", 'Why?\n\x00"'),),
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
        self.refused: set[str] = set()
        self.transactions = 0
        self.tried = asyncio.Event()

    async def write(self, records: Sequence[Record]) -> None:
        self.tried.set()
        if self.away:
            raise StoreUnavailable("scripted")
        async with self.database.writing() as connection:
            await LedgerRepository(connection).add_many([record.entry for record in records])
            await SampleRepository(connection).add_many([r.sample for r in records if r.sample is not None])
            if any(record.entry.request_id in self.refused for record in records):
                raise TypeError("a record that no database can take")
        self.transactions += 1

    async def requests(self) -> int:
        async with self.database.reading() as connection:
            ((_, totals),) = await LedgerRepository(connection).totals(Window())
        return totals.requests

    async def samples(self) -> int:
        async with self.database.reading() as connection:
            return sum((await SampleRepository(connection).gradable()).values())


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.fixture
def sink(database: Database) -> Sink:
    return Sink(database)


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "boxes" / "outbox.jsonl"


async def test_many_records_are_few_transactions(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    for index in range(2 * BATCH + 1):
        ledger.record(entry(str(index)), sample(str(index)) if index % 2 else None)
    assert ledger.waiting == 2 * BATCH + 1
    assert await ledger.flush()
    assert (ledger.waiting, sink.transactions) == (0, 3)
    assert (await sink.requests(), await sink.samples()) == (2 * BATCH + 1, BATCH)
    assert content(outbox) is None


async def test_the_same_request_twice_is_one_entry(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    ledger.record(entry("r1"), sample("s1"))
    await ledger.flush()
    ledger.record(entry("r1", output_tokens=99), sample("s1"))
    await ledger.flush()
    async with sink.database.reading() as connection:
        ((_, totals),) = await LedgerRepository(connection).totals(Window())
    assert (totals.requests, totals.output_tokens) == (1, 2)


async def test_it_writes_in_the_background(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    ledger.start()
    for index in range(3):
        ledger.record(entry(str(index)))
        sink.tried.clear()
        while await sink.requests() != index + 1:
            await sink.tried.wait()
    await ledger.close()


async def test_while_the_database_is_away_records_wait_and_are_then_written_once(sink: Sink, outbox: Path) -> None:
    sink.away = True
    ledger = Ledger(sink.write, outbox, first_backoff_seconds=0.001, max_backoff_seconds=0.002)
    ledger.start()
    for index in range(5):
        ledger.record(entry(str(index)), sample(str(index)))
    await sink.tried.wait()
    assert ledger.waiting == 5
    sink.away = False
    while await sink.requests() != 5:
        sink.tried.clear()
    await ledger.close()
    assert (await sink.requests(), await sink.samples(), ledger.lost) == (5, 5, 0)


async def test_beyond_the_bound_they_wait_in_the_outbox(sink: Sink, outbox: Path) -> None:
    sink.away = True
    ledger = Ledger(sink.write, outbox, max_waiting=3, first_backoff_seconds=0.001, max_backoff_seconds=0.002)
    ledger.start()
    for index in range(3):
        ledger.record(entry(str(index)), sample(str(index)))
    while ledger.waiting:
        sink.tried.clear()
        await sink.tried.wait()
    assert len(content(outbox).splitlines()) == 3
    ledger.record(entry("later"))
    sink.away = False
    while await sink.requests() != 4:
        sink.tried.clear()
    await ledger.close()
    assert (await sink.requests(), await sink.samples()) == (4, 3)
    assert content(outbox) is None


async def test_what_a_process_left_in_the_outbox_the_next_one_writes_first(sink: Sink, outbox: Path) -> None:
    sink.away = True
    first = Ledger(sink.write, outbox)
    first.start()
    first.record(entry("r1"), sample("s1"))
    await first.close()
    assert content(outbox) and first.waiting == 0

    second = Ledger(sink.write, outbox)
    sink.away = False
    second.record(entry("r1", output_tokens=99))
    second.record(entry("r2"))
    assert await second.flush()
    async with sink.database.reading() as connection:
        rows = await LedgerRepository(connection).totals(Window(), ("tenant",))
    assert (rows[0][1].requests, rows[0][1].output_tokens) == (2, 4), "the first entry of r1 is the one that counts"
    assert content(outbox) is None


async def test_an_outbox_written_out_twice_counts_once(sink: Sink, outbox: Path) -> None:
    """As after a crash between writing it out and clearing it."""
    sink.away = True
    ledger = Ledger(sink.write, outbox)
    ledger.record(entry("r1"), sample("s1"))
    await ledger.flush()
    saved = content(outbox)
    sink.away = False
    await ledger.flush()
    put(outbox, saved)
    await Ledger(sink.write, outbox).flush()
    assert (await sink.requests(), await sink.samples()) == (1, 1)


async def test_a_line_cut_off_by_a_crash_costs_only_itself(sink: Sink, outbox: Path) -> None:
    sink.away = True
    ledger = Ledger(sink.write, outbox)
    for name in ("r1", "r2"):
        ledger.record(entry(name))
    await ledger.flush()
    whole = content(outbox)
    put(outbox, whole[:-30])
    sink.away = False
    assert await ledger.flush()
    assert await sink.requests() == 1
    assert content(outbox.with_suffix(".unreadable")) == whole.splitlines()[1][:-29] + b"\n"


async def test_a_record_that_no_database_takes_holds_back_no_other(sink: Sink, outbox: Path) -> None:
    sink.refused = {"bad"}
    ledger = Ledger(sink.write, outbox)
    for name in ("r1", "bad", "r2"):
        ledger.record(entry(name))
    assert await ledger.flush()
    assert await sink.requests() == 2
    (rejected,) = Outbox(outbox.with_suffix(".rejected"), Record).read(10)
    assert rejected == [Record(entry("bad"))]


async def test_with_neither_database_nor_disk_requests_go_on(sink: Sink, tmp_path: Path) -> None:
    put(tmp_path / "file", b"where the folder should be")
    sink.away = True
    ledger = Ledger(sink.write, tmp_path / "file" / "outbox.jsonl", max_waiting=2)
    for index in range(25):
        ledger.record(entry(str(index)))
    assert not await ledger.flush()
    assert (ledger.waiting, ledger.lost) == (20, 5)
    sink.away = False
    assert await ledger.flush()
    assert await sink.requests() == 20


def test_a_full_disk_leaves_no_half_record(outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(outbox, Record)
    box.append([Record(entry("r1"))])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        box.append([Record(entry("r2"))])
    monkeypatch.undo()
    box.append([Record(entry("r3"))])
    assert [record.entry.request_id for batch in box.read(10) for record in batch] == ["r1", "r3"]


def test_records_come_out_of_the_outbox_as_they_went_in(outbox: Path) -> None:
    records = [Record(entry(str(index), energy=None, intensity=None), sample(str(index))) for index in range(7)]
    records.append(Record(entry("x")))
    box = Outbox(outbox, Record)
    box.append(records[:3])
    box.append(records[3:])
    batches = list(box.read(3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert [record for batch in batches for record in batch] == records
    box.clear()
    assert list(box.read(3)) == []
