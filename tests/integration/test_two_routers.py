"""Two routers on one database: no lost update, no sample leased twice, no request billed twice, one view of policies.

Each router has connections, a clock's reading and a memory of its own; what they share is the database.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from pith.router.v1 import feedback_pb2, generation_pb2, policies_pb2
from sqlalchemy import func, select

from common.clock import ManualClock
from common.errors import from_rpc_error
from router.store.database import Database
from router.store.tables import ledger, samples, spent
from tests.postgres import DATABASES, on_both_databases
from tests.router.fake_engine import IDENTITY, FakeEngine
from tests.router.running import Running, ask, running

Pair = tuple[Running, Running]


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    engine.load.max_running = 64
    await engine.start()
    yield engine
    await engine.stop()


@asynccontextmanager
async def two_routers(folder: Path, engine: FakeEngine, url: str) -> AsyncIterator[Pair]:
    """Started at the same moment, on one clock, each with a folder of its own."""
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        started = [
            running(folder / name, {"e1": engine}, clock=clock, database_url=url, remembered_requests=0)
            for name in ("a", "b")
        ]
        yield tuple(await asyncio.gather(*map(stack.enter_async_context, started)))


@pytest.fixture
async def pair(tmp_path: Path, engine: FakeEngine, database_url: str) -> AsyncIterator[Pair]:
    async with two_routers(tmp_path, engine, database_url) as pair:
        yield pair


async def read(url: str, query: Any) -> list[tuple[Any, ...]]:
    database = Database(url)
    async with database.reading() as connection:
        rows = [tuple(row) for row in await connection.execute(query)]
    await database.close()
    return rows


async def outcome(call: Any) -> Any:
    """The reply, or the reason of the refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason


async def policy(router: Running, name: str = "acme-qa") -> policies_pb2.Policy:
    return await router.policies.GetPolicy(policies_pb2.GetPolicyRequest(name=name))


async def directive(router: Running, **fields: Any) -> str:
    reply = await router.generation.Decide(generation_pb2.DecideRequest(request=ask(model=IDENTITY, **fields)))
    return reply.decision.directive


@pytest.mark.parametrize("empty_database_url", DATABASES, indirect=True)
async def test_both_come_up_on_a_database_that_neither_has_migrated(
    tmp_path: Path, engine: FakeEngine, empty_database_url: str
) -> None:
    async with two_routers(tmp_path, engine, empty_database_url) as pair:
        for router in pair:
            assert (await router.generation.Generate(ask())).text == "Hello, world."
            listed = await router.policies.ListPolicies(policies_pb2.ListPoliciesRequest())
            assert [(each.name, each.revision) for each in listed.policies] == [("default", 1)]


@on_both_databases
async def test_of_updates_with_the_same_etag_one_wins(pair: Pair) -> None:
    await pair[0].policy()
    rng = random.Random(1)
    for round_number in range(2, 22):
        present = await policy(pair[0])
        changes = [policies_pb2.Policy() for _ in range(6)]
        for number, change in enumerate(changes):
            change.CopyFrom(present)
            change.traffic_share = (round_number * 10 + number) / 1000
        routers = [*pair, *pair, *pair]
        rng.shuffle(routers)
        outcomes = await asyncio.gather(
            *(
                outcome(
                    router.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(policy=change, reason="a change"))
                )
                for router, change in zip(routers, changes, strict=True)
            )
        )
        (won,) = [reply for reply in outcomes if isinstance(reply, policies_pb2.Policy)]
        assert Counter(reply for reply in outcomes if isinstance(reply, str)) == {"ETAG_MISMATCH": 5}
        for router in pair:
            assert await policy(router) == won
        assert won.revision == round_number, "no revision was written over, and none is missing"


@on_both_databases
async def test_changes_of_different_fields_are_both_kept(pair: Pair) -> None:
    """As two admins who read, change and retry until theirs is taken."""
    await pair[0].policy(traffic_share=0.0, sample_share=0.0)

    async def add(router: Running, field: str) -> None:
        for _ in range(10):
            taken: Any = ""
            while not isinstance(taken, policies_pb2.Policy):
                change = await policy(router)
                setattr(change, field, getattr(change, field) + 1 / 64)
                request = policies_pb2.UpdatePolicyRequest(policy=change, reason="a change")
                taken = await outcome(router.policies.UpdatePolicy(request))
                assert isinstance(taken, policies_pb2.Policy) or taken == "ETAG_MISMATCH"

    await asyncio.gather(*(add(router, field) for router in pair for field in ("traffic_share", "sample_share")))
    changed = await policy(pair[1])
    assert (changed.traffic_share, changed.sample_share, changed.revision) == (20 / 64, 20 / 64, 41)


