"""What lies in the outbox: whole, its owner's alone, written out once, whatever stopped the router."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from sqlalchemy import select

from router.ledger import BATCH, Ledger, Rating, Record, Served
from router.outbox import OutboxShared, append_whole
from router.store.database import StoreUnavailable
from router.store.reports import ReportRepository, Window
from router.store.tables import ledger
from tests.router.ledger_sink import (
    SIGNAL,
    Sink,
    entry,
    files,
    lines,
    names,
    put,
    rating,
    sample,
    until_on_disk,
    writing_in_the_background,
)


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
        rows = await ReportRepository(connection).totals(Window(), SIGNAL, ("tenant",))
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


async def test_a_line_of_before_the_overhead_was_kept_is_a_record(sink: Sink, outbox: Path) -> None:
    lines = [TypeAdapter(Served).dump_python(Served(entry(name, pue=1.25)), mode="json") for name in ("r1", "r2")]
    del lines[1]["entry"]["pue"]
    put(outbox, [json.dumps(line).encode() for line in lines])
    assert await Ledger(sink.write, outbox).flush()
    async with sink.database.reading() as connection:
        kept = (await connection.execute(select(ledger.c.request_id, ledger.c.pue).order_by(ledger.c.request_id))).all()
    assert [tuple(row) for row in kept] == [("r1", 1.25), ("r2", None)]


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
