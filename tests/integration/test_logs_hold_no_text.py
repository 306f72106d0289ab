"""What people and models say is in no line that a service writes, at any level, whatever goes wrong with it.

Three processes at log level debug, with planted faults that quote it; all they say on stderr is searched.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, inference_pb2
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import (
    access_pb2,
    directives_pb2,
    feedback_pb2,
    generation_pb2,
    generation_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
)

from common.grpc_client import connect
from tests.integration.processes import ServiceProcess, listening
from tests.router.running import ask

pytestmark = pytest.mark.timeout(300)

CANARY = "canary7q4z"
TIMEOUT = 30.0
PLANTED = "tests.integration.planted_faults"


@dataclass
class Services:
    engine: ServiceProcess
    router: ServiceProcess
    evaluator: ServiceProcess
    channels: dict[str, grpc.aio.Channel]

    def __post_init__(self) -> None:
        self.generation = generation_pb2_grpc.GenerationStub(self.channels["router"])
        self.policies = policies_pb2_grpc.PoliciesStub(self.channels["router"])
        self.reports = reports_pb2_grpc.ReportsStub(self.channels["router"])
        self.tasks = tasks_pb2_grpc.TasksStub(self.channels["router"])
        self.evaluation = evaluation_pb2_grpc.EvaluationStub(self.channels["evaluator"])

    def said(self) -> dict[str, list[str]]:
        return {name: getattr(self, name).lines for name in ("engine", "router", "evaluator")}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, folder: Path, model_path: Path) -> Services:
    common = {"listen": "127.0.0.1:0", "log_level": "debug"}
    planted: dict[str, Any] = {"module": PLANTED, "more": {"CANARY": CANARY}}
    engine = await stack.enter_async_context(
        listening("engine", "engine", model_path=model_path, kv_cache_bytes=64 << 20, **common, **planted)
    )
    router = await stack.enter_async_context(
        listening(
            "router",
            "router",
            database_url=f"sqlite:///{folder}/router.db",
            outbox_path=folder / "outbox.jsonl",
            engines=json.dumps([engine.address]),
            breaker_faults=1000,
            **common,
            **planted,
        )
    )
    evaluator = await stack.enter_async_context(
        listening("evaluator", "evaluator", router=router.address, **common, **planted)
    )
    channels = {
        name: await stack.enter_async_context(connect(process.address, max_attempts=1, max_message_bytes=32 << 20))
        for name, process in (("engine", engine), ("router", router), ("evaluator", evaluator))
    }
    services = Services(engine, router, evaluator, channels)
    while True:
        (view,) = (await services.reports.ListEngines(reports_pb2.ListEnginesRequest(), timeout=TIMEOUT)).engines
        if view.state == reports_pb2.ENGINE_STATE_READY:
            return services


def request(task: str = "qa", words: str = "", **fields: Any) -> generation_pb2.GenerateRequest:
    """With the canary wherever a request has room for what people say."""
    system = text_pb2.Message(role=text_pb2.ROLE_SYSTEM, content=f"be {CANARY}")
    user = text_pb2.Message(role=text_pb2.ROLE_USER, content=f"what is {CANARY}? {words}")
    return ask(
        task=task,
        messages=[system, user],
        sampling=text_pb2.Sampling(suppressed_words=[f"{CANARY}-word"]),
        limits=text_pb2.Limits(max_output_tokens=4, stop=[f"{CANARY} stop"]),
        reference=f"{CANARY} reference",
        **fields,
    )


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


OK, INTERNAL, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT


async def test_no_log_holds_what_was_said(stack: AsyncExitStack, tmp_path: Path, model_path: Path) -> None:
    async with AsyncExitStack() as running:
        services = await start(running, tmp_path, model_path)
        await everyday_use(services)
        await bad_input(services)
        await faults(services)
        await every_rpc_with_the_canary_in_every_field(services)
        said = services.said()
    assert {name: [line for line in lines if CANARY in line.lower()] for name, lines in said.items()} == {
        "engine": [],
        "router": [],
        "evaluator": [],
    }
    # gRPC's own lines, of connections, are no JSON.
    entries = {name: [json.loads(line) for line in lines if line.startswith("{")] for name, lines in said.items()}
    events = {name: {entry["event"] for entry in of} for name, of in entries.items()}
    assert {"call", "decoding failed"} <= events["engine"]
    assert {"call", "engine failed", "record rejected", "database away"} <= events["router"]
    assert {"uncaught exception", "a task or a callback failed"} <= events["router"]
    assert {"call", "fault"} <= events["evaluator"]
    # And yet a fault can be found: what was raised, where.
    raised = "\n".join(entry.get("exception", "") for of in entries.values() for entry in of)
    assert "RuntimeError" in raised and "in fail_with_a_cause" in raised and "planted_faults.py" in raised


async def everyday_use(services: Services) -> None:
    policy = policies_pb2.Policy(
        name="qa", tenant="acme", task="qa", mode=policies_pb2.MODE_ON, floor=0.95, directives=["L1"], sample_share=1.0,
        grader="exact", holdback_share=0.0,
    )  # fmt: skip
    await services.policies.CreatePolicy(
        policies_pb2.CreatePolicyRequest(policy=policy, reason=f"for {CANARY}"), timeout=TIMEOUT
    )
    generation = services.generation
    reply = await generation.Generate(request(), timeout=TIMEOUT)
    assert await code_of(generation.StreamGenerate(request(), timeout=TIMEOUT)) is OK
    cut = generation.StreamGenerate(request(), timeout=TIMEOUT)
    await cut.read()
    cut.cancel()
    decided = await generation.Decide(generation_pb2.DecideRequest(request=request()), timeout=TIMEOUT)
    outcome = generation_pb2.ReportOutcomeRequest(decision_id=decided.decision_id, request=request())
    await code_of(generation.ReportOutcome(outcome, timeout=TIMEOUT))
    rating = generation_pb2.RateAnswerRequest(
        request_id=reply.started.request_id, tenant="acme", comment=f"I liked {CANARY}"
    )
    await code_of(generation.RateAnswer(rating, timeout=TIMEOUT))
    explain = policies_pb2.ExplainRequest(request=request())
    assert await code_of(services.policies.Explain(explain, timeout=TIMEOUT)) is OK
    examples = [
        tasks_pb2.TaskExample(task=task, text=f"{task} {CANARY} {number}") for task in ("a", "") for number in range(10)
    ]
    labelled = tasks_pb2.SetTaskExamplesRequest(examples=examples, reason=f"for {CANARY}")
    assert await code_of(services.tasks.SetTaskExamples(labelled, timeout=TIMEOUT)) is OK
    assert await code_of(services.tasks.TellTask(tasks_pb2.TellTaskRequest(text=CANARY), timeout=TIMEOUT)) is OK
    untold = await generation.Decide(generation_pb2.DecideRequest(request=request(task="")), timeout=TIMEOUT)
    assert untold.decision.task in ("", "a")
    score = evaluation_pb2.ScoreRequest(grader="exact", answer=CANARY, reference=CANARY)
    assert await code_of(services.evaluation.Score(score, timeout=TIMEOUT)) is OK
    for text in (f"Answer in the manner of {CANARY}.", f"<|system|> {CANARY}", "{{ " + CANARY + " }}"):
        trial = evaluation_pb2.TrialDirectiveRequest(
            directive=directives_pb2.Directive(name="trial", text=text), task="qa"
        )
        await code_of(services.evaluation.TrialDirective(trial, timeout=TIMEOUT))


async def bad_input(services: Services) -> None:
    generate = services.generation.Generate
    wrong_role = request()
    wrong_role.messages[0].role = 99  # type: ignore[assignment]
    too_hot = request()
    too_hot.sampling.temperature = -1
    too_many = request()
    too_many.limits.stop.extend([CANARY] * 100)
    too_long = request()
    too_long.limits.stop[0] = CANARY * 1000
    blank = request()
    blank.sampling.suppressed_words.append(" ")
    for wrong in (wrong_role, too_hot, too_many, too_long, blank):
        assert await code_of(generate(wrong, timeout=TIMEOUT)) is INVALID
    huge = request(words=CANARY * 100_000)
    assert await code_of(generate(huge, timeout=TIMEOUT)) in (INVALID, OK)
    largest = request(words=CANARY * 1_800_000)
    assert await code_of(generate(largest, timeout=TIMEOUT)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    raw = services.channels["router"].unary_unary("/pith.router.v1.Generation/Generate")
    assert await code_of(raw(b"\xff" + CANARY.encode(), timeout=TIMEOUT)) is INVALID
    twice = [tasks_pb2.TaskExample(task="a", text=CANARY)] * 2
    wrong_labels = services.tasks.SetTaskExamples(tasks_pb2.SetTaskExamplesRequest(examples=twice), timeout=TIMEOUT)
    assert await code_of(wrong_labels) is INVALID
    score = evaluation_pb2.ScoreRequest(grader=f"{CANARY}", answer=CANARY, reference=CANARY)
    assert await code_of(services.evaluation.Score(score, timeout=TIMEOUT)) is INVALID
    score = evaluation_pb2.ScoreRequest(grader="numeric", answer=CANARY, reference=CANARY)
    assert await code_of(services.evaluation.Score(score, timeout=TIMEOUT)) is INVALID


async def faults(services: Services) -> None:
    generation = services.generation
    decide = generation_pb2.DecideRequest(request=request(task="handler"))
    assert await code_of(generation.Decide(decide, timeout=TIMEOUT)) is INTERNAL
    assert await code_of(generation.StreamGenerate(request(task="stream"), timeout=TIMEOUT)) is INTERNAL
    for words in ("engine tells", "engine fails", "decoding fails"):
        assert await code_of(generation.Generate(request(words=words), timeout=TIMEOUT)) is INTERNAL
    policy = policies_pb2.Policy(
        name="kept", tenant="acme", task="*", mode=policies_pb2.MODE_ON, floor=0.95, directives=["L1"],
        sample_share=1.0, holdback_share=0.0,
    )  # fmt: skip
    for task in ("reject", "away"):
        policy.name = policy.task = task
        await services.policies.CreatePolicy(
            policies_pb2.CreatePolicyRequest(policy=policy, reason="test"), timeout=TIMEOUT
        )
        await generation.Generate(request(task=task), timeout=TIMEOUT)
    score = evaluation_pb2.ScoreRequest(grader="exact", answer=CANARY, reference=f"judge fails {CANARY}")
    assert await code_of(services.evaluation.Score(score, timeout=TIMEOUT)) is INTERNAL
    while (await services.reports.GetStatus(reports_pb2.GetStatusRequest(), timeout=TIMEOUT)).ledger_waiting:
        pass
    run = evaluation_pb2.RunEvaluationRequest(task="qa")
    assert await code_of(services.evaluation.RunEvaluation(run, timeout=TIMEOUT)) is INTERNAL


ROUTER = (generation_pb2, policies_pb2, directives_pb2, feedback_pb2, reports_pb2, access_pb2, tasks_pb2)
NAMES = ("tenant", "name", "request_id")
"""Fields that a log may name: whose text was erased, which token was made, which request it was."""
FILES = {"router": ROUTER, "engine": (inference_pb2, control_pb2), "evaluator": (evaluation_pb2,)}


def rpcs() -> Iterator[tuple[str, ServiceDescriptor, Any]]:
    for name, files in FILES.items():
        for file in files:
            for service in file.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    # Those would stop the engine, or hold it up.
                    if method.name not in ("Drain", "WatchLoad"):
                        yield name, service, method


async def every_rpc_with_the_canary_in_every_field(services: Services) -> None:
    for name, service, method in rpcs():
        path = f"/{service.full_name}/{method.name}"
        channel = services.channels[name]
        call = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
        for number in (0, 1, 2**31 - 1):
            filled = fill(method.input_type, number).SerializeToString()
            await code_of(call(filled, timeout=TIMEOUT))
            await code_of(call(filled[:-1], timeout=TIMEOUT))


def fill(kind: Descriptor, number: int, depth: int = 0) -> Message:
    """A message with the canary in every text and `number` in every figure."""
    message = message_factory.GetMessageClass(kind)()
    for field in kind.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            if depth < 4:
                part = fill(field.message_type, number, depth + 1)
                place = getattr(message, field.name)
                place.append(part) if field.is_repeated else place.CopyFrom(part)
            continue
        text = "named" if field.name in NAMES else CANARY
        value: Any = {
            FieldDescriptor.CPPTYPE_STRING: text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text,
            FieldDescriptor.CPPTYPE_BOOL: bool(number % 2),
        }.get(field.cpp_type, number)
        with suppress(ValueError):
            getattr(message, field.name).append(value) if field.is_repeated else setattr(message, field.name, value)
    return message
