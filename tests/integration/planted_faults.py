"""Runs a service with faults in it that quote what was said: `python -m tests.integration.planted_faults SERVICE`.

What they quote is CANARY of the environment; where they strike, a request's task or prompt says.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

CANARY = os.environ["CANARY"]
_background: set[asyncio.Task[None]] = set()


def fail() -> None:
    raise ValueError(f"cannot read {CANARY}")


def fail_with_a_cause() -> None:
    try:
        fail()
    except ValueError as error:
        raise RuntimeError(f"cannot go on with {CANARY}") from error


async def fail_in_background() -> None:
    fail()


def plant_in_router() -> None:
    from sqlalchemy.exc import OperationalError

    from router.services.generation import GenerationService
    from router.store.samples import SampleRepository

    decide, stream, add_many = GenerationService.Decide, GenerationService.StreamGenerate, SampleRepository.add_many
    away = iter((True,))

    async def Decide(self: Any, request: Any, context: Any) -> Any:
        if request.request.task == "handler":
            asyncio.get_running_loop().call_soon(fail)
            task = asyncio.create_task(fail_in_background())
            _background.add(task)
            task.add_done_callback(_background.discard)
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            fail_with_a_cause()
        return await decide(self, request, context)

    async def StreamGenerate(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in stream(self, request, context):
            yield message
            if request.task == "stream":
                fail_with_a_cause()

    async def refuse(self: Any, kept: Any) -> None:
        if any(sample.task == "away" for sample in kept) and next(away, False):
            cause = Exception(f"the database is away\nDETAIL: it was told {CANARY}")
            raise OperationalError("INSERT", {"turns": CANARY}, cause)
        if any(sample.task == "reject" for sample in kept):
            fail_with_a_cause()
        await add_many(self, kept)

    GenerationService.Decide, GenerationService.StreamGenerate = Decide, StreamGenerate  # type: ignore[method-assign]
    SampleRepository.add_many = refuse  # type: ignore[method-assign]


def plant_in_engine() -> None:
    from common.errors import internal
    from engine.batching import ContinuousBatch
    from engine.service import InferenceService

    stream, step = InferenceService.StreamGenerate, ContinuousBatch.step
    broken = threading.Event()

    async def StreamGenerate(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        said = str(request)
        if "engine tells" in said:
            raise internal(f"cannot decode {CANARY}")
        if "engine fails" in said:
            fail_with_a_cause()
        if "decoding fails" in said:
            broken.set()
        async for message in stream(self, request, context):
            yield message

    def breaking_step(self: Any) -> Any:
        if broken.is_set():
            broken.clear()
            fail_with_a_cause()
        return step(self)

    InferenceService.StreamGenerate = StreamGenerate  # type: ignore[method-assign]
    ContinuousBatch.step = breaking_step  # type: ignore[method-assign]


def plant_in_evaluator() -> None:
    from evaluator.judges.reference import ReferenceJudge
    from evaluator.service import EvaluationService

    score = EvaluationService.Score

    async def Score(self: Any, request: Any, context: Any) -> Any:
        if request.reference.startswith("judge fails"):
            fail_with_a_cause()
        return await score(self, request, context)

    async def judge(self: Any, *_: Any) -> Any:
        fail_with_a_cause()

    EvaluationService.Score = Score  # type: ignore[method-assign]
    ReferenceJudge.judge = judge  # type: ignore[method-assign]


if __name__ == "__main__":
    name = sys.argv.pop(1)
    {"router": plant_in_router, "engine": plant_in_engine, "evaluator": plant_in_evaluator}[name]()
    importlib.import_module(f"{name}.__main__").main()
