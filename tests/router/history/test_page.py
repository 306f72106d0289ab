"""Histories read from a database, and asked for at the service."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pith.router.v1 import reports_pb2

from common.clock import ManualClock
from common.errors import PithError
from common.quality.bound import Cell
from router import pagination
from router.directives.policy import Policy
from router.history.page import read_page, read_token, write_token
from router.history.records import Cursor
from router.history.replay import Question
from router.history.step import Step
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.quality import Place, QualityRepository, Reporter
from tests.postgres import on_both_databases
from tests.router.admin_client import AdminClient, faults, refused
from tests.router.history.recorded import CELL, REPORTER, Life, at, bound, directive, policy, withdrawal

pb: Any = reports_pb2
OTHER = replace(CELL, task="lists")
LIFE = Life(
    bounds=[
        bound(10),
        bound(11, cell=replace(CELL, model="tiny@4567")),
        bound(12, 0.5, cell=replace(CELL, tenant="acme"), upper=0.9),
        bound(13, cell=OTHER),
        bound(20, 0.97),
        withdrawal(30, bound(20, 0.97)),
        bound(45, 0.98, revision=2),
        bound(46, 0.99, cell=replace(CELL, model="Tiny@0123"), revision=2),
    ],
    directives=[directive(0), directive(0, name="L2"), directive(40, 2)],
    policies=[policy(0), policy(1, name="lists", task="lists"), policy(25, 2, floor=0.98), policy(50, 3, floor=0.9)],
)


async def record(database: Database) -> None:
    """As the services would."""
    async with database.changing() as connection:
        for revision in LIFE.directives:
            await DirectiveRepository(connection).add(revision.directive, revision.action, revision.reason)
        for changed in LIFE.policies:
            await PolicyRepository(connection).add(changed.policy, changed.action, changed.reason)
        quality = QualityRepository(connection)
        for one in LIFE.bounds:
            if one.withdrawal is None:
                await quality.add_bounds([one.bound], one.reporter, one.reported_at)
            else:
                await quality.withdraw([one.withdrawal], one.reporter)


async def all_steps(
    database: Database, place: Place, question: Question, size: int = 500, most_records: int = 1000
) -> list[Step]:
    found: list[Step] = []
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        steps, cursor = await read_page(database, place, question, cursor, size, at(200), most_records)
        assert len(steps) <= size
        found += steps
        if cursor is not None:
            cursor = read_token("x", write_token("x", cursor))
    return found


@on_both_databases
async def test_a_history_is_that_of_the_records_whatever_the_pages(database: Database) -> None:
    await record(database)
    for question in (Question(), Question(all_steps=True), Question(tenant="acme")):
        told = LIFE.steps(at(200), question)
        assert told
        assert await all_steps(database, Place(tenant=question.tenant), question) == told
        for size, most_records in ((1, 2), (2, 1), (3, 5)):
            assert await all_steps(database, Place(tenant=question.tenant), question, size, most_records) == told


@on_both_databases
async def test_places_are_told_apart(database: Database) -> None:
    await record(database)

    async def cells(place: Place) -> set[Cell]:
        return {step.cell for step in await all_steps(database, place, Question(all_steps=True))}

    assert await cells(Place(task="lists")) == {OTHER}
    assert await cells(Place(task="")) == set()
    assert await cells(Place(directive="L2")) == set()
    assert {cell.model for cell in await cells(Place("tiny"))} == {"tiny@0123", "tiny@4567"}
    assert {cell.model for cell in await cells(Place("tiny@4567"))} == {"tiny@4567"}
    assert await cells(Place("tin")) == set()
    assert await cells(Place("tiny%")) == set()


async def ask(client: AdminClient, **fields: Any) -> Any:
    return await client.reports.ListQualityHistory(pb.ListQualityHistoryRequest(**fields))


async def open_and_close(database: Database, keeper: SnapshotKeeper, clock: ManualClock) -> None:
    """For the default policy: opens L1 for two tasks; then one drifts."""
    await clock.advance(60)
    bounds = [replace(bound(0).bound, cell=cell, updated_at=clock.now()) for cell in (CELL, OTHER)]
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds(bounds, REPORTER, clock.now())
    await clock.advance(60)
    drift = withdrawal(0, bound(0)).withdrawal
    assert drift is not None
    async with database.changing() as connection:
        await QualityRepository(connection).withdraw([replace(drift, at=clock.now())], Reporter("e2"))
    await keeper.refresh()


async def test_steps_come_with_all_that_they_rest_on(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await open_and_close(database, keeper, clock)
    reply = await ask(client, task="sums")
    opened, closed = reply.steps
    assert (opened.cause, closed.cause) == (pb.QUALITY_STEP_CAUSE_BOUND, pb.QUALITY_STEP_CAUSE_WITHDRAWAL)
    assert (opened.evidence.evaluator, opened.evidence.code_revision, opened.evidence.position) == (
        REPORTER.evaluator,
        REPORTER.code_revision,
        REPORTER.position,
    )
    assert (opened.evidence.bound.lower, opened.evidence.bound.samples) == (0.96, 73)
    (opening,) = opened.openings
    assert (opening.policy, opening.policy_revision, opening.was_open, opening.open) == ("default", 1, False, True)
    assert opening.floor == 0.95
    assert opening.bound_max_age_seconds == Policy("x").bound_max_age_seconds
    assert closed.withdrawal.floor.quality == 0.95
    assert closed.evidence.evaluator == "e2"
    assert not opened.HasField("withdrawal")


async def test_pages_follow_one_another_in_one_question(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await open_and_close(database, keeper, clock)
    whole = (await ask(client)).steps
    assert len(whole) == 3
    found: list[Any] = []
    token = ""
    while not found or token:
        page = await ask(client, page_size=1, page_token=token)
        found += page.steps
        token = page.next_page_token
    assert found == list(whole)
    first = (await ask(client, page_size=1)).next_page_token
    for asked in ({"task": ""}, {"directive": "L1"}, {"all_steps": True}, {"policy": "default"}, {"tenant": "acme"}):
        assert set(await faults(ask(client, page_token=first, **asked))) == {"page_token"}


async def test_a_bound_grows_old_on_the_routers_clock(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await open_and_close(database, keeper, clock)
    await clock.advance(timedelta(days=7).total_seconds() - 60)
    assert len((await ask(client, task="lists")).steps) == 1
    await clock.advance(1)
    *_, aged = (await ask(client, task="lists")).steps
    assert aged.cause == pb.QUALITY_STEP_CAUSE_AGE


async def test_only_admins_may_and_limits_hold(client: AdminClient) -> None:
    for role in ("client", "evaluator"):
        _, _, reports = client.as_role(role)
        call = reports.ListQualityHistory(pb.ListQualityHistoryRequest())
        await refused(call, "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    long = dict.fromkeys(("model", "task", "directive", "tenant", "policy"), "x" * 257)
    assert set(await faults(ask(client, **long))) == {*long}
    assert set(await faults(ask(client, tenant="\x00"))) == {"tenant"}


KEY = ("2026-01-01T12:00:00+00:00", "L1", "3")
NONE = ("", "", "")


@pytest.mark.parametrize(
    "texts",
    [("0", *NONE, *NONE, "", "0"), ("5", *KEY, *NONE, "2026-01-01T12:00:00.000001+00:00", "2")],
    ids=["beginning", "amid"],
)
def test_a_token_that_was_given_goes_on(texts: tuple[str, ...]) -> None:
    token = pagination.write_token("x", texts)
    assert write_token("x", read_token("x", token)) == token


@pytest.mark.parametrize(
    "texts",
    [
        ("-1", *NONE, *NONE, "", "0"),
        (str(2**63), *NONE, *NONE, "", "0"),
        ("05", *NONE, *NONE, "", "0"),
        ("0", *NONE, *NONE, "", "-1"),
        ("0", *NONE, *NONE, "2026-01-01", "0"),
        ("0", "2026-01-01T12:00:00", *KEY[1:], *NONE, "", "0"),
        ("0", *NONE, "0001-01-01T00:00:00+14:00", *KEY[1:], "", "0"),
        ("0", KEY[0], "\ud800", "3", *NONE, "", "0"),
        ("0", *NONE, *KEY[:2], str(2**31), "", "0"),
        ("0", *NONE, *NONE, "", "0", "0"),
        ("0",),
        (),
        (0,) * 9,
    ],
)
def test_a_token_of_nobodys_is_refused(texts: tuple[Any, ...]) -> None:
    with pytest.raises(PithError, match="page_token"):
        read_token("x", pagination.write_token("x", texts))
