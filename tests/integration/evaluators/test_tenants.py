"""A real evaluator on a real router: what is open for one tenant, and closed for another, by their own bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pith.router.v1 import feedback_pb2, policies_pb2, reports_pb2

from tests.integration.evaluators.evaluating import Evaluator, evaluator
from tests.router.fake_engine import Context, FakeEngine, Message, delta, finished
from tests.router.running import Running, ask, running

BETA_FROM = 1000
"""Sums with larger numbers are beta's: told to be brief, the engine gets them wrong."""


async def adds(engine: FakeEngine, request: Any, context: Context) -> AsyncIterator[Message]:
    asked = request.messages.messages[-1].content
    number, brief = int(asked.split()[0]), "briefly" in asked
    yield engine.started(request)
    yield delta(f"Answer: {number + 4 + (brief and number >= BETA_FROM)}")
    yield finished(4 if brief else 40, joules=1.0 if brief else 8.0)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(adds)
    engine.load.max_running = 64
    await engine.start()
    yield engine
    await engine.stop()


class World:
    """A router whose policy is for every tenant, and whose users ask for sums."""

    def __init__(self, router: Running, one: Evaluator) -> None:
        self.router, self.evaluator = router, one
        self._asked = 0

    async def serve(self, count_of: Mapping[str, int]) -> list[str]:
        """Of each tenant so many requests, in turn; the directives that beta was served."""
        served = []
        for tenant, count in count_of.items():
            for _ in range(count):
                self._asked += 1
                number = self._asked + (BETA_FROM if tenant == "beta" else 0)
                request = ask(f"{number} + 4?", tenant=tenant, reference=str(number + 4), request_id=f"r{number}")
                reply = await self.router.generation.Generate(request)
                if tenant == "beta":
                    served.append(reply.started.decision.directive)
        wanted = self._asked

        async def kept() -> int:
            plan = await self.router.feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
            reply = await self.router.feedback.ListScores(feedback_pb2.ListScoresRequest(page_size=5000))
            return len(reply.scores) + sum(target.samples_waiting for target in plan.targets)

        async with asyncio.timeout(30):
            while await kept() < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return served

    async def explain(self, tenant: str) -> Any:
        reply = await self.router.policies.Explain(policies_pb2.ExplainRequest(request=ask("7 + 4?", tenant=tenant)))
        (candidate,) = (one for one in reply.candidates if one.directive == "L1")
        return reply.decision.directive, candidate.open, candidate.why

    async def bounds(self) -> dict[str, tuple[list[str], list[str]]]:
        reply = await self.router.reports.ListBounds(reports_pb2.ListBoundsRequest())
        return {b.bound.cell.tenant: (list(b.open_for), list(b.closed_for)) for b in reply.bounds}


async def start(stack: AsyncExitStack, folder: Path, engine: FakeEngine, url: str, floor: float) -> World:
    router = await stack.enter_async_context(running(folder, {"e1": engine}, database_url=url))
    await router.policy(
        name="sums", tenant="", directives=["L1"], floor=floor, sample_share=1.0, grader="numeric", holdback_share=0.0
    )
    return World(router, await evaluator(stack, router.address, router.clock))


DATABASES = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@DATABASES
async def test_where_all_together_tell_nothing_each_tenants_own_bound_decides(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str
) -> None:
    world = await start(stack, tmp_path, engine, database_url, floor=0.5)
    await world.serve({"acme": 30, "beta": 30})
    await world.evaluator.evaluate()
    assert await world.bounds() == {"": ([], ["sums"]), "acme": (["sums"], []), "beta": ([], ["sums"])}
    served, is_open, why = await world.explain("acme")
    assert (served, is_open) == ("L1", True) and why.startswith("L1: open, tenant acme's own bound 0.")
    served, is_open, why = await world.explain("beta")
    assert (served, is_open) == ("L0", False) and why.startswith("L1: closed, tenant beta's own bound says at most 0.")
    served, is_open, why = await world.explain("gamma")
    assert (served, is_open) == ("L0", False) and why.startswith("L1: closed, bound 0.")
    assert set(await world.serve({"beta": 3})) == {"L0"}


@DATABASES
async def test_a_tenant_whose_answers_suffer_is_closed_though_all_together_are_open(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str
) -> None:
    world = await start(stack, tmp_path, engine, database_url, floor=0.5)
    await world.serve({"acme": 60, "beta": 15})
    await world.evaluator.evaluate()
    # Which samples are judged first is drawn: beta may be closed already.
    assert (await world.explain("acme"))[0] == "L1"
    rounds = 0
    while (await world.explain("beta"))[0] == "L1":
        rounds += 1
        assert rounds < 10
        await world.router.clock.advance(3600)
        assert set(await world.serve({"acme": 12, "beta": 8})) == {"L1"}
        await world.evaluator.evaluate()
    assert (await world.explain("acme"))[0] == "L1"
    assert await world.bounds() == {"": (["sums"], []), "acme": (["sums"], []), "beta": ([], ["sums"])}
    assert set(await world.serve({"beta": 3})) == {"L0"}

    again = await evaluator(stack, world.router.address, world.router.clock, "again")
    await again.evaluate()
    (cell,) = again.loop.knowledge.estimates.cells()
    assert {own.tenant for own in again.loop.knowledge.estimates.of_tenants(cell)} == {"acme", "beta"}
    assert (await world.explain("beta"))[0] == "L0"


@DATABASES
async def test_a_withdrawal_of_a_tenants_bound_closes_for_it_alone(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, database_url: str
) -> None:
    """Of a bound that had opened the directive for it, while all together tell nothing."""
    world = await start(stack, tmp_path, engine, database_url, floor=0.5)
    await world.serve({"acme": 30, "beta": 30})
    await world.evaluator.evaluate()
    (model,) = {
        b.bound.cell.model for b in (await world.router.reports.ListBounds(reports_pb2.ListBoundsRequest())).bounds
    }
    cell = feedback_pb2.Cell(model=model, task="qa", directive="L1", tenant="acme")
    drop = feedback_pb2.Withdrawal(cell=cell, judge="grader:numeric", reason=feedback_pb2.WITHDRAWAL_REASON_DRIFT)
    reply = await world.router.feedback.ReportQuality(
        feedback_pb2.ReportQualityRequest(evaluator="other", withdrawals=[drop])
    )
    assert [(change.cell.tenant, change.policy, change.open) for change in reply.changes] == [("acme", "sums", False)]
    assert (await world.explain("acme"))[0] == "L0"
    assert set(await world.bounds()) == {"", "beta"}
