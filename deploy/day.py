"""A simulated day of traffic: the same requests at the same hours, as often as one likes."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import grpc
from pith.common.v1 import text_pb2
from pith.router.v1 import generation_pb2, generation_pb2_grpc

from common.clock import Clock
from common.quality.graders import grade
from engine.demo.tasks import GRADERS, TASKS, examples

DAY_SECONDS = 86_400.0
TENANT = "demo"
ATTEMPTS = 4
"""A backend service would also try again when it is told that the queue is full."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the day; `second` counts from the day's start, in simulated seconds."""

    index: int
    second: float
    task: str
    prompt: str
    reference: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request; energy and carbon are None where the router did not know them."""

    request: Request
    directive: str
    reason: str
    text: str
    quality: float
    output_tokens: int
    energy_joules: float | None
    carbon_grams: float | None


def plan_day(requests: int, seed: int) -> list[Request]:
    """Requests of all tasks in equal shares, on held-out prompts, by time, denser by day than by night."""
    rng = random.Random(seed)
    prompts = {task: examples(task, "test", seed) for task in TASKS}
    tasks = [TASKS[index % len(TASKS)] for index in range(requests)]
    rng.shuffle(tasks)
    seconds = sorted(_second_of_day(rng) for _ in range(requests))
    drawn = []
    for index, (task, second) in enumerate(zip(tasks, seconds, strict=True)):
        example = next(prompts[task])
        drawn.append(Request(index, second, task, example.prompt, example.reference))
    return drawn


async def serve_day(
    label: str,
    requests: Sequence[Request],
    start: datetime,
    clock: Clock,
    router: grpc.aio.Channel,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Sends every request at its time and returns the outcomes in the requests' order.

    Raises:
        grpc.RpcError: A request failed in spite of several attempts.
    """
    stub = generation_pb2_grpc.GenerationStub(router)

    async def serve(request: Request) -> Outcome:
        due = start + timedelta(seconds=request.second)
        await clock.sleep((due - clock.now()).total_seconds())
        outcome = await _serve_one(label, request, stub)
        done(outcome)
        return outcome

    return list(await asyncio.gather(*(serve(request) for request in requests)))


async def _serve_one(label: str, request: Request, stub: generation_pb2_grpc.GenerationAsyncStub) -> Outcome:
    message = generation_pb2.GenerateRequest(
        request_id=f"{label}-{request.index}",
        tenant=TENANT,
        task=request.task,
        messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content=request.prompt)],
        reference=request.reference,
    )
    for attempt in range(ATTEMPTS):
        try:
            reply: generation_pb2.GenerateResponse = await stub.Generate(message, timeout=60)
            break
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.25 * 2**attempt)
    finished, decision = reply.finished, reply.started.decision
    return Outcome(
        request=request,
        directive=decision.directive,
        reason=generation_pb2.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_").lower(),
        text=reply.text,
        quality=grade(GRADERS[request.task], reply.text, request.reference),
        output_tokens=finished.usage.output_tokens,
        energy_joules=finished.energy.joules if finished.HasField("energy") else None,
        carbon_grams=(
            finished.carbon.operational_grams + finished.carbon.embodied_grams if finished.HasField("carbon") else None
        ),
    )


def _second_of_day(rng: random.Random) -> float:
    """Rejection sampling from 1 + 0.6 sin, lowest at 3:00 and highest at 15:00."""
    while True:
        second = rng.uniform(0, DAY_SECONDS)
        density = 1 + 0.6 * math.sin(2 * math.pi * (second / DAY_SECONDS - 9 / 24))
        if rng.uniform(0, 1.6) < density:
            return second
