"""Records reach the database exactly once, whatever becomes of database, disk and process. Real SQLite, real files."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structlog.testing import capture_logs

from router.ledger import BATCH, Ledger
from router.store.reports import ReportRepository, Window
from tests.router.ledger_sink import (
    SIGNAL,
    Sink,
    eager,
    entry,
    files,
    lines,
    names,
    rating,
    sample,
    until_on_disk,
    writing_in_the_background,
)


async def test_many_records_are_few_transactions(sink: Sink, outbox: Path) -> None:
    ledger = Ledger(sink.write, outbox, patience_seconds=60)
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
        ((_, totals),) = await ReportRepository(connection).totals(Window(), SIGNAL)
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
    # Until the ledger has stopped: it tells what was written out after the last file is gone.
    with capture_logs() as logs:
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
