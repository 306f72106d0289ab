"""Engine, router and evaluator as three processes with the shipped model: serve, judge, open, close, drain."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import field_mask_pb2
from pith.common.v1 import text_pb2
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import (
    directives_pb2,
    directives_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)

from deploy.stack import Stack
from engine.demo.tasks import Example, examples

pytestmark = pytest.mark.timeout(300)

TASK = "office"
FLOOR = 0.8
# Its own looks are an hour apart: what is evaluated, and when, is what the test asks for.
EVALUATOR = {"PITH_EVALUATOR_POLL_SECONDS": "3600"}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path, settings={"evaluator": EVALUATOR})
    await stack.start()
    yield stack
    await stack.stop()


class Client:
    """A backend service and an administrator, by generated stubs."""

    def __init__(self, router: grpc.aio.Channel, evaluator: grpc.aio.Channel) -> None:
        self.generation = generation_pb2_grpc.GenerationStub(router)
        self.policies = policies_pb2_grpc.PoliciesStub(router)
        self.directives = directives_pb2_grpc.DirectivesStub(router)
        self.reports = reports_pb2_grpc.ReportsStub(router)
        self.evaluation = evaluation_pb2_grpc.EvaluationStub(evaluator)
        self._ids = itertools.count()

    def request(self, example: Example) -> generation_pb2.GenerateRequest:
        return generation_pb2.GenerateRequest(
            request_id=f"request-{next(self._ids)}",
            tenant="acme",
            task=TASK,
            messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content=example.prompt)],
            reference=example.reference,
        )

    async def serve(self, questions: list[Example]) -> list[generation_pb2.GenerateResponse]:
        return list(await asyncio.gather(*(self.generation.Generate(self.request(q)) for q in questions)))

    async def evaluate(self) -> list[str]:
        """Runs an evaluation to its end and returns what happened in it."""
        stream = self.evaluation.RunEvaluation(evaluation_pb2.RunEvaluationRequest())
        return [progress.event async for progress in stream if progress.event]

    async def trial(self, text: str, samples: int) -> evaluation_pb2.TrialResult:
        request = evaluation_pb2.TrialDirectiveRequest(
            directive=directives_pb2.Directive(text=text), task=TASK, samples=samples, floor=FLOOR
        )
        return [step async for step in self.evaluation.TrialDirective(request)][-1].result

    async def directive_of(self, question: Example) -> str:
        explained = await self.policies.Explain(policies_pb2.ExplainRequest(request=self.request(question)))
        return str(explained.decision.directive)


def questions(task: str, count: int, seed: int) -> list[Example]:
    return list(itertools.islice(examples(task, "test", seed), count))


async def test_a_day_in_the_life(stack: Stack) -> None:
    async with (
        grpc.aio.insecure_channel(stack.addresses["router"]) as router,
        grpc.aio.insecure_channel(stack.addresses["evaluator"]) as evaluator,
    ):
        client = Client(router, evaluator)
        await client.policies.CreatePolicy(
            policies_pb2.CreatePolicyRequest(
                policy=policies_pb2.Policy(
                    name="office",
                    tenant="acme",
                    task=TASK,
                    mode=policies_pb2.MODE_ON,
                    floor=FLOOR,
                    floor_kind=policies_pb2.FLOOR_KIND_RELATIVE,
                    directives=["L2"],
                    sample_share=1.0,
                    holdback_share=0.0,
                    grader="exact",
                )
            )
        )

        # Nothing is known, so nothing is shortened.
        steady = questions("extraction", 60, seed=1)
        before = await client.serve(steady)
        assert {reply.started.decision.directive for reply in before} == {"L0"}
        assert all(reply.finished.HasField("energy") and reply.finished.HasField("carbon") for reply in before)

        # Words that are no directive yet are tried on what was served.
        tried = await client.trial("Always answer very briefly", samples=30)
        assert (tried.samples, tried.failed, tried.baseline_quality > 0.5) == (30, 0, True)
        assert tried.token_share.upper < 1 and tried.energy_share.upper < 1
        assert tried.recommendation == evaluation_pb2.RECOMMENDATION_ADOPT, tried.explanation

        # Brevity costs this work nothing: the evaluator finds that out and the router serves it.
        await client.evaluate()
        assert await client.directive_of(steady[0]) == "L2"
        after = await client.serve(questions("extraction", 20, seed=2))
        assert {reply.started.decision.directive for reply in after} == {"L2"}
        assert sum(reply.finished.usage.output_tokens for reply in after) / len(after) < (
            0.8 * sum(reply.finished.usage.output_tokens for reply in before) / len(before)
        )

        # The same label now carries sums, which the model cannot do in its head: the planted drop.
        await client.serve(questions("arithmetic", 60, seed=3))
        await client.evaluate()
        assert await client.directive_of(steady[0]) == "L0"

        report: reports_pb2.Report = await client.reports.GetReport(
            reports_pb2.GetReportRequest(dimensions=[reports_pb2.DIMENSION_DIRECTIVE])
        )
        assert report.total.requests == 140
        assert {row.directive: row.requests for row in report.rows} == {"L0": 60, "L2": 80}
        assert report.evaluation.requests > 0
        assert report.total.requests_without_energy == 0

        # An edited directive is another directive: closed until it has been judged.
        directive = await client.directives.GetDirective(directives_pb2.GetDirectiveRequest(name="L2"))
        directive.text = "Answer in as few words as you can"
        edited = await client.directives.UpdateDirective(
            directives_pb2.UpdateDirectiveRequest(
                directive=directive, update_mask=field_mask_pb2.FieldMask(paths=["text"]), reason="test"
            )
        )
        assert edited.revision == 2


async def test_a_drain_lets_answers_end_and_exits_clean(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.addresses["router"]) as channel:
        generation = generation_pb2_grpc.GenerationStub(channel)
        message = text_pb2.Message(role=text_pb2.ROLE_USER, content=questions("counting", 1, seed=4)[0].prompt)
        stream = generation.StreamGenerate(generation_pb2.GenerateRequest(tenant="acme", messages=[message]))
        events = aiter(stream)
        assert (await anext(events)).HasField("started")
        stack.process("router").send_signal(signal.SIGTERM)
        rest = [event async for event in events]
        assert rest[-1].HasField("finished")
        assert rest[-1].finished.usage.output_tokens > 0
    assert await asyncio.to_thread(stack.process("router").wait) == 0
    assert await stack.stop() == {"evaluator": 0, "router": 0, "engine": 0}


async def test_a_lost_engine_is_said_and_found_again(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.addresses["router"]) as channel:
        generation = generation_pb2_grpc.GenerationStub(channel)
        message = text_pb2.Message(role=text_pb2.ROLE_USER, content=questions("counting", 1, seed=4)[0].prompt)
        request = generation_pb2.GenerateRequest(tenant="acme", messages=[message])
        first = await generation.Generate(request)
        stack.process("engine").kill()
        await asyncio.to_thread(stack.process("engine").wait)
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await generation.Generate(request)
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE

        stack.start_service("engine")
        async with asyncio.timeout(60):
            await stack.engine_ready()
        request.sampling.seed = first.started.seed
        again = await generation.Generate(request)
        assert again.text == first.text
