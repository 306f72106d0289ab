"""The ledger as a replay reads it."""

from datetime import timedelta

import pytest

from common.energy.reading import Energy, EnergySource
from common.quality.bound import Cell
from router.directives.decide import Reason
from router.replay.recorded import Recorded
from router.store import replay
from router.store.database import Database
from router.store.replay import ReplayRepository
from router.store.reports import Window
from tests.router.admin_client import MODEL
from tests.router.ledger_entries import GRID, NOON, UNKNOWN, entry, record


def joules(value: float) -> Energy:
    return Energy(value, EnergySource.MODELLED)


async def recorded(database: Database, window: Window, task: str = "") -> list[Recorded]:
    async with database.reading() as connection:
        chunks = ReplayRepository(connection).recorded(window, task, GRID.signal)
        return [row async for chunk in chunks for row in chunk]


async def test_requests_come_oldest_first_in_chunks(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CHUNK", 4)
    await record(database, *(entry(number) for number in (5, 3, 9, 0, 1, 2, 8, 7, 4, 6)))
    async with database.reading() as connection:
        chunks = [chunk async for chunk in ReplayRepository(connection).recorded(Window(), "", GRID.signal)]
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert [row.request_id for chunk in chunks for row in chunk] == [f"r{number}" for number in range(10)]


async def test_of_window_tenant_and_task_without_evaluation(database: Database) -> None:
    await record(
        database,
        entry(1, **UNKNOWN),
        entry(2, evaluation_sample_id="s1"),
        entry(3, tenant="other"),
        entry(4, task="lists", directive_revision=3),
        entry(5, embodied_grams=None),
    )
    assert [row.request_id for row in await recorded(database, Window(NOON, NOON + timedelta(seconds=5)))] == [
        "r1",
        "r3",
        "r4",
    ]
    assert [row.request_id for row in await recorded(database, Window(tenant="acme"), "sums")] == ["r1", "r5"]
    (lists,) = await recorded(database, Window(), "lists")
    assert lists == Recorded(
        "acme", "r4", "lists", MODEL, "L1", 3, Reason.PLANNED.value, pytest.approx(0.021), NOON + timedelta(seconds=4)
    )
    unknown, without_embodied = await recorded(database, Window(tenant="acme"), "sums")
    assert (unknown.grams, without_embodied.grams) == (None, 0.02)


async def test_from_when_on_there_are_no_more_than_so_many(database: Database) -> None:
    await record(database, *(entry(number) for number in range(10)), entry(99, evaluation_sample_id="s1"))
    async with database.reading() as connection:
        repository = ReplayRepository(connection)
        assert await repository.newest(Window(), "", 10, GRID.signal) is None
        since = await repository.newest(Window(), "", 4, GRID.signal)
        assert await repository.newest(Window(), "lists", 0, GRID.signal) is None
    assert since is not None
    assert [row.request_id for row in await recorded(database, Window(since))] == ["r6", "r7", "r8", "r9"]


async def test_costs_by_cell_and_revision(database: Database) -> None:
    await record(
        database,
        entry(1, energy=joules(2.0)),
        entry(2, energy=joules(4.0)),
        entry(3, energy=joules(7.0), directive_revision=2),
        entry(4, energy=None),
        entry(5, evaluation_sample_id="s1"),
        # Requests of another kind: how long their answers are says nothing of others.
        entry(6, directive="L0", energy=joules(99.0), reason=Reason.LEFT_ALONE.value),
        entry(7, directive="L0", energy=joules(99.0), reason=Reason.OPT_OUT.value),
        entry(8, directive="L0", energy=joules(9.0), reason=Reason.HOLDBACK.value),
        entry(-9, energy=joules(50.0)),
    )
    async with database.reading() as connection:
        costs = await ReplayRepository(connection).cell_costs(Window(NOON))
    cell = Cell(MODEL, "sums", "L1")
    assert {key: (c.requests, c.joules_sum, c.joules_square_sum) for key, c in costs.items()} == {
        (cell, 1): (2, 6.0, 20.0),
        (cell, 2): (1, 7.0, 49.0),
        (Cell(MODEL, "sums", "L0"), 1): (1, 9.0, 81.0),
    }
    # Standard deviation √2, mean 3.
    assert (costs[cell, 1].mean_joules, costs[cell, 1].variation_square) == pytest.approx((3.0, 2.0 / 9.0))
