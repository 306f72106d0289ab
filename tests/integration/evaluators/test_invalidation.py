"""A change of model, directive text, judge or task mix, or of quality, closes what it must: at once where it is made or
found, within 5 s at another router of the same database; and old evidence opens nothing again.

A real evaluator, two real routers, and an engine that does sums. Nothing sleeps: where another router has to notice, it
is asked until it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from google.protobuf import duration_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, feedback_pb2, generation_pb2, policies_pb2, reports_pb2

import common.quality.graders
from common.clock import ManualClock
from common.quality.graders import GRADERS
from evaluator.config import EvaluatorConfig
from tests.integration.evaluators.evaluating import Evaluator, evaluator, rebuilt
from tests.postgres import on_both_databases
from tests.router.fake_engine import Context, FakeEngine, Message, delta, finished
from tests.router.running import Running, ask, running

DAY_SECONDS = 24 * 3600.0
OBEYS_WITHIN_SECONDS = 5.0
ENOUGH = 90
"""Samples without an error: they open a directive at FLOOR."""
FLOOR = 0.9
LOOKS = EvaluatorConfig().maintenance_samples
"""Samples of an open directive that an evaluation looks at first."""


class Sums:
    """Told to be brief, it errs in every so many; never where that is 0."""

    def __init__(self) -> None:
        self.errs_every = 0

    async def __call__(self, engine: FakeEngine, request: Any, context: Context) -> AsyncIterator[Message]:
        asked = request.messages.messages[-1].content
        number, brief = int(asked.split()[0]), "briefly" in asked
        errs = brief and self.errs_every and number % self.errs_every == 0
        yield engine.started(request)
        yield delta(f"Answer: {number + 4 + bool(errs)}")
        yield finished(4 if brief else 40, joules=1.0 if brief else 8.0)


class World:
    """Two routers of one database, the clock that they share, an evaluator of the first, and their engine."""

    def __init__(self, one: Running, other: Running, judging: Evaluator, engine: FakeEngine, sums: Sums) -> None:
        self.one, self.other = one, other
        self.evaluator = judging
        self.engine = engine
        self.sums = sums
        self.asked = 0

    async def serve(self, count: int = ENOUGH, text: str = "") -> None:
        """Has users served a second later than anything before, and the samples kept."""
        await self.one.clock.advance(1)
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        for number in numbers:
            await self.one.generation.Generate(
                ask(f"{number} + 4?{text}", reference=str(number + 4), request_id=f"r{number}")
            )
        assert await self.one.router.ledger.flush()

    async def evaluate(self) -> list[str]:
        await self.one.clock.advance(1)
        return await self.evaluator.evaluate()

    async def draw(self, count: int, lease_seconds: float) -> Sequence[feedback_pb2.Sample]:
        """The samples of L1 that an evaluation would draw next, leased to somebody else."""
        plan = await self.one.feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
        cell = next(target.cell for target in plan.targets if target.cell.task == "qa")
        draw = feedback_pb2.DrawSamplesRequest(
            model=cell.model,
            task=cell.task,
            directives=["L1"],
            count=count,
            lease=duration_pb2.Duration(nanos=round(lease_seconds * 1e9) % 10**9, seconds=int(lease_seconds)),
            evaluator="hoarder",
        )
        return (await self.one.feedback.DrawSamples(draw)).samples

    async def hoard(self) -> None:
        """Puts every sample that waits out of the evaluator's reach, so that fresh ones alone are left."""
        plan = await self.one.feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
        for target in plan.targets:
            draw = feedback_pb2.DrawSamplesRequest(
                model=target.cell.model,
                task=target.cell.task,
                directives=[target.cell.directive],
                count=200,
                lease=duration_pb2.Duration(seconds=int(DAY_SECONDS)),
                evaluator="hoarder",
            )
            await self.one.feedback.DrawSamples(draw)

    async def directive(self, router: Running) -> str:
        reply = await router.generation.Decide(generation_pb2.DecideRequest(request=ask()))
        return reply.decision.directive

    async def obeyed(self, wanted: str) -> None:
        """At once by the router that was told, within 5 s by the other; by which time both have planned for it."""
        if wanted == "L0":
            assert await self.directive(self.one) == "L0", "at once"
        async with asyncio.timeout(OBEYS_WITHIN_SECONDS):
            for router in (self.one, self.other):
                while await self.directive(router) != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def opens(self, count: int = ENOUGH) -> None:
        await self.serve(count)
        events = await self.evaluate()
        assert any("opened" in event for event in events), events
        await self.obeyed("L1")

    async def stays_closed(self) -> None:
        """Whoever evaluates, also one that begins now and rebuilds all that it knows."""
        await self.evaluate()
        await self.obeyed("L0")
        async with AsyncExitStack() as stack:
            another = await evaluator(stack, self.other.address, self.other.clock, "another")
            await another.evaluate()
        await self.obeyed("L0")