@on_both_databases
async def test_no_sample_is_leased_twice(pair: Pair, database_url: str) -> None:
    await pair[0].policy(sample_share=1.0, grader="exact")
    await pair[1].router._keeper.refresh()
    count = 60
    await asyncio.gather(*(pair[n % 2].generation.Generate(ask(str(n), reference="x")) for n in range(count)))
    for router in pair:
        assert await router.router.ledger.flush()
    assert await read(database_url, select(func.count()).select_from(samples)) == [(count,)]
    rng = random.Random(2)
    for _ in range(5):
        leased: Counter[str] = Counter()

        async def draw_until_none_is_left(router: Running, evaluator: str, most: int, leased: Counter[str]) -> None:
            while drawn := (
                await router.feedback.DrawSamples(
                    feedback_pb2.DrawSamplesRequest(
                        model=IDENTITY,
                        task="qa",
                        directives=["L1"],
                        count=most,
                        lease=duration_pb2.Duration(seconds=60),
                        evaluator=evaluator,
                    )
                )
            ).samples:
                leased.update(sample.sample_id for sample in drawn)

        await asyncio.gather(
            *(
                draw_until_none_is_left(pair[number % 2], f"evaluator {number}", rng.randrange(1, 8), leased)
                for number in range(6)
            )
        )
        assert len(leased) == count and set(leased.values()) == {1}
        await pair[0].clock.advance(60)


@on_both_databases
async def test_the_same_request_at_both_is_billed_once(pair: Pair, database_url: str) -> None:
    """Each router knows only its own requests in flight: both may answer, and the ledger's key decides."""
    await pair[0].policy(sample_share=1.0, grader="exact")
    await pair[1].router._keeper.refresh()
    count, rng = 120, random.Random(3)
    asked = [(router, f"r{number}") for number in range(count) for router in pair]
    rng.shuffle(asked)

    async def flush_now_and_then(router: Running) -> None:
        for _ in range(20):
            await router.router.ledger.flush()
            await asyncio.sleep(0)

    replies, *_ = await asyncio.gather(
        asyncio.gather(*(router.generation.Generate(ask(request_id=name, reference="x")) for router, name in asked)),
        *map(flush_now_and_then, pair),
    )
    assert {reply.text for reply in replies} == {"Hello, world."}
    for router in pair:
        assert await router.router.ledger.flush()
        assert (router.router.ledger.lost, router.router.ledger.waiting) == (0, 0)
    assert (await pair[0].report()).total.requests == count
    rows = await read(database_url, select(ledger.c.request_id))
    assert Counter(rows) == Counter((f"r{number}",) for number in range(count))
    assert await read(database_url, select(func.count()).select_from(samples)) == [(count,)]
    billed = func.sum(ledger.c.operational_grams + ledger.c.embodied_grams)
    ((grams,),) = await read(database_url, select(billed))
    assert await read(database_url, select(spent.c.policy, spent.c.grams)) == [("acme-qa", pytest.approx(grams))]


@on_both_databases
async def test_a_change_at_one_is_in_force_at_the_other_within_5_seconds(pair: Pair) -> None:
    one, other = pair

    async def until(wanted: str) -> None:
        async with asyncio.timeout(5):
            while await directive(other) != wanted:
                pass

    await one.policy(directives=["L1"])
    await one.open("L1")
    assert await directive(one) == "L1", "at once"
    await until("L1")
    await one.clock.advance(1)
    await one.open("L1", lower=0.5)
    assert await directive(one) == "L0", "a bound that closes"
    await until("L0")
    await one.clock.advance(1)
    await one.open("L1", lower=0.99)
    await until("L1")
    change = await policy(one)
    change.mode = policies_pb2.MODE_OFF
    await one.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(policy=change, reason="off"))
    await until("L0")
