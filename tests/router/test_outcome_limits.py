"""Outcomes and ratings that are refused, and the fields they are refused by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import generation_pb2

from router.seal import MAX_SEAL_CHARACTERS
from router.store.tables import ratings
from tests.router.outcome_reports import (
    DAY_SECONDS,
    decide,
    faults,
    outcome,
    refused,
    rows,
)
from tests.router.running import Running, ask, running


async def test_a_made_up_decision_is_not_found_and_not_repeated(router: Running) -> None:
    decided = await decide(router)
    changed = ("A" if decided.decision_id[40] != "A" else "B").join(
        (decided.decision_id[:40], decided.decision_id[41:])
    )
    for made_up in (changed, "nonsense", "x" * 100_000):
        request = outcome(decided)
        request.decision_id = made_up
        error = await refused(router.generation.ReportOutcome(request))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert "decision_id" in error.message and made_up not in error.message
    assert await rows(router) == []


@pytest.mark.parametrize("letter", ["x", "字", "𝄞"])
async def test_a_decision_id_has_room_for_the_longest_ids(router: Running, letter: str) -> None:
    longest = dict.fromkeys(("request_id", "tenant", "task", "conversation_id", "model"), letter * 128)
    decided = await decide(router, **longest)
    assert len(decided.decision_id) <= MAX_SEAL_CHARACTERS
    await router.generation.ReportOutcome(outcome(decided))
    (row,) = await rows(router)
    assert (row.tenant, row.request_id, row.task, row.model) == (letter * 128,) * 4
    purpose = generation_pb2.EvaluationPurpose(sample_id=letter * 128, directive="L1")
    judged = await decide(router, evaluation=purpose, **longest)
    assert len(judged.decision_id) <= MAX_SEAL_CHARACTERS


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"decision_id": ""}, "decision_id", "is empty"),
        ({"usage": None}, "usage", "is missing"),
        ({"usage": text_pb2.Usage(prompt_tokens=2**32 - 1)}, "usage.prompt_tokens", "at most 100,000,000"),
        ({"usage": text_pb2.Usage(output_tokens=100_000_001)}, "usage.output_tokens", "at most 100,000,000"),
        ({"usage": text_pb2.Usage(prompt_tokens=1, cached_tokens=2)}, "usage.cached_tokens", "more than the 1 tokens"),
        ({"energy": energy_pb2.Energy(joules=1)}, "energy.source", "is 0; must be one of ENERGY_SOURCE_MEASURED"),
        ({"energy": energy_pb2.Energy(joules=1, source=9)}, "energy.source", "is 9"),
        ({"energy": energy_pb2.Energy(joules=-1, source=1)}, "energy.joules", "is -1; must be finite and in [0,"),
        ({"energy": energy_pb2.Energy(joules=math.nan, source=1)}, "energy.joules", "is nan"),
        ({"energy": energy_pb2.Energy(joules=math.inf, source=1)}, "energy.joules", "is inf"),
        ({"seconds": -0.5}, "seconds", "is -0.5"),
        ({"seconds": DAY_SECONDS + 1}, "seconds", "in [0, 86,400]"),
        ({"busy_seconds": math.nan}, "busy_seconds", "is nan"),
        ({"finish_reason": 77}, "finish_reason", "is 77; must be one of FINISH_REASON_UNSPECIFIED,"),
        ({"model": "m" * 129}, "model", "has 129 characters; at most 128"),
        ({"model": "m\x00"}, "model", "unprintable"),
        ({"request": generation_pb2.GenerateRequest()}, "request.messages", "is empty"),
        ({"request": ask(floor=2)}, "request.floor", "is 2"),
        ({"request": ask(request_id="r2")}, "request.request_id", "not the one that was decided on"),
        ({"request": ask(tenant="rival")}, "request.tenant", "not the one that was decided for"),
        ({"request": ask(task="other")}, "request.task", "not the one that was decided for"),
    ],
)
async def test_a_faulty_outcome_is_refused_by_field(router: Running, fields: Any, field: str, fault: str) -> None:
    decided = await decide(router, request_id="r1")
    found = await faults(router.generation.ReportOutcome(outcome(decided, **fields)))
    assert set(found) == {field}
    assert fault in found[field]
    assert await rows(router) == []
    await router.generation.ReportOutcome(outcome(decided, request=ask(request_id="r1")))
    assert len(await rows(router)) == 1


async def test_all_faults_are_named_at_once(router: Running) -> None:
    request = outcome(await decide(router), usage=None, seconds=-1, request=ask(floor=7, task="a\n"))
    found = await faults(router.generation.ReportOutcome(request))
    assert set(found) == {"usage", "seconds", "request.floor", "request.task"}


async def test_without_any_model_the_outcome_must_name_one(tmp_path: Path) -> None:
    async with running(tmp_path, {}) as router:
        decided = await decide(router)
        found = await faults(router.generation.ReportOutcome(outcome(decided)))
        assert set(found) == {"model"}
        await router.generation.ReportOutcome(outcome(decided, model="theirs"))
        assert [row.model for row in await rows(router)] == ["theirs"]


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"rating": 1.01}, "rating", "is 1.01; must be in [0, 1]"),
        ({"rating": -0.01}, "rating", "is -0.01"),
        ({"rating": math.nan}, "rating", "is nan"),
        ({"rating": math.inf}, "rating", "is inf"),
        ({"request_id": ""}, "request_id", "is empty"),
        ({"request_id": "r" * 129}, "request_id", "has 129 characters"),
        ({"tenant": "a\n"}, "tenant", "unprintable"),
        ({"comment": "x" * 1_001}, "comment", "has 1,001 characters; at most 1,000"),
        ({"comment": "a\x1b[2J"}, "comment", "has the control character U+001B at 1"),
        ({"comment": "a\x00"}, "comment", "has the control character U+0000 at 1"),
    ],
)
async def test_a_faulty_rating_is_refused_by_field(router: Running, fields: Any, field: str, fault: str) -> None:
    await router.generation.Generate(ask(request_id="r1"))
    request = generation_pb2.RateAnswerRequest(**{"request_id": "r1", "tenant": "acme", "rating": 1.0, **fields})
    found = await faults(router.generation.RateAnswer(request))
    assert set(found) == {field}
    assert fault in found[field]
    assert await rows(router, ratings) == []
