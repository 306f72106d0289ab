"""A router and an evaluator that run in a thread of their own, with tokens, for `pithctl` to be pointed at."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from pith.router.v1 import feedback_pb2, generation_pb2, policies_pb2
from structlog.testing import capture_logs

from common.auth import Authenticator
from common.clock import ManualClock
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
from tests.router.fake_engine import IDENTITY, FakeEngine, answer
from tests.router.running import Running, ask, running

ADMIN, CLIENT, EVALUATOR = "admin-token", "client-token", "evaluator-token"
_TOKENS = {
    ADMIN: {"role": "admin", "tenant": "ops", "name": "root"},
    CLIENT: {"role": "client", "tenant": "acme", "name": "app"},
    EVALUATOR: {"role": "evaluator", "tenant": "ops", "name": "judge"},
}
# Wall time for what a loaded machine may take its time with; nothing waits for it to pass.
_PATIENCE_SECONDS = 60.0

T = TypeVar("T")


@dataclass
class World:
    """What runs, and ways to have things happen in it. All methods may be called from any thread but its own."""

    router: Running
    engine: FakeEngine
    evaluator_address: str
    tokens_file: Path
    _loop: asyncio.AbstractEventLoop
    _stubs: Running

    def do(self, happening: Coroutine[Any, Any, T]) -> T:
        """Runs it where the services run, to its end."""
        return asyncio.run_coroutine_threadsafe(happening, self._loop).result(_PATIENCE_SECONDS)

    def ask(self, count: int = 1, **fields: Any) -> list[generation_pb2.GenerateResponse]:
        """Has questions of tenant acme for task qa answered, each of its own conversation; then the ledger has all."""

        async def happening() -> list[generation_pb2.GenerateResponse]:
            replies = [
                await self._stubs.generation.Generate(ask(f"Question {index}", conversation_id=str(index), **fields))
                for index in range(count)
            ]
            await self.router.router.ledger.flush()
            # A report ends before the present moment.
            await self.router.clock.advance(1)
            return replies

        return self.do(happening())

    def rate(self, request_id: str, rating: float) -> None:
        """Has a user of acme rate an answer; the ledger has it then."""
        rated = generation_pb2.RateAnswerRequest(request_id=request_id, tenant="acme", rating=rating)

        async def happening() -> None:
            await self._stubs.generation.RateAnswer(rated)
            await self.router.router.ledger.flush()

        self.do(happening())

    def policy(self, **fields: Any) -> None:
        """Creates policy acme-qa (see `Running.policy`)."""
        self.do(self._stubs.policy(**fields))

    def score(self, count: int) -> None:
        """Has L1's answers ("Hi.") to so many questions graded beside L0's ("Hello, world."): wrong, right, wrong."""

        async def happening() -> None:
            feedback = self._stubs.feedback
            drawn = await feedback.DrawSamples(
                feedback_pb2.DrawSamplesRequest(
                    model=IDENTITY, task="qa", directives=["L1"], count=count, evaluator="world"
                )
            )
            report = feedback_pb2.ReportQualityRequest(evaluator="world")
            for number, sample in enumerate(drawn.samples):
                scored = report.scores.add(sample_id=sample.sample_id)
                scored.answers.add(directive="L1", directive_revision=1, text="Hi.", output_tokens=1)
                scored.scores.add(
                    directive="L1",
                    directive_revision=1,
                    quality=float(number % 2),
                    baseline_quality=1.0,
                    judge="grader:exact",
                )
            await feedback.ReportQuality(report)

        self.policy(sample_share=1.0, grader="exact")
        self.ask(count, reference="Hello, world.")
        self.do(happening())

    def apply(self, wish: policies_pb2.ApplyRequest) -> None:
        """Brings directives and policies to a state, as somebody else."""

        # The call begins where the services run: elsewhere there is no event loop for it.
        async def happening() -> None:
            await self._stubs.policies.Apply(wish)

        self.do(happening())

    def open(self, directive: str = "L1") -> None:
        """Reports a bound that opens the directive for task qa."""
        self.do(self._stubs.open(directive))


@contextmanager
def running_world(folder: Path, **settings: Any) -> Iterator[World]:
    """Serves until the block ends.

    Args:
        settings: of the router.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="services", daemon=True)
    thread.start()
    made = _world(folder, loop, settings)
    try:
        # The services' log lines would stand among the output, as all are of one process.
        with capture_logs():
            yield asyncio.run_coroutine_threadsafe(made.__aenter__(), loop).result(_PATIENCE_SECONDS)
            asyncio.run_coroutine_threadsafe(made.__aexit__(None, None, None), loop).result(_PATIENCE_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def _world(folder: Path, loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> AsyncIterator[World]:
    tokens_file = folder / "tokens.json"
    entries = [{**entry, "sha256": sha256(secret.encode()).hexdigest()} for secret, entry in _TOKENS.items()]
    tokens_file.write_text(json.dumps(entries))
    clock = ManualClock()
    engine = FakeEngine(answer("Hello, ", "world."))
    await engine.start()
    try:
        router_settings = {"tokens_file": tokens_file, **settings}
        async with (
            running(folder, {"e1": engine}, clock=clock, ready=False, **router_settings) as router,
            connect(router.address, token=ADMIN) as channel,
            _evaluator(router.address, tokens_file, clock) as address,
        ):
            stubs = Running(router.router, clock, channel, router.address)
            await stubs.until_ready(1)
            yield World(router, engine, address, tokens_file, loop, stubs)
    finally:
        await engine.stop()


@asynccontextmanager
async def _evaluator(router: str, tokens_file: Path, clock: ManualClock) -> AsyncIterator[str]:
    config = EvaluatorConfig(listen="127.0.0.1:0", router=router, tokens_file=tokens_file, answers_per_minute=0)
    metrics = Metrics("evaluator")
    async with connect(router, token=EVALUATOR, max_attempts=1) as channel:
        client = RouterClient(
            channel,
            evaluator=config.name,
            back_off=clock,
            attempts=config.attempts,
            call_deadline_seconds=config.call_deadline_seconds,
            generation_deadline_seconds=config.generation_deadline_seconds,
            lease_seconds=config.lease_seconds,
        )
        loop = EvaluationLoop(config, client, ReferenceJudge(), clock, clock, metrics)
        trials = Trials(client, ReferenceJudge(), config.concurrency, config.alpha, loop.spending)
        server = GrpcServer(config, Authenticator.from_file(tokens_file), metrics)
        service = EvaluationService(loop, trials, *people(channel, config, clock, metrics))
        server.add(service, DESCRIPTOR, roles=ROLES, watches=WATCHES)
        port = await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.drain(0.0)
            await loop.stop(0.0)
