"""A whole router in this process: real gRPC on a free port, a real database, fake engines, time that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from pith.common.v1 import text_pb2
from pith.router.v1 import (
    feedback_pb2,
    feedback_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)

from common.clock import ManualClock
from router.__main__ import Router
from router.config import RouterConfig
from router.convert import timestamp
from tests.router.fake_engine import IDENTITY, FakeEngine


@dataclass
class Running:
    """A router that serves, and stubs for it."""

    router: Router
    clock: ManualClock
    channel: grpc.aio.Channel
    address: str

    def __post_init__(self) -> None:
        self.generation = generation_pb2_grpc.GenerationStub(self.channel)
        self.policies = policies_pb2_grpc.PoliciesStub(self.channel)
        self.feedback = feedback_pb2_grpc.FeedbackStub(self.channel)
        self.reports = reports_pb2_grpc.ReportsStub(self.channel)

    async def engines(self) -> Sequence[Any]:
        return (await self.reports.ListEngines(reports_pb2.ListEnginesRequest())).engines

    async def until_ready(self, count: int) -> None:
        """Each turn is a call, during which the router hears from its engines."""
        while sum(e.state == reports_pb2.ENGINE_STATE_READY for e in await self.engines()) != count:
            pass

    async def report(self, *dimensions: int) -> Any:
        """With all that has been recorded; a report ends before the present moment, so time goes on a little."""
        await self.router.ledger.flush()
        await self.clock.advance(1)
        return await self.reports.GetReport(reports_pb2.GetReportRequest(dimensions=dimensions))

    async def open(self, directive: str = "L1", task: str = "qa", lower: float = 0.99, model: str = IDENTITY) -> None:
        """Reports a quality bound, as an evaluator does."""
        bound = feedback_pb2.QualityBound(
            cell=feedback_pb2.Cell(model=model, task=task, directive=directive),
            lower=lower,
            upper=1.0,
            share=1.0,
            absolute_lower=lower,
            samples=100,
            judge="grader:exact",
            directive_revision=1,
            updated_at=timestamp(self.clock.now()),
        )
        await self.feedback.ReportQuality(feedback_pb2.ReportQualityRequest(evaluator="test", bounds=[bound]))

    async def policy(self, **fields: Any) -> None:
        """Turns a policy on: for tenant acme, task qa, directives L1 and L2; no hold-back and no samples by default."""
        policy = policies_pb2.Policy(
            name=fields.pop("name", "acme-qa"),
            tenant=fields.pop("tenant", "acme"),
            task=fields.pop("task", "qa"),
            mode=fields.pop("mode", policies_pb2.MODE_ON),
            floor=fields.pop("floor", 0.95),
            directives=fields.pop("directives", ["L1", "L2"]),
            holdback_share=fields.pop("holdback_share", 0.0),
            sample_share=fields.pop("sample_share", 0.0),
            **fields,
        )
        await self.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=policy, reason="test"))


@asynccontextmanager
async def running(
    folder: Path,
    engines: Mapping[str, FakeEngine],
    *,
    clock: ManualClock | None = None,
    database_url: str = "",
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Serves until the block ends. Where `ready`, the engines must listen, and the block begins once they are found.

    Args:
        database_url: SQLite in `folder` where it is empty; the fixture of that name gives others.
    """
    clock = clock or ManualClock()
    config = RouterConfig(
        **{
            "listen": "127.0.0.1:0",
            "database_url": database_url or f"sqlite:///{folder / 'router.db'}",
            "outbox_path": folder / "outbox.jsonl",
            "engines": tuple(f"{name}={fake.address}" for name, fake in engines.items()),
            "intensity": "constant:TEST:360",
            "pue": 1.5,
            "embodied_grams": 31536.0,  # a milligram a second over a year
            "lifetime_years": 1.0,
            "drain_seconds": 5.0,
            "reflection": False,
            **settings,
        }
    )
    router = Router(config, clock)
    try:
        address = f"127.0.0.1:{await router.start()}"
        async with grpc.aio.insecure_channel(address) as channel:
            it = Running(router, clock, channel, address)
            if ready:
                await it.until_ready(len(engines))
            yield it
    finally:
        await router.close()


def ask(text: str = "What is pith?", **fields: Any) -> generation_pb2.GenerateRequest:
    """A request of tenant acme for task qa."""
    return generation_pb2.GenerateRequest(
        tenant=fields.pop("tenant", "acme"),
        task=fields.pop("task", "qa"),
        messages=fields.pop("messages", [text_pb2.Message(role=text_pb2.ROLE_USER, content=text)]),
        **fields,
    )
