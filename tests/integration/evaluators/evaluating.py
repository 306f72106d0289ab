"""Samples that stay undecided however many are scored, evaluators in the test's process, and what came of it all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import grpc
import psycopg
from pith.evaluator.v1 import evaluation_pb2_grpc
from pith.router.v1 import feedback_pb2, feedback_pb2_grpc, generation_pb2_grpc, policies_pb2, policies_pb2_grpc

from common.clock import ManualClock
from common.grpc_client import connect
from common.metrics import Metrics
from common.quality.bound import QualityBound
from evaluator.client import RouterClient
from evaluator.config import EvaluatorConfig
from evaluator.judges.base import Judgement, Unscored
from evaluator.judges.reference import ReferenceJudge
from evaluator.knowledge import Knowledge
from evaluator.loop import EvaluationLoop
from evaluator.samples import Sample
from router.convert import to_bound
from tests.integration.processes import ServiceProcess, listening
from tests.router.fake_engine import Context, FakeEngine, Message, delta, finished
from tests.router.running import ask

DIRECTIVE = "L1"
LEASE_SECONDS = 600.0
BATCH = 8


class Arithmetic:
    """Adds as asked. Told to be brief, it errs in 1 of 40, which fewer than 80 samples neither open nor close, whatever
    their order.

    Attributes:
        held: While it is set, answers wait for `go`; `waiting` of them do.
    """

    def __init__(self) -> None:
        self.held = False
        self.go = asyncio.Event()
        self.waiting = 0
        self._changed = asyncio.Event()

    async def __call__(self, engine: FakeEngine, request: Any, context: Context) -> AsyncIterator[Message]:
        asked = request.messages.messages[-1].content
        number, brief = int(asked.split()[0]), "briefly" in asked
        if self.held:
            self.waiting += 1
            self._changed.set()
            await self.go.wait()
        errs = brief and number % 40 == 3
        yield engine.started(request)
        yield delta(f"Answer: {number + 4 + errs}")
        yield finished(4 if brief else 40, joules=1.0 if brief else 8.0)

    async def until_waiting(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.waiting < count:
                self._changed.clear()
                await self._changed.wait()


class RecordingJudge(ReferenceJudge):
    """Grades, and knows what it has graded."""

    def __init__(self) -> None:
        self.judged: Counter[str] = Counter()

    async def judge(self, sample: Sample, answer: str, baseline: str) -> Judgement | Unscored:
        self.judged[sample.sample_id] += 1
        return await super().judge(sample, answer, baseline)


class Evaluator:
    """One in this process, that evaluates when it is told to. `back_off` is what its retries wait on."""

    def __init__(self, channel: grpc.aio.Channel, clock: ManualClock, name: str, attempts: int) -> None:
        self.channel = channel
        self.back_off = ManualClock()
        self.judge = RecordingJudge()
        self.config = EvaluatorConfig(name=name, batch_samples=BATCH, lease_seconds=LEASE_SECONDS, answers_per_minute=0)
        self.client = client(channel, self.back_off, name, attempts)
        self.loop = EvaluationLoop(self.config, self.client, self.judge, clock, self.back_off, Metrics("evaluator"))

    async def evaluate(self) -> list[str]:
        """To its end. Raises what cut it short."""
        return [progress.event async for progress in self.loop.start().progress.watch()]

    async def try_again(self) -> None:
        """Once it waits before its next try, and its router can be reached."""
        await self.back_off.asleep()
        await self.channel.channel_ready()
        await self.back_off.advance(30.0)

    @property
    def bounds(self) -> list[QualityBound | None]:
        return _bounds(self.loop.knowledge)


def client(channel: grpc.aio.Channel, back_off: ManualClock, name: str, attempts: int = 1) -> RouterClient:
    return RouterClient(
        channel,
        evaluator=name,
        back_off=back_off,
        attempts=attempts,
        call_deadline_seconds=30.0,
        generation_deadline_seconds=60.0,
        lease_seconds=LEASE_SECONDS,
    )


async def evaluator(
    stack: AsyncExitStack, address: str, clock: ManualClock, name: str = "evaluator", attempts: int = 3
) -> Evaluator:
    """Of the router at that address, until the stack ends."""
    channel = await stack.enter_async_context(connect(address, max_attempts=1))
    made = Evaluator(channel, clock, name, attempts)
    stack.push_async_callback(made.loop.stop, 0.0)
    return made


@asynccontextmanager
async def evaluator_process(address: str) -> AsyncIterator[tuple[ServiceProcess, Any]]:
    """Of the router at that address; evaluates when it is told to, and when it starts."""
    settings = {"router": address, "lease_seconds": LEASE_SECONDS, "batch_samples": BATCH, "poll_seconds": 1e6}
    async with (
        listening("evaluator", listen="127.0.0.1:0", **settings) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        yield service, evaluation_pb2_grpc.EvaluationStub(channel)


async def rebuilt(address: str) -> list[QualityBound | None]:
    """The bounds of an evaluator that begins now, from nothing but what the router keeps."""
    async with connect(address, max_attempts=1) as channel:
        config = EvaluatorConfig()
        knowledge = Knowledge(client(channel, ManualClock(), "new"), ReferenceJudge(), config.alpha, config.drift_alpha)
        await knowledge.ensure()
        return _bounds(knowledge)


def _bounds(knowledge: Knowledge) -> list[QualityBound | None]:
    return [knowledge.estimates.bound(cell) for cell in knowledge.estimates.cells()]


async def in_force(channel: grpc.aio.Channel) -> list[QualityBound]:
    """The bounds by which a router decides."""
    stub = feedback_pb2_grpc.FeedbackStub(channel)
    plan = await stub.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
    return [to_bound(target.bound) for target in plan.targets if target.HasField("bound")]


def timeless(bounds: Sequence[QualityBound | None]) -> list[QualityBound | None]:
    """Without their times: a bound in force is a report older than the scores that it rests on."""
    return [bound and replace(bound, updated_at=datetime.min, since=None) for bound in bounds]


def policy() -> policies_pb2.Policy:
    return policies_pb2.Policy(
        name="acme-qa",
        tenant="acme",
        task="qa",
        mode=policies_pb2.MODE_ON,
        floor=0.95,
        directives=[DIRECTIVE],
        holdback_share=0.0,
        sample_share=1.0,
        grader="numeric",
    )


async def serve(channels: Sequence[grpc.aio.Channel], count: int) -> None:
    """Has users served, at the routers in turn, and waits for the samples; the policy must be in force at all."""
    stubs = [generation_pb2_grpc.GenerationStub(channel) for channel in channels]
    at_once = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with at_once:
            request = ask(f"{number} + 4?", reference=str(number + 4), request_id=f"r{number}")
            await stubs[number % len(stubs)].Generate(request)

    await asyncio.gather(*map(one, range(count)))
    feedback = feedback_pb2_grpc.FeedbackStub(channels[0])

    async def kept() -> int:
        plan = await feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
        return sum(target.samples_waiting for target in plan.targets)

    async with asyncio.timeout(30):
        while await kept() < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_waiting(url: str, statement: str) -> None:
    """Until some transaction of this PostgreSQL database waits for another's lock with a statement that begins so."""
    query = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, %s)"
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(60):
        while await (await connection.execute(query, (statement,))).fetchone() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def create_policy(channel: grpc.aio.Channel) -> None:
    request = policies_pb2.CreatePolicyRequest(policy=policy(), reason="test")
    await policies_pb2_grpc.PoliciesStub(channel).CreatePolicy(request)


async def scored(channel: grpc.aio.Channel) -> Counter[tuple[str, str, int]]:
    """How often each (sample, directive, revision) is among the scores; read in pages, as an evaluator does."""
    feedback = feedback_pb2_grpc.FeedbackStub(channel)
    found: Counter[tuple[str, str, int]] = Counter()
    token = ""
    while True:
        reply = await feedback.ListScores(feedback_pb2.ListScoresRequest(page_size=7, page_token=token))
        found.update((s.sample_id, s.cell.directive, s.score.directive_revision) for s in reply.scores)
        token = reply.next_page_token
        if not token:
            return found


def once_each(found: Counter[tuple[str, str, int]], count: int) -> bool:
    """Whether so many samples have a score, none of them two."""
    samples = {sample_id for sample_id, _, _ in found}
    return len(samples) == len(found) == count and set(found.values()) <= {1}
