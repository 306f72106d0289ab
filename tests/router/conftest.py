"""The router's own services over real gRPC and a real database, with time in the test's hand."""

import random
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pith.router.v1 import reports_pb2

from common.auth import Authenticator, Role, TokenEntry
from common.clock import ManualClock
from common.config import ServiceConfig
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from router.optimizer.costs import CostBook
from router.replay.simulate import Simulator
from router.services import directives, feedback, policies, reports, reviews
from router.services.directives import DirectivesService
from router.services.feedback import FeedbackService
from router.services.policies import PoliciesService
from router.services.reports import ReportsService
from router.services.reviews import ReviewsService
from router.snapshot import SnapshotKeeper, seed
from router.store.database import Database
from router.validation import RequestLimits
from router.zones import Zones
from tests.router.admin_client import MODEL, AdminClient, FixedIntensity
from tests.router.fake_engine import FakeEngine
from tests.router.ledger_sink import Sink
from tests.router.running import Running, running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def keeper(database: Database, clock: ManualClock) -> AsyncIterator[SnapshotKeeper]:
    """Seeded and loaded; it polls only when a test says so."""
    await seed(database, clock)
    keeper = SnapshotKeeper(database, clock, poll_seconds=3600)
    await keeper.start()
    yield keeper
    await keeper.close()


@pytest.fixture
async def client(database: Database, keeper: SnapshotKeeper, clock: ManualClock) -> AsyncIterator[AdminClient]:
    """A running server with Policies, Feedback, Reviews and Reports, and stubs for each role."""
    tokens = [
        TokenEntry(sha256=sha256(role.encode()).hexdigest(), role=role, tenant="acme", name=f"the {role}")
        for role in Role
    ]
    server = GrpcServer(ServiceConfig(listen="127.0.0.1:0"), Authenticator(tokens), Metrics("router"))
    client = AdminClient(CostBook())
    server.add(DirectivesService(database, keeper, clock), directives.SERVICE, roles=directives.ROLES)
    server.add(
        PoliciesService(
            database, keeper, clock, client.costs, client.grams, lambda model: MODEL if model in ("", "tiny") else "",
            lambda: client.engines, Simulator(database, client.costs, client.grams),
            RequestLimits(max_messages=100, max_prompt_characters=10_000),
        ),
        policies.SERVICE,
        roles=policies.ROLES,
    )  # fmt: skip
    server.add(
        FeedbackService(database, keeper, clock, client.costs, client.grams, FixedIntensity()),
        feedback.SERVICE,
        roles=feedback.ROLES,
    )
    zones = Zones(FixedIntensity(), {}, clock)
    server.add(
        ReportsService(database, keeper, clock, lambda: client.engines, reports_pb2.RouterStatus, zones),
        reports.SERVICE,
        roles=reports.ROLES,
    )
    server.add(ReviewsService(database, clock, b"secret", random.Random(1)), reviews.SERVICE, roles=reviews.ROLES)
    client.connect(await server.start())
    yield client
    await client.close()
    await server.drain(grace_seconds=0)


@pytest.fixture
def evaluator(client: AdminClient) -> Any:
    """Stub of Feedback, as an evaluator."""
    _, feedback, _ = client.as_role("evaluator")
    return feedback


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """An engine that answers as the test scripts it."""
    engine = FakeEngine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def router(tmp_path: Path, engine: FakeEngine, database_url: str) -> AsyncIterator[Running]:
    """A whole router with that engine, as it runs in production but for the clock."""
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as router:
        yield router


@pytest.fixture
def sink(database: Database) -> Sink:
    return Sink(database)


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "boxes" / "outbox.jsonl"
