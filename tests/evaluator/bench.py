"""Evaluators on a fake router, with time in the tests' hands."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc

from common.clock import ManualClock
from common.grpc_client import connect
from common.metrics import Metrics
from evaluator.client import RouterClient
from evaluator.config import EvaluatorConfig
from evaluator.judges.configured import configured_judges
from evaluator.loop import EvaluationLoop
from evaluator.trial import Trials
from tests.evaluator.fake_router import FakeRouter, FakeTarget


class Bench:
    """Starts routers and evaluators, and stops them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.clock = ManualClock()
        self.back_off = ManualClock()
        self.metrics = Metrics("evaluator")
        """Of the evaluator made last."""
        self.channel: grpc.aio.Channel | None = None
        self.client: RouterClient
        self.trials: Trials
        """Both of the evaluator made last."""

    async def router(self, targets: list[FakeTarget], **facts: Any) -> FakeRouter:
        router = FakeRouter(self.clock, targets, **facts)
        await router.start()
        self._stack.push_async_callback(router.stop)
        return router

    async def evaluator(self, router: FakeRouter, **settings: Any) -> EvaluationLoop:
        """An evaluator that does nothing before it is told to, with the judges that its settings name."""
        config = EvaluatorConfig(**{"router": router.address, "answers_per_minute": 0} | settings)
        self.channel = await self._stack.enter_async_context(connect(config.router, max_attempts=1))
        self.client = client = RouterClient(
            self.channel,
            evaluator=config.name,
            back_off=self.back_off,
            attempts=config.attempts,
            call_deadline_seconds=config.call_deadline_seconds,
            generation_deadline_seconds=config.generation_deadline_seconds,
            lease_seconds=config.lease_seconds,
        )
        self.metrics = Metrics("evaluator")
        judge = configured_judges(
            config, self.clock, lambda: loop.knowledge.latest_g_per_kwh, self.metrics, self.back_off
        )
        self._stack.push_async_callback(judge.close)
        loop = EvaluationLoop(config, client, judge, self.clock, self.back_off, self.metrics)
        self.trials = Trials(client, judge, config.concurrency, config.alpha, loop.spending)
        self._stack.push_async_callback(loop.stop, 0.0)
        return loop

    async def backs_off(self) -> bool:
        """Whether somebody waits before trying again, at this moment."""
        waiting = asyncio.create_task(self.back_off.asleep())
        await asyncio.sleep(0)
        found = waiting.done()
        waiting.cancel()
        return found

    def poll(self, loop: EvaluationLoop) -> asyncio.Task[None]:
        """Has the evaluator look out for itself, as its process does."""
        task = asyncio.create_task(loop.run())
        self._stack.callback(task.cancel)
        return task

    async def evaluate(self, loop: EvaluationLoop, task: str = "") -> list[str]:
        """One evaluation to its end; what happened in it. Raises what cut it short."""
        return [progress.event async for progress in loop.start(task).progress.watch()]
