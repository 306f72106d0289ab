"""Decisions, and reports of what came of them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import feedback_pb2, generation_pb2
from sqlalchemy import select

from common.errors import PithError, from_rpc_error
from router.store.tables import ledger
from tests.router.fake_engine import IDENTITY
from tests.router.running import Running, ask

DAY_SECONDS = 24 * 3600
USAGE = text_pb2.Usage(prompt_tokens=31, cached_tokens=8, output_tokens=12)
ENERGY = energy_pb2.Energy(joules=20.0, source=energy_pb2.ENERGY_SOURCE_MEASURED)


async def decide(router: Running, metadata: Any = None, **fields: Any) -> generation_pb2.DecideResponse:
    return await router.generation.Decide(generation_pb2.DecideRequest(request=ask(**fields)), metadata=metadata)


def outcome(decided: generation_pb2.DecideResponse, **fields: Any) -> generation_pb2.ReportOutcomeRequest:
    return generation_pb2.ReportOutcomeRequest(
        **{
            "decision_id": decided.decision_id,
            "usage": USAGE,
            "energy": ENERGY,
            "seconds": 3.0,
            "busy_seconds": 2.0,
            "finish_reason": text_pb2.FINISH_REASON_STOP,
            **fields,
        }
    )


def rating(request_id: str = "r1", value: float = 1.0, **fields: Any) -> generation_pb2.RateAnswerRequest:
    return generation_pb2.RateAnswerRequest(request_id=request_id, tenant="acme", rating=value, **fields)


async def refused(call: Any) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


async def faults(call: Any) -> dict[str, str]:
    error = await refused(call)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    return {violation.field: violation.description for violation in error.violations}


async def rows(router: Running, table: Any = ledger) -> list[Any]:
    """Of the router's database, with all that has been recorded."""
    await router.router.ledger.flush()
    async with router.router._database.reading() as connection:
        return list(await connection.execute(select(table).order_by(*table.primary_key)))


async def drawn(router: Running) -> list[feedback_pb2.Sample]:
    await router.router.ledger.flush()
    request = feedback_pb2.DrawSamplesRequest(
        model=IDENTITY, task="qa", directives=["L1"], count=200, evaluator="judge"
    )
    return list((await router.feedback.DrawSamples(request)).samples)
