"""A report names the scores that its bounds rest on: where others have come in, it is refused, and made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pith.router.v1 import feedback_pb2, feedback_pb2_grpc, policies_pb2

from common.auth import Authenticator, Role, TokenEntry
from common.clock import ManualClock
from common.config import ServiceConfig
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from common.quality.bound import Cell
from router.directives.compile import Turn
from router.optimizer.costs import CostBook
from router.pagination import write_token
from router.samples import Answer, Sample
from router.services import feedback
from router.services.feedback import FeedbackService
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.quality import BoundRecord, QualityRepository
from router.store.samples import SampleRepository
from tests.postgres import on_both_databases
from tests.router.admin_client import MODEL, AdminClient, FixedIntensity, faults, refused

pb: Any = feedback_pb2
CELL = Cell(MODEL, "sums", "L1")
COUNT = 9


@pytest.fixture
def stub(client: AdminClient) -> Any:
    _, stub, _ = client.as_role("evaluator")
    return stub


@dataclass(frozen=True)
class Other:
    """A router of the same database, whose clock is a minute behind."""

    stub: Any
    clock: ManualClock


@pytest.fixture
async def other(database_url: str, client: AdminClient) -> AsyncIterator[Other]:
    clock = ManualClock(ManualClock().now() - timedelta(minutes=1))
    database, metrics = Database(database_url), Metrics("router")
    keeper = SnapshotKeeper(database, clock, poll_seconds=3600)
    await keeper.start()
    entry = TokenEntry(sha256=sha256(b"evaluator").hexdigest(), role=Role.EVALUATOR, tenant="acme", name="evaluator")
    server = GrpcServer(ServiceConfig(listen="127.0.0.1:0"), Authenticator([entry]), metrics)
    service = FeedbackService(database, keeper, clock, CostBook(), client.grams, FixedIntensity())
    server.add(service, feedback.SERVICE, roles=feedback.ROLES)
    async with connect(f"127.0.0.1:{await server.start()}", token="evaluator") as channel:
        yield Other(feedback_pb2_grpc.FeedbackStub(channel), clock)
    await server.drain(grace_seconds=0)
    await keeper.close()
    await database.close()


@pytest.fixture(autouse=True)
async def kept(database: Database, clock: ManualClock) -> None:
    await keep(database, clock, range(COUNT))


async def keep(database: Database, clock: ManualClock, numbers: range, **changes: Any) -> None:
    plain = Sample(
        sample_id="",
        tenant="acme",
        model=CELL.model,
        task=CELL.task,
        turns=(Turn("user", "2 + 2?"),),
        sampling_json="{}",
        limits_json="{}",
        reference="4",
        grader="numeric",
        served_at=clock.now(),
        answers=(Answer("L0", 1, "4", 9),),
    )
    async with database.writing() as connection:
        await SampleRepository(connection).add_many([replace(plain, sample_id=f"s{n}", **changes) for n in numbers])


def stamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


async def draw(stub: Any, count: int, name: str = "one", **fields: Any) -> list[str]:
    given = {"model": MODEL, "task": "sums", "directives": ["L1"], "count": count, "evaluator": name, **fields}
    return [sample.sample_id for sample in (await stub.DrawSamples(pb.DrawSamplesRequest(**given))).samples]


@dataclass
class Report:
    """Of perfect scores, and of a bound that tells by `lower` who made it."""

    sample_ids: list[str]
    position: str
    clock: ManualClock
    name: str = "one"
    lower: float = 0.96
    quality: float = 1.0
    reason: int = 0
    """Of a withdrawal, in the place of the bound."""
    since: datetime | None = None

    def __post_init__(self) -> None:
        cell = pb.Cell(model=CELL.model, task=CELL.task, directive=CELL.directive)
        bound = pb.QualityBound(
            cell=cell,
            lower=self.lower,
            upper=1.02,
            absolute_lower=0.9,
            samples=80,
            judge="grader:numeric",
            directive_revision=1,
            updated_at=stamp(self.clock.now()),
            since=None if self.since is None else stamp(self.since),
        )
        score = pb.Score(
            directive="L1",
            directive_revision=1,
            quality=self.quality,
            baseline_quality=1.0,
            judge="grader:numeric",
            comparison=pb.Comparison(characters=3, baseline_characters=40, shown_first=1.0, shown_second=1 / 3),
        )
        answer = pb.Answer(directive="L1", directive_revision=1, text="4", output_tokens=1)
        self.message = pb.ReportQualityRequest(
            evaluator=self.name,
            scores=[pb.SampleScores(sample_id=name, scores=[score], answers=[answer]) for name in self.sample_ids],
            bounds=[] if self.reason else [bound],
            withdrawals=[pb.Withdrawal(cell=cell, judge="grader:numeric", reason=self.reason)] if self.reason else [],
            position=self.position,
        )

    async def send(self, stub: Any) -> str:
        """Returns the position after it."""
        return str((await stub.ReportQuality(self.message)).position)


async def listed(stub: Any, page_token: str = "", page_size: int = 0) -> tuple[list[str], str]:
    """Samples that have a score, and the position."""
    request = pb.ListScoresRequest(page_token=page_token, page_size=page_size)
    reply = await stub.ListScores(request)
    return [score.sample_id for score in reply.scores], reply.position


async def history(database: Database) -> list[BoundRecord]:
    async with database.reading() as connection:
        return list(await QualityRepository(connection).history(CELL))


async def state(stub: Any, database: Database) -> tuple[Any, ...]:
    """All that a report may change."""
    async with database.reading() as connection:
        samples = SampleRepository(connection)
        names = [f"s{n}" for n in range(COUNT)]
        return await listed(stub), await history(database), await samples.leases(names), await samples.answered(names)


def lowers(records: list[BoundRecord]) -> list[float | None]:
    return [None if record.withdrawn else record.bound.lower for record in records]


@on_both_databases
async def test_a_position_goes_on_with_what_is_recorded_after_it(stub: Any, clock: ManualClock) -> None:
    found, nothing = await listed(stub)
    assert (found, bool(nothing)) == ([], True)
    assert await listed(stub, nothing) == ([], nothing)
    drawn = await draw(stub, 4)
    first = await Report(drawn[:3], nothing, clock).send(stub)
    assert await listed(stub) == await listed(stub, nothing) == (drawn[:3], first)
    assert await listed(stub, first) == ([], first)
    half, between = await listed(stub, page_size=2)
    assert half == drawn[:2] and await listed(stub, between) == (drawn[2:3], first)
    second = await Report(drawn[3:], first, clock).send(stub)
    assert await listed(stub, first) == (drawn[3:], second)
    assert await listed(stub, nothing) == (drawn, second)


@on_both_databases
async def test_bounds_are_in_force_in_the_order_of_their_reports_whatever_the_clocks_say(
    stub: Any, other: Other, database: Database, clock: ManualClock
) -> None:
    """In one instant, and by a router whose clock is behind."""
    _, position = await listed(stub)
    for lower, at, of_router in ((0.95, clock, stub), (0.96, clock, stub), (0.97, other.clock, other.stub)):
        position = await Report(await draw(of_router, 2), position, at, lower=lower).send(of_router)
    records = await history(database)
    assert lowers(records) == [0.95, 0.96, 0.97]
    positions = [write_token("scores", record.reporter.position or 0) for record in records]
    assert positions[-1] == position and len(set(positions)) == 3


@on_both_databases
async def test_a_report_that_does_not_know_all_scores_is_refused_and_records_nothing(
    stub: Any, other: Other, database: Database, clock: ManualClock
) -> None:
    _, nothing = await listed(stub)
    mine, theirs = await draw(stub, 2), await draw(stub, 2, "other")
    first = await Report(theirs, nothing, clock, "other", lower=0.97).send(stub)
    before = await state(stub, database)
    late = Report(mine, nothing, clock, lower=0.95)
    for of_router in (stub, other.stub):
        error = await refused(late.send(of_router), "ABORTED", "SCORES_MOVED")
        assert error.metadata == {"position": first}
    withdrawal = Report([], nothing, clock, reason=pb.WITHDRAWAL_REASON_TASK_MIX)
    await refused(withdrawal.send(stub), "ABORTED", "SCORES_MOVED")
    assert await state(stub, database) == before
    await Report(mine, first, clock, lower=0.96).send(other.stub)
    assert lowers(await history(database)) == [0.97, 0.96]


@on_both_databases
async def test_a_report_whose_answer_was_lost_is_told_what_it_was_told(
    stub: Any, other: Other, database: Database, clock: ManualClock
) -> None:
    """Also when others have reported since: nothing of theirs is undone."""
    _, nothing = await listed(stub)
    drop = Report(await draw(stub, 3), nothing, clock, quality=0.0, reason=pb.WITHDRAWAL_REASON_DRIFT)
    first = await drop.send(stub)
    assert await drop.send(other.stub) == first
    theirs = Report(await draw(stub, 2, "other"), first, clock, "other", lower=0.97)
    second = await theirs.send(stub)
    before = await state(stub, database)
    assert await drop.send(stub) == await drop.send(other.stub) == first
    assert await theirs.send(stub) == second
    assert await state(stub, database) == before
    assert lowers(before[1]) == [0.97]


@pytest.mark.parametrize("quality", [0.0, 1.0], ids=["another score", "the same score"])
@pytest.mark.parametrize("known", [True, False], ids=["as far as known", "beyond what is known"])
@on_both_databases
async def test_a_late_report_of_samples_that_another_has_scored_puts_no_bound_in_force(
    stub: Any, database: Database, clock: ManualClock, quality: float, known: bool
) -> None:
    _, nothing = await listed(stub)
    mine = await draw(stub, 2)
    await clock.advance(600)
    theirs = await draw(stub, 4, "other")
    assert {*mine} < {*theirs}
    first = await Report(theirs, nothing, clock, "other", lower=0.97).send(stub)
    before = await state(stub, database)
    late = Report(mine, first if known else nothing, clock, lower=0.99, quality=quality)
    if quality == 1.0 and not known:
        # Like one that is repeated: what it says is recorded, as far as it goes.
        assert await listed(stub, await late.send(stub)) == (theirs[2:], first)
    else:
        await refused(late.send(stub), "ABORTED", "SCORES_MOVED")
    assert await state(stub, database) == before


@on_both_databases
async def test_scores_that_are_not_there_are_nothing_to_rest_on(
    stub: Any, database: Database, clock: ManualClock
) -> None:
    """As after the database was brought back from a copy."""
    drawn = await draw(stub, 2)
    before = await state(stub, database)
    await refused(Report(drawn, write_token("scores", 7), clock).send(stub), "ABORTED", "SCORES_MOVED")
    assert await state(stub, database) == before


@on_both_databases
async def test_who_says_no_position_is_not_checked(stub: Any, database: Database, clock: ManualClock) -> None:
    mine, theirs = await draw(stub, 2), await draw(stub, 2, "other")
    await Report(theirs, "", clock, "other", lower=0.97).send(stub)
    assert await Report(mine, "", clock, lower=0.95).send(stub) == (await listed(stub))[1]
    records = await history(database)
    # By its time, which is not after the other's, it is a straggler.
    assert [(record.bound.lower, record.reporter.position) for record in records] == [(0.97, None)]


@pytest.mark.parametrize("position", ["no token", write_token("policies", 1), write_token("scores", -1)])
async def test_what_is_no_position_is_refused_by_field(stub: Any, clock: ManualClock, position: str) -> None:
    assert set(await faults(Report([], position, clock).send(stub))) == {"position"}


@on_both_databases
async def test_of_reports_at_once_through_two_routers_each_knows_those_before_it(
    stub: Any, other: Other, database: Database, clock: ManualClock
) -> None:
    """One of all that know nothing is recorded; the others learn of it, and so on until all are."""
    _, position = await listed(stub)
    waiting = [(await draw(stub, 2, f"e{n}"), f"e{n}", (stub, other.stub)[n % 2]) for n in range(4)]
    while waiting:
        reports = [Report(drawn, position, clock, name).send(through) for drawn, name, through in waiting]
        answers = await asyncio.gather(*reports, return_exceptions=True)
        (recorded,) = [n for n, answer in enumerate(answers) if isinstance(answer, str)]
        assert (await listed(stub, position))[0] == sorted(waiting.pop(recorded)[0])
        position = (await listed(stub))[1]
    records = await history(database)
    assert len(records) == 4 and [record.reporter.position for record in records] == sorted(
        {record.reporter.position or 0 for record in records}
    )


@on_both_databases
async def test_a_bound_of_before_a_change_of_the_task_does_not_undo_its_withdrawal(
    stub: Any, database: Database, clock: ManualClock
) -> None:
    """That is no score, so that a report may know all scores and not know of it."""
    _, position = await listed(stub)
    position = await Report(await draw(stub, 2), position, clock, lower=0.97).send(stub)
    drawn = await draw(stub, 2)
    before = clock.now()
    late = Report(drawn[:1], position, clock, lower=0.98, since=before)
    await clock.advance(1)
    position = await Report([], position, clock, "other", reason=pb.WITHDRAWAL_REASON_TASK_MIX).send(stub)
    position = await late.send(stub)
    assert lowers(await history(database)) == [0.97, None]
    await clock.advance(1)
    await Report(drawn[1:], position, clock, lower=0.96, since=clock.now()).send(stub)
    assert lowers(await history(database)) == [0.97, None, 0.96]


@on_both_databases
async def test_scores_of_before_a_change_of_the_task_are_outdated_whoever_gave_them(
    stub: Any, clock: ManualClock
) -> None:
    _, position = await listed(stub)
    first = Report(await draw(stub, 2), position, clock)
    for entry in first.message.scores:
        entry.scores[0].judge = "grader:numeric of before"
    position = await first.send(stub)
    position = await Report(await draw(stub, 2), position, clock).send(stub)
    await Report([], position, clock, reason=pb.WITHDRAWAL_REASON_TASK_MIX).send(stub)
    await Report(await draw(stub, 2), position, clock).send(stub)
    reply = await stub.ListScores(pb.ListScoresRequest())
    assert [score.outdated for score in reply.scores] == [True] * 4 + [False] * 2


@on_both_databases
async def test_only_samples_of_the_grader_that_counts_are_drawn_and_wait(
    client: AdminClient, stub: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, range(COUNT, COUNT + 3), grader="exact")

    async def waiting() -> dict[str, int]:
        plan = await stub.GetEvaluationPlan(pb.GetEvaluationPlanRequest())
        return {target.cell.directive: target.samples_waiting for target in plan.targets}

    # No policy says how answers are graded: all wait for one that does.
    assert await waiting() == {"L1": COUNT + 3, "L2": COUNT + 3}
    policy = policies_pb2.Policy(
        name="sums", task="sums", mode=policies_pb2.MODE_ON, floor=0.9, directives=["L1"], grader="exact"
    )
    await client.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=policy))
    assert await waiting() == {"L1": 3}
    drawn = await draw(stub, 9)
    assert drawn == ["s10", "s11", "s9"]
    await Report(drawn[:1], (await listed(stub))[1], clock).send(stub)
    assert await waiting() == {"L1": 2}
