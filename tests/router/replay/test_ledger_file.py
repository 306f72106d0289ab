"""The ledger's own table, as it is got out of the database, can be replayed."""

import csv
import sqlite3
from pathlib import Path

from common.energy.reading import Energy, EnergySource
from router.replay.requests_file import read_requests
from router.store.database import Database
from tests.router.ledger_entries import UNKNOWN, entry, record


async def test_the_table_of_a_router_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pith.db"
    database = Database(f"sqlite:///{path}")
    await database.open()
    sampled = {"evaluation_sample_id": "s1", "task": "faq"}
    await record(
        database,
        entry(1, directive="L0", energy=Energy(900.0, EnergySource.MEASURED), busy_seconds=4.0),
        entry(2),
        entry(3, **UNKNOWN),
        entry(4, directive="L0", energy=Energy(800.0, EnergySource.MEASURED), busy_seconds=3.0, **sampled),
        entry(5, directive="L1", energy=Energy(90.0, EnergySource.MEASURED), busy_seconds=0.5, **sampled),
    )
    await database.close()
    exported = tmp_path / "ledger.csv"
    connection = sqlite3.connect(path)
    with exported.open("w", newline="") as file:
        rows = connection.execute("select * from ledger")
        csv.writer(file).writerows([[column[0] for column in rows.description], *rows])
    connection.close()
    found = read_requests(exported)
    assert (found.ids, found.tasks, found.levels) == (("s1",), ("faq",), ("L0", "L1"))
    assert found.joules.tolist() == [[800.0, 90.0]]
    assert found.seconds.tolist() == [[3.0, 0.5]]
    assert "of its 3 prompts, 1 were answered at each of L0, L1" in found.notes[0]
    assert found.notes[-1] == "Rows of ledger.csv without energy are left out: 1."
