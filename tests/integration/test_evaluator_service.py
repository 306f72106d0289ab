"""pith.evaluator.v1.Evaluation over real connections, and the evaluator as a process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc

from common.auth import Authenticator
from common.clock import ManualClock
from common.code_revision import code_revision
from common.errors import PithError, from_rpc_error, unavailable
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from evaluator.config import EvaluatorConfig
from evaluator.loop import EvaluationLoop
from evaluator.service import DESCRIPTOR, ROLES, WATCHES, EvaluationService
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import MODEL, FakeRouter, FakeTarget
from tests.evaluator.people import people

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 20.0


@dataclass
class Served:
    """An evaluator that serves, on a fake router."""

    router: FakeRouter
    loop: EvaluationLoop
    port: int


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def serve(stack: AsyncExitStack, tokens_file: Path | None = None) -> Served:
    bench = Bench(stack)
    router = await bench.router(
        [FakeTarget("extraction", "L2"), FakeTarget("arithmetic", "L2")], right={("arithmetic", "L2"): 0.0}
    )
    loop = await bench.evaluator(router)
    config = EvaluatorConfig(listen="127.0.0.1:0", tokens_file=tokens_file, answers_per_minute=0)
    server = GrpcServer(config, Authenticator.from_file(tokens_file), bench.metrics)
    assert bench.channel is not None
    service = EvaluationService(loop, bench.trials, *people(bench.channel, config, bench.clock, bench.metrics))
    server.add(service, DESCRIPTOR, roles=ROLES, watches=WATCHES)
    port = await server.start()
    stack.push_async_callback(server.drain, 0.0)
    return Served(router, loop, port)


async def stub(stack: AsyncExitStack, port: int, token: str | None = None) -> Any:
    channel = await stack.enter_async_context(connect(f"127.0.0.1:{port}", token=token, max_attempts=1))
    return evaluation_pb2_grpc.EvaluationStub(channel)


async def refused(call: Any) -> PithError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def events(call: Any) -> list[str]:
    return [progress.event async for progress in call]


class TestScore:
    async def test_grades_one_answer(self, stack: AsyncExitStack) -> None:
        evaluator = await stub(stack, (await serve(stack)).port)
        reply = await evaluator.Score(
            evaluation_pb2.ScoreRequest(grader="item_set", answer="Answer: b, a", reference="a, b"), timeout=TIMEOUT
        )
        assert (reply.quality, reply.judge) == (1.0, "grader:item_set@1")

    async def test_reads_the_options_from_the_prompt(self, stack: AsyncExitStack) -> None:
        evaluator = await stub(stack, (await serve(stack)).port)
        request = evaluation_pb2.ScoreRequest(
            grader="choice", answer="The correct answer is (B).", reference="mercury", prompt="(A): venus\n(B): mercury"
        )
        assert (await evaluator.Score(request, timeout=TIMEOUT)).quality == 1.0
        request.prompt = ""
        error = await refused(evaluator.Score(request, timeout=TIMEOUT))
        assert [v.field for v in error.violations] == ["reference"]

    @pytest.mark.parametrize(
        ("request_", "field", "fault"),
        [
            (
                evaluation_pb2.ScoreRequest(grader="beauty"),
                "grader",
                "must be one of alias, choice, exact, item_set, numeric, required_items, token_f1",
            ),
            (
                evaluation_pb2.ScoreRequest(grader="exact", answer="x", reference="x", prompt="x" * 262_145),
                "prompt",
                "has 262145 characters; at most 262144 are allowed",
            ),
            (
                evaluation_pb2.ScoreRequest(grader="exact", answer="x" * 262_145, reference="x"),
                "answer",
                "has 262145 characters; at most 262144 are allowed",
            ),
            (
                evaluation_pb2.ScoreRequest(grader="numeric", answer="7", reference="seven"),
                "reference",
                "reference must hold a number, got 'seven'",
            ),
        ],
    )
    async def test_names_the_field_at_fault(
        self, stack: AsyncExitStack, request_: evaluation_pb2.ScoreRequest, field: str, fault: str
    ) -> None:
        evaluator = await stub(stack, (await serve(stack)).port)
        error = await refused(evaluator.Score(request_, timeout=TIMEOUT))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert [(v.field, v.description) for v in error.violations] == [(field, fault)]


class TestRunEvaluation:
    async def test_streams_what_happens_until_the_end(self, stack: AsyncExitStack) -> None:
        served = await serve(stack)
        served.router.serve("extraction", 100)
        served.router.serve("arithmetic", 100)
        evaluator = await stub(stack, served.port)
        seen = [p async for p in evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT)]
        assert "extraction/L2 opened: bound 0.954 >= 0.950" in [p.event for p in seen]
        assert [p.done for p in seen] == [False] * (len(seen) - 1) + [True]
        assert seen[-1].samples_done == seen[-1].samples_planned == 88
        assert seen[-1].energy_joules == pytest.approx(88 * 2.0)
        assert served.router.open_directives() == {"extraction": ["L2"]}

    async def test_of_one_task(self, stack: AsyncExitStack) -> None:
        served = await serve(stack)
        served.router.serve("extraction", 100)
        served.router.serve("arithmetic", 100)
        evaluator = await stub(stack, served.port)
        await events(evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(task="arithmetic"), timeout=TIMEOUT))
        assert {score.cell.task for score in served.router.scores} == {"arithmetic"}

    async def test_a_second_caller_watches_the_same_run_and_a_cancel_leaves_it_running(
        self, stack: AsyncExitStack
    ) -> None:
        served = await serve(stack)
        served.router.serve("extraction", 100)
        served.router.gate, served.router.gate_after = asyncio.Event(), 20
        evaluator = await stub(stack, served.port)
        first = evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT)
        await anext(aiter(first))
        second = evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT)
        seen = aiter(second)
        await anext(seen)
        await served.router.at_gate.wait()
        first.cancel()
        assert (await evaluator.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=TIMEOUT)).running
        served.router.gate.set()
        assert (await events(seen))[-1] == "done: 80 samples scored, 0 not"
        assert served.loop.evaluations == 1

    async def test_without_a_router_it_is_unavailable(self, stack: AsyncExitStack) -> None:
        served = await serve(stack)
        served.router.faults["GetEvaluationPlan"] = [unavailable("DATABASE", "the database does not answer", 3.0)]
        evaluator = await stub(stack, served.port)
        error = await refused(events(evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT)))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE")
        status = await evaluator.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=TIMEOUT)
        assert not status.running and "the database does not answer" in status.last_fault


class TestState:
    async def test_before_anything_was_evaluated_costs_are_unknown(self, stack: AsyncExitStack) -> None:
        evaluator = await stub(stack, (await serve(stack)).port)
        status = await evaluator.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=TIMEOUT)
        assert not any(status.HasField(f) for f in ("energy_joules", "carbon_grams", "last_run_at"))
        assert status.answers_generated == 0
        assert status.version == code_revision()
        estimates = await evaluator.ListEstimates(evaluation_pb2.ListEstimatesRequest(), timeout=TIMEOUT)
        assert not estimates.estimates

    async def test_estimates_with_their_verdicts(self, stack: AsyncExitStack) -> None:
        served = await serve(stack)
        served.router.serve("extraction", 80)
        served.router.serve("arithmetic", 80)
        evaluator = await stub(stack, served.port)
        await events(evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT))
        status = await evaluator.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=TIMEOUT)
        assert (status.evaluations, status.samples_scored, status.reason) == (1, 88, "asked for")
        assert status.carbon_grams == pytest.approx(88 * 0.7)
        assert status.answers_generated == 88
        reply = await evaluator.ListEstimates(evaluation_pb2.ListEstimatesRequest(), timeout=TIMEOUT)
        by_task = {e.bound.cell.task: e for e in reply.estimates}
        assert by_task["extraction"].verdict == evaluation_pb2.VERDICT_OPEN
        assert by_task["arithmetic"].verdict == evaluation_pb2.VERDICT_CLOSED
        bound = by_task["extraction"].bound
        assert (bound.cell.model, bound.cell.directive, bound.samples) == (MODEL, "L2", 80)
        assert bound == served.router.bounds["extraction", "L2"]

        served.router.targets.pop()  # no policy asks for arithmetic any more
        await events(evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT))
        reply = await evaluator.ListEstimates(evaluation_pb2.ListEstimatesRequest(), timeout=TIMEOUT)
        by_task = {e.bound.cell.task: e for e in reply.estimates}
        assert by_task["arithmetic"].verdict == evaluation_pb2.VERDICT_UNSPECIFIED


async def test_clients_may_score_and_nothing_else(stack: AsyncExitStack, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(json.dumps([{"sha256": digest, "role": "client", "name": "shop"}]))
    served = await serve(stack, tokens_file=file)
    evaluator = await stub(stack, served.port, token="secret")
    scored = await evaluator.Score(
        evaluation_pb2.ScoreRequest(grader="exact", answer="a", reference="a"), timeout=TIMEOUT
    )
    assert scored.quality == 1.0
    error = await refused(evaluator.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=TIMEOUT))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    error = await refused(events(evaluator.RunEvaluation(evaluation_pb2.RunEvaluationRequest(), timeout=TIMEOUT)))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert not served.loop.running


class TestProcess:
    async def test_serves_once_the_router_is_there_and_ends_on_sigterm(self, stack: AsyncExitStack) -> None:
        router = FakeRouter(ManualClock(), [FakeTarget("extraction", "L2")])
        await router.start()
        stack.push_async_callback(router.stop)
        router.serve("extraction", 80)
        down = unavailable("DATABASE", "the database does not answer", 0.01)
        router.faults["GetEvaluationPlan"] = [down] * 3
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "evaluator",
            cwd=ROOT,
            env={
                **os.environ,
                "PITH_EVALUATOR_LISTEN": "127.0.0.1:0",
                "PITH_EVALUATOR_ROUTER": router.address,
                "PITH_EVALUATOR_METRICS_PORT": "0",
            },
            stderr=asyncio.subprocess.PIPE,
        )
        stack.callback(lambda: process.returncode is None and process.kill())
        assert process.stderr is not None
        port = None
        while True:
            entry = json.loads(await process.stderr.readline())
            port = entry.get("port", port)
            if entry["event"].startswith("done:"):
                break
        assert router.open_directives() == {"extraction": ["L2"]}
        channel = await stack.enter_async_context(connect(f"127.0.0.1:{port}"))
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        await process.stderr.read()
        assert await process.wait() == 0

    async def test_imports_neither_engine_nor_router_nor_their_libraries(self) -> None:
        code = (
            "import sys, evaluator.__main__\n"
            "print(sorted({m.partition('.')[0] for m in sys.modules}"
            " & {'torch', 'router', 'engine', 'sqlalchemy', 'scipy'}))"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out.decode().strip() == "[]"

    async def test_refuses_a_configuration_that_cannot_work(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "evaluator",
            cwd=ROOT,
            env={**os.environ, "PITH_EVALUATOR_ALPHA": "2"},
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        assert process.returncode == 2
        assert b"alpha = '2': Input should be less than 1" in err
