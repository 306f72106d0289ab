"""A real evaluator on a real router: with a quality budget it narrows the bound that is spent from, and without one it
stops at the verdict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pith.router.v1 import policies_pb2

from common.quality.sample_size import worthwhile_pairs
from tests.integration.evaluators.evaluating import evaluator, in_force, policy, rebuilt, serve, timeless
from tests.router.fake_engine import Context, FakeEngine, Message, delta, finished
from tests.router.running import running

SERVED, SAMPLE_SHARE = 150, 0.1


async def adds(engine: FakeEngine, request: Any, context: Context) -> AsyncIterator[Message]:
    asked = request.messages.messages[-1].content
    brief = "briefly" in asked
    yield engine.started(request)
    yield delta(f"Answer: {int(asked.split()[0]) + 4}")
    yield finished(4 if brief else 40, joules=1.0 if brief else 8.0)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(adds)
    engine.load.max_running = 64
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.parametrize("has_budget", [True, False])
async def test_scores_go_on_for_as_long_as_they_pay_where_a_budget_is_spent_by_the_bound(
    stack: AsyncExitStack, tmp_path: Path, engine: FakeEngine, has_budget: bool
) -> None:
    router = await stack.enter_async_context(running(tmp_path, {"e1": engine}))
    agreed = policy()
    # So that no other policy has a floor for the task.
    agreed.tenant, agreed.floor = "", 0.8
    if has_budget:
        agreed.quality_budget.directive_floor = 0.7
    created = await router.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=agreed, reason="test"))
    await serve([router.channel], SERVED)
    created.sample_share = SAMPLE_SHARE
    await router.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(policy=created, reason="test"))

    one = await evaluator(stack, router.address, router.clock)
    events = await one.evaluate()
    opened = max(place for place, event in enumerate(events) if event.startswith("qa/L1 opened"))
    (bound,) = await in_force(router.channel)
    if has_budget:
        assert bound.samples == worthwhile_pairs(SERVED / SAMPLE_SHARE) == 131
        assert opened < len(events) - 10
    else:
        assert bound.samples < 40
        assert opened == len(events) - 2
    assert timeless(await rebuilt(router.address)) == timeless([bound])
    # Nothing more pays, and nothing was served since.
    assert len(await one.evaluate()) == 1
