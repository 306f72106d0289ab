"""Two evaluators at once, on one router or on two with one database: no sample is scored twice.

Each evaluator has a connection, a memory and a judge of its own, which tells what it was given to judge.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from pith.evaluator.v1 import evaluation_pb2

from common.clock import ManualClock
from common.errors import PithError
from router.store.database import Database
from router.store.quality import QualityRepository
from tests.integration.evaluators.evaluating import (
    BATCH,
    LEASE_SECONDS,
    Arithmetic,
    Evaluator,
    create_policy,
    evaluator,
    evaluator_process,
    in_force,
    once_each,
    rebuilt,
    scored,
    serve,
    timeless,
    until_waiting,
)
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, running

COUNT = 60
NAMES = pytest.mark.parametrize("names", [("one", "other"), ("evaluator", "evaluator")], ids=["named", "same name"])
TOPOLOGIES = pytest.mark.parametrize(
    ("database_url", "routers"),
    [("sqlite", 1), ("postgresql", 1), ("postgresql", 2)],
    ids=["sqlite", "postgresql", "postgresql, two routers"],
    indirect=["database_url"],
)


class Pair:
    """Two evaluators, of the first and the last of the routers, and samples that wait for them."""

    def __init__(self, routers: list[Running], one: Evaluator, other: Evaluator) -> None:
        self.routers = routers
        self.one, self.other = one, other

    @property
    def channel(self) -> grpc.aio.Channel:
        return self.routers[0].channel

    async def know_all_scores(self) -> None:
        """Both evaluators, and the routers of the bounds that follow."""
        for each in (self.one, self.other):
            await each.loop.knowledge.ensure()
        for router in self.routers:
            await router.router._keeper.refresh()

    async def advance(self, seconds: float) -> None:
        """Of the clock that all routers share."""
        await self.routers[0].clock.advance(seconds)

    def judged_twice(self) -> set[str]:
        judged = self.one.judge.judged + self.other.judge.judged
        return {sample_id for sample_id, times in judged.items() if times > 1}


async def start(
    stack: AsyncExitStack, folder: Path, engine: FakeEngine, url: str, routers: int, names: tuple[str, str]
) -> Pair:
    clock = ManualClock()
    started = []
    for number in range(routers):
        router = running(
            folder / str(number), {"e1": engine}, clock=clock, database_url=url, stall_seconds=2 * LEASE_SECONDS
        )
        started.append(await stack.enter_async_context(router))
    await create_policy(started[0].channel)
    for router in started[1:]:
        await router.router._keeper.refresh()
    await serve([router.channel for router in started], COUNT)
    one = await evaluator(stack, started[0].address, clock, names[0])
    other = await evaluator(stack, started[-1].address, clock, names[1])
    return Pair(started, one, other)


@NAMES
@TOPOLOGIES
async def test_at_the_same_time_they_share_the_samples(
    stack: AsyncExitStack,
    tmp_path: Path,
    engine: FakeEngine,
    database_url: str,
    routers: int,
    names: tuple[str, str],
) -> None:
    pair = await start(stack, tmp_path, engine, database_url, routers, names)
    async with asyncio.TaskGroup() as group:
        group.create_task(pair.one.evaluate())
        group.create_task(pair.other.evaluate())
    assert once_each(await scored(pair.channel), COUNT)
    assert pair.judged_twice() == set()
    assert (pair.one.judge.judged + pair.other.judge.judged).total() == COUNT
    assert pair.one.judge.judged and pair.other.judge.judged, "both had a share"
    await pair.know_all_scores()
    expected = await rebuilt(pair.routers[0].address)
    assert [bound and bound.samples for bound in expected] == [COUNT]
    assert pair.one.bounds == pair.other.bounds == expected
    for router in pair.routers:
        assert timeless(await in_force(router.channel)) == timeless(expected)


@TOPOLOGIES
async def test_every_bound_ever_in_force_rests_on_all_scores_of_before(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str, routers: int
) -> None:
    """Whichever of the two reported it: one more report, so many more samples."""
    pair = await start(stack, tmp_path, engine, database_url, routers, ("one", "other"))
    async with asyncio.TaskGroup() as group:
        group.create_task(pair.one.evaluate())
        group.create_task(pair.other.evaluate())
    found = list(await scored(pair.channel))
    database = Database(database_url)
    stack.push_async_callback(database.close)
    async with database.reading() as connection:
        quality = QualityRepository(connection)
        (recorded,) = await quality.in_force()
        history = await quality.history(recorded.cell)
        numbered = await quality.scores_after(0, COUNT + 1)
    assert len({record.reporter.evaluator for record in history}) == 2 and len(found) == COUNT
    for record in history:
        before = [score for position, score in numbered if position <= (record.reporter.position or 0)]
        assert record.bound.samples == len(before)
        assert record.bound.share == sum(s.quality for s in before) / sum(s.baseline_quality for s in before)


@TOPOLOGIES
async def test_one_of_two_is_killed_in_the_middle_of_a_batch(
    stack: AsyncExitStack,
    tmp_path: Path,
    engine: FakeEngine,
    arithmetic: Arithmetic,
    database_url: str,
    routers: int,
) -> None:
    """A process. The other one knows what it has reported, and scores what it had in hand once the lease has ended."""
    pair = await start(stack, tmp_path, engine, database_url, routers, ("one", "other"))
    async with evaluator_process(pair.routers[0].address) as (service, stub):
        call = stub.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=60.0)
        async for progress in call:
            if progress.samples_done >= BATCH:
                arithmetic.held = True
                break
        await arithmetic.until_waiting(1)
        service.process.kill()
        await service.process.wait()
    arithmetic.held = False
    arithmetic.go.set()
    before = await scored(pair.channel)
    assert BATCH <= len(before) < COUNT
    for seconds, count in ((0.0, COUNT - BATCH), (LEASE_SECONDS, COUNT)):
        await pair.advance(seconds)
        await pair.other.evaluate()
        assert once_each(await scored(pair.channel), count)
    assert before.keys() <= (await scored(pair.channel)).keys()
    assert not {sample_id for sample_id, _, _ in before} & set(pair.other.judge.judged)
    expected = await rebuilt(pair.routers[0].address)
    assert [bound and bound.samples for bound in expected] == [COUNT]
    assert pair.other.bounds == expected
    for router in pair.routers:
        await router.router._keeper.refresh()
        assert timeless(await in_force(router.channel)) == timeless(expected)


@NAMES
@TOPOLOGIES
async def test_a_late_report_is_refused_while_another_holds_the_lease(
    stack: AsyncExitStack,
    tmp_path: Path,
    engine: FakeEngine,
    arithmetic: Arithmetic,
    database_url: str,
    routers: int,
    names: tuple[str, str],
) -> None:
    pair = await start(stack, tmp_path, engine, database_url, routers, names)
    arithmetic.held = True
    slow = asyncio.create_task(pair.one.evaluate())
    await arithmetic.until_waiting(1)
    await pair.advance(LEASE_SECONDS)
    quick = asyncio.create_task(pair.other.evaluate())
    # The slow one has its own four answers in hand, and so has the quick one, for the same samples.
    await arithmetic.until_waiting(2 * pair.one.config.concurrency)
    quick.cancel()
    await pair.other.loop.stop(0.0)
    arithmetic.held = False
    arithmetic.go.set()
    with pytest.raises(PithError) as refused:
        await slow
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")
    assert not await scored(pair.channel), "nothing of the report counts"
    assert not pair.other.judge.judged

    await pair.advance(LEASE_SECONDS)
    await pair.one.evaluate()
    assert once_each(await scored(pair.channel), COUNT)
    assert pair.one.bounds == await rebuilt(pair.routers[0].address), "and what was refused is out of its estimates"


@NAMES
@TOPOLOGIES
async def test_a_report_after_another_has_scored_the_samples_counts_nothing(
    stack: AsyncExitStack,
    tmp_path: Path,
    engine: FakeEngine,
    arithmetic: Arithmetic,
    database_url: str,
    routers: int,
    names: tuple[str, str],
) -> None:
    pair = await start(stack, tmp_path, engine, database_url, routers, names)
    arithmetic.held = True
    slow = asyncio.create_task(pair.one.evaluate())
    await arithmetic.until_waiting(pair.one.config.concurrency)
    arithmetic.held = False
    await pair.advance(LEASE_SECONDS)
    await pair.other.evaluate()
    found = await scored(pair.channel)
    assert once_each(found, COUNT)
    before = await rebuilt(pair.routers[0].address)
    arithmetic.held = False
    arithmetic.go.set()
    await asyncio.wait({slow})
    assert await scored(pair.channel) == found
    assert pair.judged_twice() <= set(pair.one.judge.judged), "those of the batch that was late, and no others"
    assert len(pair.judged_twice()) == BATCH
    assert await rebuilt(pair.routers[0].address) == before == pair.other.bounds
    for router in pair.routers:
        await router.router._keeper.refresh()
        assert timeless(await in_force(router.channel)) == timeless(before), "the late bound is not"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_lease_that_ends_while_its_report_is_being_written_is_not_given_away(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str
) -> None:
    """The report was in time; it waits in the middle of its transaction, and meanwhile the other one draws."""
    pair = await start(stack, tmp_path, engine, database_url, 2, ("one", "other"))
    async with await psycopg.AsyncConnection.connect(database_url) as lock:
        # Reads go on; the scores cannot be inserted yet.
        await lock.execute("LOCK TABLE scores IN SHARE MODE")
        writing = asyncio.create_task(pair.one.evaluate())
        await until_waiting(database_url, "INSERT INTO scores")
        await pair.advance(LEASE_SECONDS)
        cell = pair.one.loop.knowledge.plan.targets[0].cell  # type: ignore[union-attr]
        drawn = await pair.other.client.draw(cell, COUNT)
        assert len(drawn) == COUNT - BATCH
        await lock.rollback()
        await writing
    found = await scored(pair.channel)
    assert len(found) == BATCH and set(found.values()) == {1}
    assert not {sample.sample_id for sample in drawn} & {sample_id for sample_id, _, _ in found}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_nobody_draws_what_a_report_has_found_to_be_leased(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on: it waits before it has written anything."""
    pair = await start(stack, tmp_path, engine, database_url, 1, ("one", "other"))
    report, first = pair.one.client.report, True
    async with (
        await psycopg.AsyncConnection.connect(database_url) as lock,
        await psycopg.AsyncConnection.connect(database_url) as other,
    ):

        async def while_scores_are_locked(*arguments: Any) -> None:
            nonlocal first
            if first:
                first = False
                await lock.execute("LOCK TABLE scores IN ACCESS EXCLUSIVE MODE")
            await report(*arguments)

        monkeypatch.setattr(pair.one.client, "report", while_scores_are_locked)
        writing = asyncio.create_task(pair.one.evaluate())
        await until_waiting(database_url, "SELECT scores")
        free = await other.execute("SELECT sample_id FROM samples FOR UPDATE SKIP LOCKED")
        assert len(await free.fetchall()) == COUNT - BATCH
        await other.rollback()
        await lock.rollback()
        await writing
    assert once_each(await scored(pair.channel), COUNT)
