"""Bad input at every door of real services: the right code, the field named, nothing written, and all live on.

What one service alone refuses is in its own tests. Here are the doors behind doors (what only the engine can refuse, as
a client of the router sees it), what must hold at all three services alike, and what many callers at once may do.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import structlog
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import feedback_pb2, generation_pb2, policies_pb2, reports_pb2

from common.auth import Authenticator
from common.clock import ManualClock
from common.errors import from_rpc_error
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from engine.__main__ import build_server
from engine.config import EngineConfig
from engine.engine import Engine
from evaluator.client import RouterClient
from evaluator.config import EvaluatorConfig
from evaluator.judges.reference import ReferenceJudge
from evaluator.loop import EvaluationLoop
from evaluator.service import DESCRIPTOR, ROLES, WATCHES, EvaluationService
from evaluator.trial import Trials
from tests.engine.tiny_model import write_model
from tests.evaluator.people import people
from tests.router.running import Running, ask, running

CONTEXT_TOKENS = 200
SECRET = "the-customer-said-this"
MEBIBYTE = 1 << 20
UNLIMITED = [("grpc.max_send_message_length", -1)]
"""Of a client that checks nothing itself."""


@dataclass
class Doors:
    """The three services, and channels to each."""

    router: Running
    engine: Engine
    channels: dict[str, grpc.aio.Channel]

    def __post_init__(self) -> None:
        self.inference = inference_pb2_grpc.InferenceStub(self.channels["engine"])
        self.control = control_pb2_grpc.ControlStub(self.channels["engine"])
        self.evaluation = evaluation_pb2_grpc.EvaluationStub(self.channels["evaluator"])

    async def until_idle(self) -> None:
        """Every sequence has left the engine, and every cache block is free. Each turn is a call."""
        while True:
            load = await self.control.GetLoad(control_pb2.GetLoadRequest())
            if load.running == load.waiting == 0 and load.kv_blocks_free == load.kv_blocks_total:
                return

    async def billed(self) -> int:
        """Requests in the ledger."""
        requests: int = (await self.router.report()).total.requests
        return requests


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny", seed=1, max_position_embeddings=CONTEXT_TOKENS, eos_token_id=None
    )


@pytest.fixture
async def doors(model_path: Path, tmp_path: Path) -> AsyncIterator[Doors]:
    async with AsyncExitStack() as stack:
        config = EngineConfig(model_path=model_path, listen="127.0.0.1:0", max_output_tokens=CONTEXT_TOKENS)
        engine = Engine(config)
        served = build_server(config, engine, Metrics("engine"))
        stack.callback(engine.stop)
        address = f"127.0.0.1:{await served.start()}"
        stack.push_async_callback(served.drain, 0.0)
        place: Any = SimpleNamespace(address=address)
        router = await stack.enter_async_context(running(tmp_path, {"e1": place}))
        judge_address = await evaluator(stack, router)
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(target, options=UNLIMITED))
            for name, target in (("router", router.address), ("engine", address), ("evaluator", judge_address))
        }
        yield Doors(router, engine, channels)


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
    address = f"127.0.0.1:{await server.start()}"
    stack.push_async_callback(server.drain, 0.0)
    stack.push_async_callback(loop.stop, 0.0)
    return address


def user(content: str) -> dict[str, Any]:
    return {"messages": [text_pb2.Message(role=text_pb2.ROLE_USER, content=content)]}


def generate(**fields: Any) -> Callable[[Doors], Awaitable[Any]]:
    return lambda doors: doors.router.generation.Generate(ask(SECRET, **fields))


def stream(**fields: Any) -> Callable[[Doors], Awaitable[Any]]:
    return lambda doors: doors.router.generation.StreamGenerate(ask(SECRET, **fields)).read()


def raw(door: str, method: str, data: bytes = b"\xff\xff\xff") -> Callable[[Doors], Awaitable[Any]]:
    def call(doors: Doors) -> Awaitable[Any]:
        return doors.channels[door].unary_unary(method)(data)

    return call


def score(**fields: Any) -> Callable[[Doors], Awaitable[Any]]:
    return lambda doors: doors.evaluation.Score(evaluation_pb2.ScoreRequest(**fields))


def reported(**fields: Any) -> Callable[[Doors], Awaitable[Any]]:
    request = feedback_pb2.ReportQualityRequest(evaluator="test", **fields)
    return lambda doors: doors.router.feedback.ReportQuality(request)


INVALID = grpc.StatusCode.INVALID_ARGUMENT
TOO_LARGE = b"\x0a" + b"\x80\x80\x80\x0a" + b"x" * (20 * MEBIBYTE)
"""A first field of twenty mebibytes of text."""
UNDECODABLE = (INVALID, "UNDECODABLE", "")
ABOVE_16_MIB = (grpc.StatusCode.RESOURCE_EXHAUSTED, "UNSPECIFIED", "")

# Door, input: the call, code, reason, field at fault.
TABLE: dict[str, tuple[Callable[[Doors], Awaitable[Any]], tuple[grpc.StatusCode, str, str]]] = {
    # Only the engine can know; its words and its field reach the router's caller.
    "router, prompt of too many tokens": (
        generate(**user(SECRET + "x" * CONTEXT_TOKENS)),
        (INVALID, "INVALID_FIELDS", "messages"),
    ),
    "router stream, prompt of too many tokens": (
        stream(**user(SECRET + "x" * CONTEXT_TOKENS)),
        (INVALID, "INVALID_FIELDS", "messages"),
    ),
    "router, prompt that the template refuses": (
        generate(**user("refuse me")),
        (INVALID, "INVALID_FIELDS", "messages"),
    ),
    "router, bias beyond the vocabulary": (
        generate(sampling=text_pb2.Sampling(logit_bias={4_000_000: 1.0})),
        (INVALID, "INVALID_FIELDS", "sampling.logit_bias"),
    ),
    "router stream, unknown model": (
        stream(model="nope"),
        (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", ""),
    ),
    "router, another digest of the model": (
        generate(model="tiny@000000000000"),
        (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", ""),
    ),
    "router, ten megabytes where an id belongs": (
        generate(task="x" * 10_000_000),
        (INVALID, "INVALID_FIELDS", "task"),
    ),
    "router, ten megabytes of reference": (
        generate(reference="x" * 10_000_000),
        (INVALID, "INVALID_FIELDS", "reference"),
    ),
    "router, negative infinity as temperature": (
        generate(sampling=text_pb2.Sampling(temperature=float("-inf"))),
        (INVALID, "INVALID_FIELDS", "sampling.temperature"),
    ),
    "router, infinite top_p": (
        generate(sampling=text_pb2.Sampling(top_p=float("inf"))),
        (INVALID, "INVALID_FIELDS", "sampling.top_p"),
    ),
    "router, explanation of NaN": (
        lambda doors: doors.router.policies.Explain(
            policies_pb2.ExplainRequest(request=ask(sampling=text_pb2.Sampling(temperature=float("nan"))))
        ),
        (INVALID, "INVALID_FIELDS", "sampling.temperature"),
    ),
    "router, decision without a request": (
        lambda doors: doors.router.generation.Decide(generation_pb2.DecideRequest()),
        (INVALID, "INVALID_FIELDS", "messages"),
    ),
    "router, report by an unknown dimension": (
        lambda doors: doors.router.reports.GetReport(reports_pb2.GetReportRequest(dimensions=[99])),  # type: ignore[list-item]
        (INVALID, "INVALID_FIELDS", "dimensions[0]"),
    ),
    "router, score that is no number": (
        reported(
            scores=[
                feedback_pb2.SampleScores(
                    sample_id="s",
                    scores=[
                        feedback_pb2.Score(directive="L1", directive_revision=1, judge="j", quality=float("nan")),
                    ],
                )
            ]
        ),
        (INVALID, "INVALID_FIELDS", "scores[0].scores[0].quality"),
    ),
    # Every service, whatever the method.
    "router generation, bytes": (raw("router", "/pith.router.v1.Generation/StreamGenerate"), UNDECODABLE),
    "router policies, bytes": (raw("router", "/pith.router.v1.Policies/UpdatePolicy"), UNDECODABLE),
    "router feedback, bytes": (raw("router", "/pith.router.v1.Feedback/ReportQuality"), UNDECODABLE),
    "router reports, bytes": (raw("router", "/pith.router.v1.Reports/GetReport"), UNDECODABLE),
    "router, text that is not UTF-8": (
        raw("router", "/pith.router.v1.Generation/Generate", b"\x0a\x02\xff\xfe"),
        UNDECODABLE,
    ),
    "engine control, bytes": (raw("engine", "/pith.engine.v1.Control/Abort"), UNDECODABLE),
    "evaluator, bytes": (raw("evaluator", "/pith.evaluator.v1.Evaluation/Score"), UNDECODABLE),
    "evaluator stream, bytes": (raw("evaluator", "/pith.evaluator.v1.Evaluation/RunEvaluation"), UNDECODABLE),
    "router, twenty mebibytes": (raw("router", "/pith.router.v1.Generation/Generate", TOO_LARGE), ABOVE_16_MIB),
    "engine, twenty mebibytes": (raw("engine", "/pith.engine.v1.Inference/Generate", TOO_LARGE), ABOVE_16_MIB),
    "evaluator, twenty mebibytes": (raw("evaluator", "/pith.evaluator.v1.Evaluation/Score", TOO_LARGE), ABOVE_16_MIB),
    "evaluator, nothing": (score(), (INVALID, "INVALID_FIELDS", "grader")),
    "evaluator, ten megabytes": (
        score(grader="exact", answer="x" * 10_000_000, reference="x"),
        (INVALID, "INVALID_FIELDS", "answer"),
    ),
}


@pytest.mark.parametrize("case", TABLE)
async def test_the_right_code_and_field_and_nothing_written(doors: Doors, case: str) -> None:
    call, expected = TABLE[case]
    with structlog.testing.capture_logs() as log, pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(doors)
    told = from_rpc_error(raised.value)
    fields = [violation.field for violation in told.violations] or [""]
    assert (told.code, told.reason, *fields) == expected
    assert len(told.message) < 1_000, "an error holds no megabytes of what was sent"
    # What gRPC itself refuses reaches no handler.
    assert expected == ABOVE_16_MIB or any(line["event"] == "call" for line in log)
    assert not [line for line in log if line.get("exc_info")], "a caller's fault is no traceback"
    assert SECRET not in json.dumps(log, default=str)

    await doors.until_idle()
    assert await doors.billed() == 0
    answer = await doors.router.generation.Generate(ask("Hi", limits=text_pb2.Limits(max_output_tokens=2)))
    assert answer.finished.usage.output_tokens == 2


async def test_of_fifty_who_ask_the_same_at_once_one_is_answered_and_billed(doors: Doors) -> None:
    request = ask("Hi", request_id="same", limits=text_pb2.Limits(max_output_tokens=50))

    async def outcome() -> str:
        try:
            return "replayed" if (await doors.router.generation.Generate(request)).started.replayed else "answered"
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason

    outcomes = Counter(await asyncio.gather(*(outcome() for _ in range(50))))
    assert outcomes["answered"] == 1
    assert outcomes.keys() <= {"answered", "replayed", "REQUEST_IN_FLIGHT"}
    assert await outcome() == "replayed"
    assert await doors.billed() == 1


async def test_a_storm_of_cancels_frees_engine_and_ids(doors: Doors) -> None:
    async def begin_and_cancel(name: str) -> None:
        call = doors.router.generation.StreamGenerate(ask("Hi", request_id=name))
        assert (await call.read()).HasField("started")
        call.cancel()

    names = [f"r{number}" for number in range(40)]
    await asyncio.gather(*map(begin_and_cancel, names))
    await doors.until_idle()
    limits = text_pb2.Limits(max_output_tokens=1)
    for name in names[:5]:
        answer = await doors.router.generation.Generate(ask("Hi", request_id=name, limits=limits))
        assert not answer.started.replayed
    # What was broken off is told apart: its tokens are known, its energy is not.
    total = (await doors.router.report()).total
    assert total.requests_without_energy == len(names)
    assert total.requests == len(names) + 5


async def test_more_than_the_engine_holds_are_told_when_to_come_back(doors: Doors) -> None:
    async def outcome() -> str:
        try:
            await doors.router.generation.Generate(ask("Hi", limits=text_pb2.Limits(max_output_tokens=2)))
        except grpc.aio.AioRpcError as error:
            fault = from_rpc_error(error)
            assert fault.retry_after_seconds is not None
            return fault.code.name
        return "OK"

    outcomes = Counter(await asyncio.gather(*(outcome() for _ in range(500))))
    assert outcomes.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
    await doors.until_idle()
    assert await doors.billed() == outcomes["OK"] > 0


async def test_a_client_without_time_gets_nothing_and_pays_nothing(doors: Doors) -> None:
    request = ask("Hi", request_id="late")
    for call in (
        lambda: doors.router.generation.Generate(request, timeout=0),
        lambda: doors.inference.Generate(inference_pb2.GenerateRequest(text="Hi"), timeout=0),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await doors.until_idle()
    assert await doors.billed() == 0
