"""A router in front of two models, of which one stands in for the other under directive D."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from pith.router.v1 import directives_pb2, directives_pb2_grpc, generation_pb2, policies_pb2, reports_pb2

from tests.router.fake_engine import FakeEngine, Script, answer, delta, refuse
from tests.router.running import Running, ask, running

TINY_DIGEST = "f00d" * 16
TINY = "tiny@f00df00df00d"
OTHER_DIGEST = "beef" * 16
FAR_BELOW_ONE_ANSWER = 1e-9

EVALUATION = generation_pb2.DECISION_REASON_EVALUATION
SMALL_SAYS, TINY_SAYS = "Hello, world.", "Hi."
EXHAUSTED = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_seconds=7.0)
TOO_LONG = refuse(grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")


@dataclass
class Pair:
    """A router in front of the model that is asked for, `small`, and of those that stand in for it, all `tiny`."""

    router: Running
    small: FakeEngine
    stand_ins: tuple[FakeEngine, ...]

    @property
    def tiny(self) -> FakeEngine:
        return self.stand_ins[0]

    async def generate(self, text: str = "What is pith?", **fields: Any) -> generation_pb2.GenerateResponse:
        return await self.router.generation.Generate(ask(text, **{"model": "small", **fields}))

    async def until(self, directive: str) -> None:
        """Returns once it is what the plan has served, looked at again and again."""
        while (await self.explained()).decision.directive != directive:
            pass

    async def explained(self) -> Any:
        return await self.router.policies.Explain(policies_pb2.ExplainRequest(request=ask(model="small")))

    async def until_model(self, engine: str, digest: str) -> None:
        """Returns once the router knows that the engine has those weights."""
        while True:
            found = {one.name: one for one in await self.router.engines()}[engine]
            if found.model.model_digest == digest and found.state == reports_pb2.ENGINE_STATE_READY:
                return


def tiny(*scripts: Script | None, digest: str = TINY_DIGEST) -> tuple[FakeEngine, ...]:
    return tuple(FakeEngine(script or answer(TINY_SAYS), model="tiny", digest=digest) for script in scripts or (None,))


@asynccontextmanager
async def pair(
    folder: Path, *stand_ins: FakeEngine, small: FakeEngine | None = None, served: bool = True, **policy: Any
) -> AsyncIterator[Pair]:
    """With directive D, which has `tiny` answer, served to tenant acme's questions unless not `served`."""
    small, stand_ins = small or FakeEngine(), stand_ins or tiny()
    async with AsyncExitStack() as stack:
        for fake in (small, *stand_ins):
            await fake.start()
            stack.push_async_callback(fake.stop)
        names = {"s": small, **{f"t{number}": fake for number, fake in enumerate(stand_ins, 1)}}
        router = await stack.enter_async_context(running(folder, names))
        stub: Any = directives_pb2_grpc.DirectivesStub(router.channel)
        directive = directives_pb2.Directive(name="D", model=TINY, text="Be brief")
        await stub.CreateDirective(directives_pb2.CreateDirectiveRequest(directive=directive))
        it = Pair(router, small, stand_ins)
        if served:
            await router.policy(**{"directives": ["D"], **policy})
            await router.open("D")
        yield it


def contents(engine: FakeEngine) -> list[list[str]]:
    return [[message.content for message in request.messages.messages] for request in engine.requests]


def judged(**fields: Any) -> dict[str, Any]:
    """What an evaluator asks for."""
    purpose = generation_pb2.EvaluationPurpose(sample_id="s1", **{"directive": "D", **fields})
    return {"evaluation": purpose, "reference": "x"}


async def away(it: Pair) -> None:
    await it.tiny.stop()
    await it.router.until_ready(1)


async def draining(it: Pair) -> None:
    await it.tiny.report(draining=True)
    await it.router.until_ready(1)


async def of_other_weights(engine: FakeEngine, request: Any, context: Any) -> AsyncIterator[Any]:
    """It has loaded others since it was asked, and its next load report is not there yet."""
    began = engine.started(request)
    began.started.model_digest = OTHER_DIGEST
    yield began
    yield delta("Never seen")
