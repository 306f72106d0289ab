"""What decisions depend on follows the database, on this router and on others, and outlives it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.clock import ManualClock
from common.quality.bound import Cell, FloorKind, QualityBound
from router.directives.levels import L0, SEEDED, Directive
from router.directives.policy import Mode
from router.optimizer.plan import Entry, Plan
from router.snapshot import SnapshotKeeper, seed
from router.store.database import Database, StoreUnavailable
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.quality import QualityRepository, Reporter
from router.store.revisions import Action

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOUND = QualityBound(Cell("tiny@0", "sums", "L1"), 0.97, 1.0, 0.99, 0.9, 200, "grader:numeric", "1", NOW)


async def add_directive(database: Database, name: str) -> None:
    async with database.changing() as connection:
        await DirectiveRepository(connection).add(Directive(name, updated_at=NOW), Action.CREATE, "")


class Outage:
    """A database that can be made to go away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        reading = Database.reading

        @asynccontextmanager
        async def maybe(database: Database) -> AsyncIterator[Any]:
            if self.down:
                raise StoreUnavailable("connection refused")
            async with reading(database) as connection:
                yield connection

        monkeypatch.setattr(Database, "reading", maybe)


async def test_the_seed_serves_everybody_at_l0(keeper: SnapshotKeeper) -> None:
    snapshot = keeper.snapshot
    assert snapshot.directives == {"L0": L0, **{directive.name: directive for directive in SEEDED}}
    (policy,) = snapshot.policies
    assert (policy.name, policy.tenant, policy.task, policy.mode) == ("default", "", "", Mode.SHADOW)
    assert (policy.floor, policy.floor_kind, policy.directives) == (0.95, FloorKind.RELATIVE, ("L1", "L2"))
    assert (snapshot.bounds, snapshot.plan.entries) == ({}, {})


async def test_what_was_deleted_on_purpose_is_not_seeded_again(
    database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    async with database.changing() as connection:
        for policy in await PolicyRepository(connection).all():
            await PolicyRepository(connection).add(replace(policy, revision=2), Action.DELETE, "")
        for directive in await DirectiveRepository(connection).all():
            await DirectiveRepository(connection).add(replace(directive, revision=2), Action.DELETE, "")
    await seed(database, clock)
    await keeper.refresh()
    assert (dict(keeper.snapshot.directives), tuple(keeper.snapshot.policies)) == ({"L0": L0}, ())


async def test_a_refresh_brings_changes_and_keeps_the_plan(
    database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    told: list[set[str]] = []

    async def listener() -> None:
        told.append(set(keeper.snapshot.directives))

    keeper.subscribe(listener)
    plan = Plan({("default", "tiny@0", "sums"): Entry((("L1", 1.0),))}, clock.now())
    keeper.put_plan(plan)
    before = keeper.snapshot
    await keeper.refresh()
    assert (keeper.snapshot is before, told) == (True, [])
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds([BOUND], Reporter("e"), NOW)
    await add_directive(database, "terse")
    await keeper.refresh()
    assert told == [{"L0", "L1", "L2", "terse"}]
    assert keeper.snapshot.bounds == {BOUND.cell: BOUND}
    assert keeper.snapshot.plan is plan
    assert before.bounds == {}


async def test_another_router_notices_by_itself(database: Database, keeper: SnapshotKeeper, clock: ManualClock) -> None:
    noticed = asyncio.Event()
    other_database = Database(str(database.url))
    other = SnapshotKeeper(other_database, clock, poll_seconds=0.001)

    async def listener() -> None:
        noticed.set()

    await other.start()
    other.subscribe(listener)
    await add_directive(database, "terse")
    await asyncio.wait_for(noticed.wait(), 5)
    assert "terse" in other.snapshot.directives
    await other.close()
    await other_database.close()


async def test_polling_survives_whatever_happens(
    database: Database, clock: ManualClock, keeper: SnapshotKeeper
) -> None:
    polled = SnapshotKeeper(database, clock, poll_seconds=0.001)
    calls: asyncio.Queue[None] = asyncio.Queue()

    async def fault() -> None:
        calls.put_nowait(None)
        raise ZeroDivisionError

    await polled.start()
    polled.subscribe(fault)
    with capture_logs() as logs:
        for name in ("one", "two"):
            await add_directive(database, name)
            await asyncio.wait_for(calls.get(), 5)
    assert [log["event"] for log in logs][:2] == ["snapshot could not be refreshed"] * 2
    await polled.close()


async def test_who_could_not_be_told_of_a_change_is_told_at_the_next_look(
    database: Database, keeper: SnapshotKeeper
) -> None:
    """The client of the call that made the change may go away while the listeners are told."""
    told: list[int] = []

    async def listener() -> None:
        told.append(len(told))
        if len(told) == 1:
            raise asyncio.CancelledError

    keeper.subscribe(listener)
    await add_directive(database, "terse")
    with pytest.raises(asyncio.CancelledError):
        await keeper.refresh()
    await keeper.refresh()
    await keeper.refresh()
    assert told == [0, 1]


async def test_an_outage_keeps_the_last_snapshot_and_is_told_once(
    database: Database, keeper: SnapshotKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch)
    before = keeper.snapshot
    outage.down = True
    with capture_logs() as logs:
        for _ in range(3):
            await keeper.refresh()
    assert (keeper.snapshot is before, keeper.stale) == (True, True)
    assert [(log["log_level"], log["fault"]) for log in logs] == [("warning", "connection refused")]
    outage.down = False
    await add_directive(database, "terse")
    with capture_logs() as logs:
        await keeper.refresh()
    assert (keeper.stale, "terse" in keeper.snapshot.directives) == (False, True)
    assert [log["event"] for log in logs] == ["database is back"]


async def test_a_router_does_not_start_on_nothing(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outage(monkeypatch).down = True
    with pytest.raises(StoreUnavailable):
        await SnapshotKeeper(database, clock).start()


async def test_refreshes_that_overlap_end_with_the_newest(database: Database, keeper: SnapshotKeeper) -> None:
    async def change(number: int) -> None:
        await add_directive(database, f"d{number}")
        await keeper.refresh()
        assert f"d{number}" in keeper.snapshot.directives

    await asyncio.gather(*(change(number) for number in range(8)))
    assert len(keeper.snapshot.directives) == 3 + 8
