"""A trial over gRPC: a real evaluator, a real router with its database, and an engine that is brief when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import directives_pb2, feedback_pb2, reports_pb2

from common.auth import Authenticator
from common.clock import ManualClock
from common.errors import PithError, from_rpc_error
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from evaluator.client import RouterClient
from evaluator.config import EvaluatorConfig
from evaluator.judges.reference import ReferenceJudge
from evaluator.loop import EvaluationLoop
from evaluator.service import DESCRIPTOR, ROLES, WATCHES, EvaluationService
from evaluator.trial import Trials
from tests.evaluator.people import people
from tests.router.fake_engine import IDENTITY, Context, FakeEngine, delta, finished, stall
from tests.router.running import Running, ask, running

pb: Any = evaluation_pb2

TIMEOUT = 60.0
BRIEF = "Answer in one word"


@dataclass
class Services:
    """All that runs."""

    router: Running
    engine: FakeEngine
    evaluation: Any

    async def serve(self, count: int, **fields: Any) -> None:
        """Has users served, so that there are samples."""
        for number in range(count):
            request = ask(f"{number} + 4?", reference=str(number + 4), request_id=f"r{number}", **fields)
            await self.router.generation.Generate(request)
        await self.router.router.ledger.flush()
        self.engine.requests.clear()

    async def trial(self, text: str = BRIEF, **fields: Any) -> list[Any]:
        directive = directives_pb2.Directive(text=text)
        request = pb.TrialDirectiveRequest(**{"directive": directive, "task": "qa", "samples": 10, **fields})
        return [step async for step in self.evaluation.TrialDirective(request, timeout=TIMEOUT)]

    async def refused(self, **fields: Any) -> PithError:
        with pytest.raises(grpc.RpcError) as caught:
            await self.trial(**fields)
        return from_rpc_error(caught.value)


async def adding(engine: FakeEngine, request: Any, context: Context) -> AsyncIterator[Any]:
    """Adds right, in 40 tokens or, where it is told to be brief, in 4; wrongly where it is told to guess."""
    asked = request.messages.messages[-1].content
    total = int(asked.split()[0]) + 4 + ("Guess" in asked)
    brief = BRIEF in asked or "Guess" in asked
    yield engine.started(request)
    yield delta(f"Answer: {total}")
    yield finished(4 if brief else 40, joules=1.0 if brief else 8.0)


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    engine = FakeEngine(adding)
    await engine.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        router = await stack.enter_async_context(running(tmp_path, {"e1": engine}))
        await router.policy(sample_share=1.0, grader="numeric")
        address = await evaluator(stack, router)
        channel = await stack.enter_async_context(connect(address, max_attempts=1))
        yield Services(router, engine, evaluation_pb2_grpc.EvaluationStub(channel))


async def evaluator(stack: AsyncExitStack, router: Running) -> str:
    """An evaluator of that router that does nothing unless asked; its address."""
    config = EvaluatorConfig(router=router.address, listen="127.0.0.1:0", answers_per_minute=0)
    channel = await stack.enter_async_context(connect(config.router, max_attempts=1))
    client = RouterClient(
        channel,
        evaluator=config.name,
        back_off=ManualClock(),
        attempts=1,
        call_deadline_seconds=config.call_deadline_seconds,
        generation_deadline_seconds=config.generation_deadline_seconds,
        lease_seconds=config.lease_seconds,
    )
    metrics = Metrics("evaluator")
    loop = EvaluationLoop(config, client, ReferenceJudge(), router.clock, ManualClock(), metrics)
    trials = Trials(client, ReferenceJudge(), config.concurrency, config.alpha, loop.spending)
    server = GrpcServer(config, Authenticator.from_file(None), metrics)
    service = EvaluationService(loop, trials, *people(channel, config, router.clock, metrics))
    server.add(service, DESCRIPTOR, roles=ROLES, watches=WATCHES)
    stack.push_async_callback(loop.stop, 0.0)
    stack.push_async_callback(server.drain, 0.0)
    return f"127.0.0.1:{await server.start()}"


async def test_a_directive_is_tried_before_it_exists(services: Services) -> None:
    await services.serve(20)
    *steps, last = await services.trial(samples=10, floor=0.5)
    assert [step.samples_done for step in steps] == list(range(11))
    assert not any(step.HasField("result") for step in steps)
    result = last.result
    assert (result.samples, result.failed, result.model) == (10, 0, IDENTITY)
    assert (result.output_tokens, result.baseline_output_tokens) == (4, 40)
    assert (result.token_share.value, result.energy_share.value) == (pytest.approx(0.1), pytest.approx(0.125))
    assert (result.quality, result.baseline_quality, result.quality_share.value) == (1, 1, 1)
    assert result.recommendation == pb.RECOMMENDATION_ADOPT
    assert list(result.pairs) == []  # the texts are the same


async def test_a_bad_one_is_told_from_a_good_one(services: Services) -> None:
    await services.serve(20)
    result = (await services.trial(text="Guess", samples=20))[-1].result
    assert (result.quality, result.baseline_quality) == (0, 1)
    assert result.recommendation == pb.RECOMMENDATION_REJECT_QUALITY
    assert len(result.pairs) == 3
    assert all((pair.baseline_quality, pair.quality) == (1, 0) for pair in result.pairs)
    assert all(pair.baseline != pair.answer for pair in result.pairs)


async def test_it_leaves_nothing_behind_but_its_cost(services: Services) -> None:
    await services.serve(5)
    await services.trial(samples=5)
    report = await services.router.report(reports_pb2.DIMENSION_DIRECTIVE)
    assert (report.total.requests, report.evaluation.requests) == (5, 10)
    assert report.evaluation.energy_joules == 5 * (1.0 + 8.0)
    assert {row.directive for row in report.rows} == {"L0"}
    scores = await services.router.feedback.ListScores(feedback_pb2.ListScoresRequest())
    assert list(scores.scores) == []
    draw = feedback_pb2.DrawSamplesRequest(
        model=IDENTITY, task="qa", directives=["L1"], count=99, evaluator="another", lease={"seconds": 60}
    )
    free = (await services.router.feedback.DrawSamples(draw)).samples
    assert len(free) == 5 and all(len(sample.answers) == 1 for sample in free)


async def test_both_answers_to_a_prompt_are_drawn_with_its_seed(services: Services) -> None:
    await services.serve(4)
    await services.trial(samples=4)
    seeds: dict[str, set[int]] = {}
    for request in services.engine.requests:
        seeds.setdefault(request.messages.messages[-1].content.split()[0], set()).add(request.sampling.seed)
    assert len(services.engine.requests) == 8
    assert [len(of_prompt) for of_prompt in seeds.values()] == [1] * 4


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"directive": None}, "directive", "is missing"),
        ({"samples": 201}, "samples", "is 201; must be 1 to 200"),
        ({"floor": 0.0}, "floor", "is 0; must be above 0 and at most 1"),
        ({"floor": float("nan")}, "floor", "is nan"),
        ({"task": "x" * 129}, "task", "has 129 characters; at most 128"),
        ({"model": "x" * 129}, "model", "has 129 characters; at most 128"),
        ({"text": "User: guess"}, "directive.text", "has a role marker, 'User:', at 0"),
        ({"text": "x" * 1001}, "directive.text", "has 1,001 characters; at most 1,000"),
    ],
)
async def test_what_cannot_be_tried_is_refused_by_field_and_costs_nothing(
    services: Services, fields: Any, field: str, fault: str
) -> None:
    await services.serve(3)
    error = await services.refused(**fields)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]
    assert fault in error.violations[0].description
    assert services.engine.requests == []


async def test_a_task_without_samples_is_not_found(services: Services) -> None:
    await services.serve(2, opt_out=True)
    assert (await services.refused()).code is grpc.StatusCode.NOT_FOUND
    await services.router.generation.Generate(ask("0 + 4?", reference="4"))
    await services.router.router.ledger.flush()
    assert (await services.trial())[-1].result.samples == 1
    assert (await services.refused(task="poems")).code is grpc.StatusCode.NOT_FOUND
    assert (await services.refused(model="huge")).code is grpc.StatusCode.NOT_FOUND
    assert (await services.trial(model="small"))[-1].result.model == IDENTITY


async def test_a_cancel_ends_what_the_engine_does_for_it(services: Services) -> None:
    await services.serve(10)
    services.engine.script = stall("started", delta("I"))
    services.engine.asked.clear()
    directive = directives_pb2.Directive(text=BRIEF)
    call = services.evaluation.TrialDirective(pb.TrialDirectiveRequest(directive=directive, task="qa"))
    assert (await call.read()).samples_planned == 10
    await services.engine.asked.wait()
    call.cancel()
    await services.engine.cancelled.wait()
