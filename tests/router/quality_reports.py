"""Samples that are kept and drawn, and reports of their quality."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pith.router.v1 import feedback_pb2

from common.clock import ManualClock
from router.directives.compile import Turn
from router.samples import Answer, Sample
from router.store.database import Database
from router.store.samples import SampleRepository
from tests.router.admin_client import MODEL

pb: Any = feedback_pb2


async def keep(database: Database, clock: ManualClock, count: int, **changes: Any) -> None:
    plain = Sample(
        sample_id="",
        tenant="acme",
        model=MODEL,
        task="sums",
        turns=(Turn("system", "Be kind."), Turn("user", "2 + 2?")),
        sampling_json='{"seed": "7", "temperature": 0.5}',
        limits_json='{"maxOutputTokens": 99}',
        reference="4",
        grader="numeric",
        served_at=clock.now(),
        answers=(Answer("L0", 1, "2 + 2 = 4", 9),),
    )
    prefix = changes.pop("prefix", "s")
    async with database.writing() as connection:
        await SampleRepository(connection).add_many(
            [
                replace(plain, sample_id=f"{prefix}{n}", served_at=clock.now() + timedelta(seconds=n), **changes)
                for n in range(count)
            ]
        )


async def draw(evaluator: Any, count: int = 10, name: str = "e1", **fields: Any) -> list[str]:
    request = {"model": MODEL, "task": "sums", "directives": ["L1"], "count": count, "evaluator": name, **fields}
    reply = await evaluator.DrawSamples(pb.DrawSamplesRequest(**request))
    return [sample.sample_id for sample in reply.samples]


def score(directive: str = "L1", quality: float = 1.0, **fields: Any) -> Any:
    given = {"directive_revision": 1, "baseline_quality": 1.0, "judge": "grader:numeric", **fields}
    return pb.Score(directive=directive, quality=quality, **given)


def scored(sample_id: str, *scores: Any, answers: Any = ()) -> Any:
    return pb.SampleScores(sample_id=sample_id, scores=scores or [score()], answers=answers)


def stamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def bound(clock: ManualClock, lower: float = 0.97, directive: str = "L1", **fields: Any) -> Any:
    given = {
        "upper": 1.02,
        "share": 0.99,
        "absolute_lower": 0.9,
        "samples": 100,
        "judge": "grader:numeric",
        "directive_revision": 1,
        "updated_at": stamp(clock.now()),
        **fields,
    }
    return pb.QualityBound(cell=pb.Cell(model=MODEL, task="sums", directive=directive), lower=lower, **given)


async def report(evaluator: Any, name: str = "e1", **fields: Any) -> list[tuple[str, str, bool]]:
    reply = await evaluator.ReportQuality(pb.ReportQualityRequest(evaluator=name, **fields))
    return [(change.cell.directive, change.policy, change.open) for change in reply.changes]
