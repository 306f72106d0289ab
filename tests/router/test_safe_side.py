"""What could go wrong quietly: a prompt in a log, a directive on another model's bound, a bound that never ages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import event

from common.clock import ManualClock
from common.errors import from_rpc_error
from router.directives.compile import Turn
from router.samples import Answer, Sample
from router.store.database import Database, StoreUnavailable
from router.store.samples import SampleRepository
from tests.router.fake_engine import FakeEngine, delta, finished
from tests.router.running import ask, running


@pytest.fixture
async def started() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_full_disk_tells_the_log_no_prompt(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/router.db")
    await database.open()
    event.listen(
        database._engine.sync_engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=45")
    )
    now = datetime.now(UTC)
    turns, answers = (Turn("user", "SECRET" * 500),), (Answer("L0", 1, "SECRET", 3),)
    kept = [Sample(f"s{n}", "t", "m", "q", turns, "{}", "{}", "", "", now, answers) for n in range(200)]
    with pytest.raises(StoreUnavailable) as raised:
        async with database.writing() as connection:
            await SampleRepository(connection).add_many(kept)
    await database.close()
    assert "SECRET" not in f"{raised.value} {raised.value.__cause__}"


async def test_a_model_that_changed_unnoticed_gets_no_directive_of_its_former_self(
    tmp_path: Path, started: FakeEngine
) -> None:
    async with running(tmp_path, {"e1": started}) as router:
        await router.policy()
        await router.open()
        started.info.model_digest = "f" * 64
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await router.generation.Generate(ask())
        assert from_rpc_error(raised.value).reason == "NO_ENGINE"
        assert (await router.report()).total.requests == 0


async def test_a_bound_from_the_future_is_closed(tmp_path: Path, started: FakeEngine) -> None:
    async with running(tmp_path, {"e1": started}, clock=ManualClock(datetime(2027, 1, 1, tzinfo=UTC))) as router:
        await router.policy()
        await router.open()
        assert (await router.generation.Generate(ask())).started.decision.directive == "L1"
    async with running(tmp_path, {"e1": started}, clock=ManualClock(datetime(2026, 1, 1, tzinfo=UTC))) as router:
        assert (await router.generation.Generate(ask())).started.decision.directive == "L0"


async def test_policies_that_hold_back_different_shares_are_told_apart(tmp_path: Path) -> None:
    """Tenant long: 100 J at L0, few held back; tenant short: 1 J, half held back. Under L1 both a tenth."""

    async def script(engine: FakeEngine, request: Any, context: Any) -> AsyncIterator[Any]:
        text = request.messages.messages[-1].content
        joules = (100.0 if "long" in text else 1.0) * (0.1 if "briefly" in text else 1.0)
        yield engine.started(request)
        yield delta("x")
        yield finished(1, joules)

    engine = FakeEngine(script)
    await engine.start()
    async with running(tmp_path, {"e1": engine}, embodied_grams=0.0) as router:
        await router.policy(name="long", tenant="long", directives=["L1"], holdback_share=0.1)
        await router.policy(name="short", tenant="short", directives=["L1"], holdback_share=0.5)
        await router.open()
        for tenant in ("long", "short"):
            for n in range(100):
                await router.generation.Generate(ask(tenant, tenant=tenant, request_id=f"{n}"))
        report = await router.report()
    await engine.stop()
    grams_per_joule = 360 * 1.5 / 3.6e6
    assert report.counterfactual.carbon_grams.value == pytest.approx(100 * 101 * grams_per_joule)
