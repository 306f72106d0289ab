"""The database goes away, the disk fills up, the router is killed: every answered request's row arrives, once.

Real router processes, a real PostgreSQL that is stopped as if it had crashed, real files.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from pith.router.v1 import (
    feedback_pb2,
    feedback_pb2_grpc,
    generation_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from pydantic import TypeAdapter

from router.ledger import BATCH, Ledger, Record, Served
from router.store.database import StoreUnavailable
from tests.integration.processes import ServiceProcess, listening
from tests.postgres import PostgresServer, PostgresUnavailableError, postgres_server, unavailable
from tests.router.fake_engine import IDENTITY, FakeEngine
from tests.router.ledger_sink import entry, lines, sample
from tests.router.running import ask


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """That nobody else needs while it is away."""
    try:
        with postgres_server() as server:
            yield server
    except PostgresUnavailableError as reason:
        unavailable(reason)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Of what another process does; looks seldom, since that needs the processor more."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class StoppableDatabase:
    """One database of a server that comes and goes."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.create_migrated()
        self.away = False
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        self._connection = None

    async def stop(self) -> None:
        await self.close()
        await asyncio.to_thread(self._server.stop)
        self.away = True

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)
        self.away = False

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        return await (await self._connection.execute(statement.encode())).fetchall()

    async def requests(self) -> Counter[str]:
        return Counter(name for (name,) in await self.query("SELECT request_id FROM ledger"))

    async def until(self, rows: int) -> None:
        async def there() -> bool:
            return (await self.query("SELECT count(*) FROM ledger"))[0][0] >= rows

        await until(there)


@pytest.fixture
async def database(own_postgres: PostgresServer) -> AsyncIterator[StoppableDatabase]:
    database = StoppableDatabase(own_postgres)
    yield database
    await database.close()
    if database.away:
        await database.start()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    engine.load.max_running = 64
    await engine.start()
    yield engine
    await engine.stop()


class RouterProcess:
    def __init__(self, service: ServiceProcess, channel: grpc.aio.Channel) -> None:
        self._service = service
        self.generation = generation_pb2_grpc.GenerationStub(channel)
        self.policies = policies_pb2_grpc.PoliciesStub(channel)
        self.feedback = feedback_pb2_grpc.FeedbackStub(channel)
        self.reports = reports_pb2_grpc.ReportsStub(channel)

    async def until_ready(self) -> None:
        request = reports_pb2.ListEnginesRequest()
        while any(
            engine.state != reports_pb2.ENGINE_STATE_READY
            for engine in (await self.reports.ListEngines(request)).engines
        ):
            pass

    def limit_files(self, size_bytes: int) -> None:
        """As a full disk does: no file grows beyond it."""
        resource.prlimit(self._service.process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

    async def said(self, event: str) -> None:
        async def logged() -> bool:
            return any(f'"{event}"' in line for line in self._service.lines)

        await until(logged)

    async def end(self, how: signal.Signals) -> int:
        """By SIGKILL: without a chance to write anything. By SIGTERM: as a supervisor does. The exit status."""
        self._service.process.send_signal(how)
        return await self._service.process.wait()


@asynccontextmanager
async def router_process(folder: Path, database_url: str, *engines: FakeEngine) -> AsyncIterator[RouterProcess]:
    async with (
        listening(
            "router",
            listen="127.0.0.1:0",
            database_url=database_url,
            outbox_path=folder / "outbox.jsonl",
            engines=json.dumps([engine.address for engine in engines]),
        ) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        router = RouterProcess(service, channel)
        await router.until_ready()
        yield router


async def answered(router: RouterProcess, names: Sequence[str]) -> list[Any]:
    """Asks for all of them, several at once."""
    at_once = asyncio.Semaphore(8)

    async def one(name: str) -> Any:
        async with at_once:
            return await router.generation.Generate(ask(request_id=name, reference="x"))

    return await asyncio.gather(*map(one, names))


async def steer(router: RouterProcess) -> None:
    """Opens L1 for everybody, and has a sample kept of every request."""
    policy = policies_pb2.Policy(
        name="acme-qa",
        tenant="acme",
        task="qa",
        mode=policies_pb2.MODE_ON,
        floor=0.9,
        directives=["L1"],
        holdback_share=0.0,
        sample_share=1.0,
        grader="exact",
    )
    await router.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=policy, reason="test"))
    bound = feedback_pb2.QualityBound(
        cell=feedback_pb2.Cell(model=IDENTITY, task="qa", directive="L1"),
        lower=0.99,
        upper=1.0,
        share=1.0,
        absolute_lower=0.99,
        samples=100,
        judge="grader:exact",
        directive_revision=1,
    )
    bound.updated_at.GetCurrentTime()
    await router.feedback.ReportQuality(feedback_pb2.ReportQualityRequest(evaluator="test", bounds=[bound]))


async def until_on_disk(outbox: Path, count: int) -> None:
    async def there() -> bool:
        return await asyncio.to_thread(lambda: len(lines(outbox))) >= count

    await until(there)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def left_over(outbox: Path) -> list[str]:
    return sorted(path.name for path in outbox.parent.glob("outbox*") if path.suffix != ".lock")


