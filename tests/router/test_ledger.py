"""Records reach the database exactly once, whatever becomes of database, disk and process. Real SQLite, real files."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource
from router.directives.compile import Turn
from router.ledger import BATCH, Ledger, LedgerEntry, Rating, Record, Served
from router.outbox import OutboxShared, append_whole
from router.samples import Answer, Sample
from router.store.database import Database, StoreUnavailable
from router.store.ledger import LedgerRepository
from router.store.reports import ReportRepository, Window
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
            ((_, totals),) = await ReportRepository(connection).totals(Window())
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
    assert not ledger.outbox_in_use and not outbox.parent.exists()


async def test_the_same_request_twice_is_one_entry(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    ledger.record(entry("r1"), sample("s1"))
    await ledger.flush()
    ledger.record(entry("r1", output_tokens=99), sample("s1"))
    await ledger.flush()
    async with sink.database.reading() as connection:
        ((_, totals),) = await ReportRepository(connection).totals(Window())
    assert (totals.requests, totals.output_tokens) == (1, 2)


async def test_entries_and_ratings_are_written_in_the_order_they_came(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    sink.away = True
    ledger.record(entry("r1"))
    ledger.rate(rating("r1", 0.0))
    assert not await ledger.flush()
    ledger.rate(rating("r1", 1.0))
    ledger.record(entry("r2"))
    sink.away = False
    assert await ledger.flush()
    assert sink.written == ["r1", "rating of r1", "rating of r1", "r2"]


async def test_it_writes_in_the_background(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    async with writing_in_the_background(ledger):
        for index in range(3):
            ledger.record(entry(str(index)))
            await sink.until(index + 1)
        assert not ledger.database_away
    assert lines(outbox) == []


async def test_from_the_first_failure_on_records_are_on_disk_and_then_written_once(sink: Sink, outbox: Path) -> None:
    ledger = eager(sink, outbox)
    sink.away = True
    async with writing_in_the_background(ledger):
        for index in range(3):
            ledger.record(entry(str(index)), sample(str(index)))
            await until_on_disk(outbox, index + 1)
        while ledger.waiting:
            await sink.until_tried()
        assert ledger.database_away and ledger.outbox_in_use
        held = [file.stat().st_size for file in files(outbox)]
        assert (ledger.outbox_files, ledger.outbox_bytes) == (len(held), sum(held))
        sink.away = False
        with capture_logs() as logs:
            await sink.until(3)
            # Closed before the file is gone, it would be written out twice.
            while ledger.outbox_in_use:
                await sink.requests()
    assert (ledger.database_away, ledger.outbox_in_use, ledger.lost) == (False, False, 0)
    assert (ledger.outbox_files, ledger.outbox_bytes) == (0, 0)
    assert [log for log in logs if log["log_level"] == "info"] == [
        {"event": "outbox written out", "records": 3, "log_level": "info"}
    ]
    assert sink.written == ["0", "1", "2"]
    assert await sink.samples() == 3 and lines(outbox) == []


async def test_files_with_text_are_their_owners_alone(sink: Sink, outbox: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(sink.write, outbox)
        sink.away = True
        async with writing_in_the_background(ledger):
            ledger.record(entry("0"), sample("0"))
            await until_on_disk(outbox, 1)
            put_aside = outbox.with_suffix(".rejected")
            append_whole(put_aside, b"x")
            made = [outbox.parent, *outbox.parent.iterdir()]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
    finally:
        os.umask(before)
    assert modes == {
        "boxes": 0o700,
        "outbox.00000001.jsonl": 0o600,
        "outbox.lock": 0o600,
        "outbox.rejected": 0o600,
    }


async def test_a_record_is_on_disk_at_once_however_long_it_is_until_the_next_attempt(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox, first_backoff_seconds=3600, max_backoff_seconds=3600)
    sink.away = True
    async with writing_in_the_background(ledger):
        for index in range(3):
            ledger.record(entry(str(index)))
            await until_on_disk(outbox, index + 1)
        sink.away = False
    assert sink.written == ["0", "1", "2"], "a router that stops tries once more"


async def test_what_comes_while_a_file_is_written_out_is_not_deleted_with_it(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox)
    sink.away = True
    ledger.record(entry("0"))
    assert not await ledger.flush()
    sink.away = False
    sink.hangs.clear()
    async with writing_in_the_background(ledger):
        await sink.until_tried()
        ledger.record(entry("1"))
        await until_on_disk(outbox, 2)
        sink.hangs.set()
        assert await ledger.flush()
        assert sink.written == ["0", "1"]


async def test_records_are_on_disk_while_a_database_neither_answers_nor_fails(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox, patience_seconds=0.01)
    sink.hangs.clear()
    async with writing_in_the_background(ledger):
        ledger.record(entry("tried"))
        await until_on_disk(outbox, 1)
        ledger.record(entry("later"))
        await until_on_disk(outbox, 2)
        assert ledger.database_away
        sink.hangs.set()
        await sink.until(2)


async def test_memory_is_bounded_while_the_database_is_away(sink: Sink, outbox: Path) -> None:
    ledger = eager(sink, outbox)
    sink.away = True
    async with writing_in_the_background(ledger):
        for index in range(20 * BATCH):
            ledger.record(entry(str(index)))
            if index % BATCH == 0:
                await until_on_disk(outbox, index + 1)
        sink.away = False
        await sink.until(20 * BATCH)
    assert len(sink.written) == 20 * BATCH, "each once"
    assert ledger.lost == 0


async def test_what_a_process_left_in_the_outbox_the_next_one_writes_first(sink: Sink, outbox: Path) -> None:
    sink.away = True
    first = Ledger(sink.write, outbox)
    first.start()
    first.record(entry("r1"), sample("s1"))
    await first.close()
    assert len(lines(outbox)) == 1 and first.waiting == 0

    second = Ledger(sink.write, outbox)
    sink.away = False
    second.record(entry("r1", output_tokens=99))
    second.record(entry("r2"))
    assert await second.flush()
    async with sink.database.reading() as connection:
        rows = await ReportRepository(connection).totals(Window(), ("tenant",))
    assert (rows[0][1].requests, rows[0][1].output_tokens) == (2, 4), "the first entry of r1 is the one that counts"
    assert lines(outbox) == []


async def test_an_outbox_written_out_twice_counts_once(sink: Sink, outbox: Path) -> None:
    """As after a crash between writing it out and clearing it."""
    sink.away = True
    ledger = Ledger(sink.write, outbox)
    ledger.record(entry("r1"), sample("s1"))
    await ledger.flush()
    (file,) = files(outbox)
    saved = file.read_bytes()
    sink.away = False
    await ledger.flush()
    file.write_bytes(saved)
    await Ledger(sink.write, outbox).flush()
    assert (await sink.requests(), await sink.samples()) == (1, 1)


async def test_a_write_out_that_is_cut_short_goes_on_where_it_was(sink: Sink, outbox: Path) -> None:
    sink.away = True
    ledger = Ledger(sink.write, outbox)
    for index in range(10 * BATCH):
        ledger.record(entry(str(index)))
    await ledger.flush()
    assert (len(lines(outbox)), ledger.waiting) == (10 * BATCH, 0)
    sink.away = False
    write = sink.write

    async def write_four(records: Sequence[Record]) -> None:
        if sink.transactions == 4:
            raise StoreUnavailable("gone again")
        await write(records)

    assert not await Ledger(write_four, outbox).flush()
    assert len(lines(outbox)) == 6 * BATCH, "what is written is no longer there"
    assert await Ledger(sink.write, outbox).flush()
    assert sink.written == [str(index) for index in range(10 * BATCH)]


async def test_a_line_cut_off_by_a_crash_costs_only_itself(sink: Sink, outbox: Path) -> None:
    sink.away = True
    ledger = Ledger(sink.write, outbox)
    for request in ("r1", "r2"):
        ledger.record(entry(request))
    await ledger.flush()
    (file,) = files(outbox)
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    after = Ledger(sink.write, outbox)
    after.record(entry("r3"))
    assert not await after.flush()
    assert len(files(outbox)) == 2, "a process never goes on with another one's last line"
    sink.away = False
    assert await after.flush()
    assert sink.written == ["r1", "r3"]
    assert outbox.with_suffix(".unreadable").read_bytes() == whole.splitlines()[1][:-29] + b"\n"


async def test_garbage_and_records_of_another_version_are_kept_aside_once(sink: Sink, outbox: Path) -> None:
    """One file without a number is what earlier versions had. Fields unknown here do no harm; missing ones do."""
    record = TypeAdapter(Served).dump_python(Served(entry("good")), mode="json")
    newer = {**record, "entry": {**record["entry"], "request_id": "newer", "price": 3}, "invoice": "x"}
    older = {**record, "entry": {key: value for key, value in record["entry"].items() if key != "busy_seconds"}}
    strange = [json.dumps(older).encode(), b"\xff\x00 garbage", b"[]", b'{"tenant": "acme"}', b"{" * 1000]
    put(outbox, [strange[0], json.dumps(record).encode(), b"", *strange[1:], json.dumps(newer).encode()])
    ledger = Ledger(sink.write, outbox)
    sink.away = True
    for _ in range(3):
        assert not await ledger.flush()
    sink.away = False
    assert await ledger.flush()
    assert sink.written == ["good", "newer"]
    assert outbox.with_suffix(".unreadable").read_bytes() == b"\n".join([*strange, b""])
    assert names(outbox.parent) == ["outbox.unreadable"]


async def test_a_file_that_cannot_be_read_holds_back_no_other(sink: Sink, outbox: Path) -> None:
    outbox.with_name("outbox.00000001.jsonl").mkdir(parents=True)
    ledger = Ledger(sink.write, outbox)
    sink.away = True
    ledger.record(entry("r1"))
    assert not await ledger.flush()
    ledger.record(entry("r2"))
    sink.away = False
    assert await ledger.flush()
    assert sink.written == ["r1", "r2"] and not ledger.outbox_in_use


async def test_a_record_that_no_database_takes_holds_back_no_other(sink: Sink, outbox: Path) -> None:
    sink.refused = {"bad", "rating of r1"}
    ledger = Ledger(sink.write, outbox)
    outbox.parent.mkdir()
    ledger.record(entry("r1"))
    ledger.record(entry("bad"), sample("bad", "private"))
    ledger.rate(rating("r1"))
    ledger.record(entry("r2"))
    assert await ledger.flush()
    assert await sink.requests() == 2
    rejected = outbox.with_suffix(".rejected").read_bytes().splitlines()
    # Without their text: neither retention nor erasure would find it there.
    assert TypeAdapter(Served).validate_json(rejected[0]) == Served(entry("bad"))
    assert TypeAdapter(Rating).validate_json(rejected[1]) == replace(rating("r1"), comment="")


async def test_two_routers_cannot_share_an_outbox(sink: Sink, outbox: Path) -> None:
    first, second = Ledger(sink.write, outbox), Ledger(sink.write, outbox)
    first.start()
    with pytest.raises(OutboxShared, match="another router's outbox"):
        second.start()
    await first.close()
    second.start()
    await second.close()


async def test_with_neither_database_nor_disk_requests_go_on(sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"where the folder should be")
    sink.away = True
    ledger = Ledger(sink.write, tmp_path / "file" / "outbox.jsonl", max_waiting_bytes=20 * 2_000)
    for index in range(25):
        ledger.record(entry(str(index)))
    assert not await ledger.flush()
    assert (ledger.waiting, ledger.lost) == (20, 5)
    sink.away = False
    assert await ledger.flush()
    assert sink.written == [str(index) for index in range(20)]
    sink.away = True
    ledger.record(entry("big"), sample("big", 10_000 * "x"))
    assert ledger.lost == 6, "text counts"
    for index in range(20, 40):
        ledger.record(entry(str(index)))
    assert ledger.lost == 6, "what was written has made room"


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """A disk that is full: no file of this process grows beyond it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_what_a_full_disk_does_not_take_waits_in_memory_and_comes_after(sink: Sink, outbox: Path) -> None:
    sink.away = True
    ledger = Ledger(sink.write, outbox)
    ledger.record(entry("0"), sample("0"))
    await ledger.flush()
    with files_limited_to(100_000):
        for index in range(1, 4):
            ledger.record(entry(str(index)), sample(str(index), 150_000 * "x"))
            assert not await ledger.flush()
            assert (len(lines(outbox)), ledger.waiting) == (1, index), "no half record"
    assert not await ledger.flush()
    assert (len(lines(outbox)), ledger.waiting) == (4, 0), "the disk has room again"
    with files_limited_to(100_000):
        ledger.record(entry("4"), sample("4", 150_000 * "x"))
        assert not await ledger.flush()
    sink.away = False
    assert await ledger.flush()
    assert sink.written == [str(index) for index in range(5)]
    assert (ledger.lost, names(outbox.parent)) == (0, [])


async def test_records_come_out_of_the_outbox_as_they_went_in(outbox: Path) -> None:
    records: list[Record] = [
        Served(entry(str(index), energy=None, intensity=None), sample(str(index))) for index in range(BATCH)
    ]
    records += [Served(entry("x", tenant="ä\x00\u2028\ud7ff😀")), rating()]
    seen: list[Record] = []
    away = True

    async def write(batch: Sequence[Record]) -> None:
        if away:
            raise StoreUnavailable("scripted")
        seen.extend(batch)

    ledger = Ledger(write, outbox)
    for record in records:
        ledger.rate(record) if isinstance(record, Rating) else ledger.record(record.entry, record.sample)
    await ledger.flush()
    away = False
    assert await Ledger(write, outbox).flush()
    assert seen == records
