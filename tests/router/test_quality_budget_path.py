"""A quality budget over a day on the path of a request: spent where and when it saves most, and never past its hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pith.engine.v1 import inference_pb2
from pith.router.v1 import policies_pb2, reports_pb2

from common.clock import ManualClock
from common.energy.reading import Energy, EnergySource
from router.ledger import LedgerEntry
from router.optimizer import loop
from router.optimizer.plan import Plan
from router.store.database import Database
from tests.postgres import on_both_databases
from tests.router.fake_engine import IDENTITY, Context, FakeEngine, Message, delta, finished
from tests.router.ledger_entries import entry, record
from tests.router.running import Running, ask, running

DAY = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLEAN, DIRTY = 100, 400
"""Before noon and after it."""
PER_HOUR = 20
JOULES = {"essay": 1000.0, "quiz": 100.0}
FLOOR = 0.95
BUDGET = policies_pb2.QualityBudget(directive_floor=0.8, scope=policies_pb2.QualityBudget.SCOPE_DAY)


async def by_length(engine: FakeEngine, request: inference_pb2.GenerateRequest, _: Context) -> AsyncIterator[Message]:
    """Under a directive an answer takes a third."""
    text = request.messages.messages[-1].content
    yield engine.started(request)
    yield delta("So.")
    yield finished(3, JOULES[text.split()[0]] * (0.3 if "briefly" in text else 1.0))


def served(hour: datetime) -> list[LedgerEntry]:
    """What another router wrote in an hour."""
    return [
        entry(
            request_id=f"{task} {hour} {number}",
            task=task,
            model=IDENTITY,
            policy="p",
            directive="L0",
            planned="L0",
            eligible=False,
            energy=Energy(joules, EnergySource.MEASURED),
            started_at=hour + timedelta(minutes=number),
        )
        for task, joules in JOULES.items()
        for number in range(PER_HOUR)
    ]


@pytest.fixture
async def at_ten(tmp_path: Path, engine: FakeEngine, database_url: str) -> AsyncIterator[Running]:
    """A router at ten in the morning of the fourth day, with a policy and bounds as yet without effect."""
    engine.script = by_length
    rows = [f"{(DAY + n * HOUR).isoformat()},{CLEAN if n % 24 < 12 else DIRTY}" for n in range(-72, 24)]
    grid = tmp_path / "grid.csv"
    grid.write_text("\n".join(["datetime,lca", *rows]) + "\n")
    database = Database(database_url)
    await database.open()
    for hour in range(-62, 10):
        await record(database, *served(DAY + hour * HOUR))
    await database.close()
    settings: dict[str, Any] = {"clock": ManualClock(DAY + 10 * HOUR), "intensity": f"csv:{grid}:ES:lca"}
    async with running(tmp_path, {"e1": engine}, database_url=database_url, **settings) as router:
        await router.policy(
            name="p", task="", floor=FLOOR, directives=["L1"], leave_alone=policies_pb2.LeaveAlone(),
            quality_budget=BUDGET,
        )  # fmt: skip
        for task in JOULES:
            await router.open(task=task, lower=0.9)
        yield router


def granted(router: Running, task: str) -> float | None:
    return plan(router).entry("p", IDENTITY, task).floor


def plan(router: Running) -> Plan:
    return router.router._keeper.snapshot.plan


async def until_planned(router: Running) -> None:
    """For the present hour. Each turn is a call, during which the router plans."""
    while plan(router).made_at < router.clock.now().replace(minute=0):
        await router.reports.GetStatus(reports_pb2.GetStatusRequest())


async def steered(router: Running, count: int = PER_HOUR) -> Counter[str]:
    """Of so many requests of each task."""
    found: Counter[str] = Counter()
    for task in JOULES:
        for number in range(count):
            request = ask(f"{task} {number}", task=task, request_id=f"{task} {router.clock.now()} {number}")
            decision = (await router.generation.Generate(request)).started.decision
            found[task] += decision.directive == "L1"
    await router.router.ledger.flush()
    return found


def gauge(router: Running, name: str) -> float | None:
    return router.router.metrics.registry.get_sample_value(f"pith_router_quality_budget_{name}", {"policy": "p"})


@on_both_databases
async def test_quality_is_spent_in_the_dirty_hours_and_where_it_saves_most(at_ten: Running) -> None:
    """Of the day's 960 requests 480 may be steered, by bounds of 0.9: all essays that are left, and quizzes of the
    dirty hours."""
    router = at_ten
    assert granted(router, "essay") == pytest.approx(0.9, abs=0.001)
    assert granted(router, "quiz") == pytest.approx(1.0, abs=0.001)
    assert (gauge(router, "kept_ratio"), gauge(router, "floor_ratio")) == (1.0, FLOOR)
    price = gauge(router, "price_grams")
    # Between what quizzes and essays save for it in the clean hours.
    assert price is not None and 0.01 < price < 0.5
    assert await steered(router) == {"essay": PER_HOUR, "quiz": 0}
    await router.clock.advance(2 * 3600)
    await until_planned(router)
    essay, quiz = granted(router, "essay"), granted(router, "quiz")
    assert essay == pytest.approx(0.9, abs=0.001)
    assert quiz is not None and 0.9 < quiz < FLOOR
    found = await steered(router)
    assert found["essay"] == PER_HOUR and found["quiz"] >= 8
    await router.clock.advance(3600)
    await until_planned(router)
    requests = 2 * (10 + 2) * PER_HOUR
    assert plan(router).budgets["p"].requests == requests
    assert gauge(router, "kept_ratio") == pytest.approx(1 - 0.1 * (PER_HOUR + found.total()) / requests)


async def test_once_its_hour_is_over_a_grant_no_longer_holds(at_ten: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    router = at_ten

    async def words(task: str) -> str:
        request = policies_pb2.ExplainRequest(request=ask("Who?", task=task))
        return " | ".join((await router.policies.Explain(request)).steps)

    assert "the mean of this task's requests keeps 0.900 at present; so far 400 requests kept 1.000" in (
        before := await words("essay")
    )
    assert "plan: L1 100%" in before

    def broken(*_: object) -> Plan:
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "make_plan", broken)
    await router.clock.advance(3599)
    assert "plan: L1 100%" in await words("essay")
    await router.clock.advance(1)
    after = await words("essay")
    assert "keeps 0.950 at present" in after and "plan: L1 50%, L0 50%" in after
    found = await steered(router, 100)
    assert 35 <= found["essay"] <= 65


@on_both_databases
async def test_other_routers_requests_are_of_the_same_budget(at_ten: Running, database_url: str) -> None:
    router = at_ten
    other = Database(database_url)
    hour = router.clock.now()
    await record(other, *(entry(n, request_id=f"other {n}", task="essay", model=IDENTITY, policy="p", directive="L1",
                                started_at=hour) for n in range(600)))  # fmt: skip
    await other.close()
    await router.clock.advance(300)
    while plan(router).made_at != router.clock.now():
        await router.reports.GetStatus(reports_pb2.GetStatusRequest())
    # 600 at 0.9 have used up more than 400 at 1 leave.
    assert gauge(router, "kept_ratio") == pytest.approx(0.94)
    essay = granted(router, "essay")
    assert essay is not None and essay > FLOOR