async def test_the_database_is_away_under_load(tmp_path: Path, database: StoppableDatabase, engine: FakeEngine) -> None:
    """For as long as it takes to answer a few hundred requests, and more come while it is being written out."""
    outbox = tmp_path / "outbox.jsonl"
    before, during, after = names("before", 50), names("during", 600), names("after", 200)
    async with router_process(tmp_path, database.url, engine) as router:
        await steer(router)
        await answered(router, before)
        await database.until(len(before))
        await database.stop()
        replies = await answered(router, during)
        assert {reply.started.decision.directive for reply in replies} == {"L1"}, "the last snapshot stays in force"
        await until_on_disk(outbox, len(during))
        load = asyncio.create_task(answered(router, after))
        await database.start()
        await load
        every = [*before, *during, *after]
        await database.until(len(every))
        assert await database.requests() == Counter(every)
        assert await router.end(signal.SIGTERM) == 0
    assert left_over(outbox) == []
    ((rows, tokens, samples),) = await database.query(
        "SELECT count(*), sum(output_tokens), (SELECT count(*) FROM samples) FROM ledger"
    )
    assert (rows, tokens, samples) == (len(every), 2 * len(every), len(every))
    await spent_is_what_the_rows_say(database)


async def spent_is_what_the_rows_say(database: StoppableDatabase) -> None:
    rows = await database.query(
        "SELECT policy, date_trunc('day', started_at, 'UTC'), sum(operational_grams + embodied_grams) FROM ledger"
        " WHERE policy <> '' GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert await database.query("SELECT policy, day, grams FROM spent ORDER BY 1, 2") == [
        (policy, day, pytest.approx(grams)) for policy, day, grams in rows
    ]


async def test_the_disk_is_full_while_the_database_is_away(
    tmp_path: Path, database: StoppableDatabase, engine: FakeEngine
) -> None:
    outbox = tmp_path / "outbox.jsonl"
    async with router_process(tmp_path, database.url, engine) as router:
        await database.stop()
        await answered(router, names("on-disk", 20))
        await until_on_disk(outbox, 20)
        router.limit_files(1)
        await answered(router, names("in-memory", 100))
        await router.said("outbox cannot be written")
        assert len(lines(outbox)) == 20, "nothing half written"
        router.limit_files(resource.RLIM_INFINITY)
        await answered(router, names("room-again", 1))
        await until_on_disk(outbox, 121)
        router.limit_files(1)
        await answered(router, names("full-again", 50))
        await database.start()
        await database.until(171)
        every = [*names("on-disk", 20), *names("in-memory", 100), "room-again0", *names("full-again", 50)]
        assert await database.requests() == Counter(every)
        assert await router.end(signal.SIGTERM) == 0
    assert left_over(outbox) == []


async def test_a_router_is_killed_with_a_full_outbox(
    tmp_path: Path, database: StoppableDatabase, engine: FakeEngine
) -> None:
    outbox = tmp_path / "outbox.jsonl"
    first, second = names("first", 300), names("second", 100)
    async with router_process(tmp_path, database.url, engine) as router:
        await database.stop()
        await answered(router, first)
        await until_on_disk(outbox, len(first))
        await router.end(signal.SIGKILL)
    await database.start()
    async with router_process(tmp_path, database.url, engine) as router:
        await answered(router, second)
        await database.until(len(first) + len(second))
        assert await database.requests() == Counter([*first, *second])
    assert left_over(outbox) == []


def fill(outbox: Path, count: int) -> None:
    """As a router does whose database is away."""

    async def away(_: Sequence[Record]) -> None:
        raise StoreUnavailable("away")

    async def fill() -> None:
        ledger = Ledger(away, outbox)
        for number in range(count):
            ledger.record(entry(str(number), policy="p"), sample(str(number)) if number % 10 == 0 else None)
        await ledger.flush()

    asyncio.run(fill())


async def test_a_router_is_killed_while_it_writes_out_a_big_outbox(
    tmp_path: Path, database: StoppableDatabase, engine: FakeEngine
) -> None:
    outbox, count = tmp_path / "outbox.jsonl", 10_000
    await asyncio.to_thread(fill, outbox, count)
    assert len(lines(outbox)) == count
    rows = 0
    for _ in range(2):
        async with router_process(tmp_path, database.url) as router:
            await database.until(rows + 1)
            await router.end(signal.SIGKILL)
        ((rows,),) = await database.query("SELECT count(*) FROM ledger")
        assert rows < count, "it was killed in the middle"
        assert count <= rows + len(lines(outbox)) <= count + BATCH, "what is written is not read again, but for a batch"
    async with router_process(tmp_path, database.url) as router:
        await database.until(count)
        assert await router.end(signal.SIGTERM) == 0
    assert await database.requests() == Counter(map(str, range(count)))
    ((samples,),) = await database.query("SELECT count(*) FROM samples")
    assert samples == count // 10
    assert left_over(outbox) == []
    await spent_is_what_the_rows_say(database)


async def test_what_is_no_record_is_kept_aside(tmp_path: Path, database: StoppableDatabase, engine: FakeEngine) -> None:
    outbox = tmp_path / "outbox.jsonl"
    good = [TypeAdapter(Served).dump_json(Served(entry(name))) for name in ("r1", "r2", "r3")]
    older = json.loads(good[0])
    older["entry"] |= {"request_id": "older"}
    del older["entry"]["seconds"]
    strange = [b"no record", b"\x00\xff\n\xfe", json.dumps(older).encode(), good[2][:-10]]
    outbox.write_bytes(good[0] + b"\n" + strange[0])
    outbox.with_name("outbox.00000007.jsonl").write_bytes(b"\n".join([strange[1], good[1], strange[2]]))
    outbox.with_name("outbox.00000011.jsonl").write_bytes(b"\n".join([good[2], strange[3]]))
    outbox.with_name("outbox.notes.jsonl").write_bytes(good[2])
    async with router_process(tmp_path, database.url, engine) as router:
        await answered(router, ["new"])
        await database.until(4)
        assert await router.end(signal.SIGTERM) == 0
    assert await database.requests() == Counter(["r1", "r2", "r3", "new"])
    assert left_over(outbox) == ["outbox.notes.jsonl", "outbox.unreadable"]
    assert outbox.with_suffix(".unreadable").read_bytes() == b"\n".join([*strange, b""])