Change = Callable[[World, pytest.MonkeyPatch], Awaitable[None]]


async def another_grader(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the policy: no evaluator has to notice."""
    policy = await world.one.policies.GetPolicy(policies_pb2.GetPolicyRequest(name="acme-qa"))
    policy.grader = "exact"
    await world.one.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(policy=policy, reason="stricter"))


async def other_rules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same grader: the evaluator tells."""
    rules = GRADERS["numeric"]
    revised = {**GRADERS, "numeric": replace(rules, revision=rules.revision + 1)}
    monkeypatch.setattr(common.quality.graders, "GRADERS", MappingProxyType(revised))
    await world.evaluate()


async def another_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same name, as its engine comes back with it."""
    await world.engine.stop()
    world.engine.info.model_digest = "f" * 64
    await world.engine.start()
    async with asyncio.timeout(30):
        for router in (world.one, world.other):
            while not await is_known(router, "ffff"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def is_known(router: Running, digest: str) -> bool:
    engines = (await router.reports.ListEngines(reports_pb2.ListEnginesRequest())).engines
    return all(
        engine.state == reports_pb2.ENGINE_STATE_READY and engine.model.model_digest.startswith(digest)
        for engine in engines
    )


async def another_text(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    directives = directives_pb2_grpc.DirectivesStub(world.one.channel)
    directive = await directives.GetDirective(directives_pb2.GetDirectiveRequest(name="L1"))
    directive.text = "Answer briefly, please."
    await directives.UpdateDirective(directives_pb2.UpdateDirectiveRequest(directive=directive, reason="kinder"))


async def another_mix(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluator finds it as it looks whether there is anything to do."""
    await world.one.clock.advance(3600)
    await world.serve()
    await world.one.clock.advance(2 * DAY_SECONDS - 1800)
    await world.serve(text=" Explain." + " x" * 2_000)
    events = await world.evaluate()
    assert not any("opened" in event for event in events), events


async def a_drop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 20 points: one evaluation finds it, whose few samples show an error."""
    world.sums.errs_every = 5
    await world.serve(3 * ENOUGH)
    while True:
        drawn = await world.draw(LOOKS, lease_seconds=0.5)
        await world.one.clock.advance(1)
        if any(int(sample.messages[-1].content.split()[0]) % 5 == 0 for sample in drawn):
            break
        # Ids are random, and so is the draw: the same ones, all right by chance, are put out of the way.
        await world.draw(LOOKS, lease_seconds=DAY_SECONDS)
    events = await world.evaluate()
    assert any("qa/L1 withdrawn: quality has fallen below" in event for event in events), events
    world.sums.errs_every = 0


class SetBackClock(ManualClock):
    """That shows an earlier time once somebody sets it back; what sleeps on it does not notice."""

    back = timedelta(0)

    def now(self) -> datetime:
        return super().now() - self.back


async def open_world(stack: AsyncExitStack, folder: Path, database_url: str, clock: ManualClock) -> World:
    """With L1 open, and no sample left that waits."""
    sums = Sums()
    engine = FakeEngine(sums.__call__)
    await engine.start()
    stack.push_async_callback(engine.stop)
    settings: Any = {"clock": clock, "database_url": database_url, "remembered_requests": 0}
    one, other = [
        await stack.enter_async_context(running(folder / name, {"e1": engine}, **settings)) for name in ("a", "b")
    ]
    await one.policy(directives=["L1"], floor=FLOOR, sample_share=1.0, grader="numeric")
    world = World(one, other, await evaluator(stack, one.address, clock), engine, sums)
    assert await world.directive(one) == "L0"
    await world.opens()
    await world.hoard()
    return world


@on_both_databases
@pytest.mark.parametrize("change", [another_grader, other_rules, another_model, another_text, another_mix, a_drop])
async def test_what_changed_is_closed_and_opens_on_fresh_evidence_alone(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str, change: Change
) -> None:
    world = await open_world(stack, tmp_path, database_url, ManualClock())
    await change(world, monkeypatch)
    await world.obeyed("L0")
    await world.hoard()
    await world.stays_closed()

    # An error of the drop may have come after the score that gave it away.
    await world.opens(2 * ENOUGH)
    assert world.evaluator.bounds == await rebuilt(world.other.address), "whoever begins now knows the same"


@on_both_databases
@pytest.mark.parametrize("change", [another_mix, a_drop])
async def test_a_clock_that_went_back_since_does_not_keep_it_closed(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str, change: Change
) -> None:
    """What is served once an evaluator has noticed is fresh, though its time is before that of the change."""
    clock = SetBackClock()
    world = await open_world(stack, tmp_path, database_url, clock)
    await change(world, monkeypatch)
    await world.obeyed("L0")
    await world.hoard()
    clock.back = timedelta(hours=6)
    await world.stays_closed()

    # An error of the drop may have come after the score that gave it away.
    await world.opens(2 * ENOUGH)
    assert world.evaluator.bounds == await rebuilt(world.other.address)
