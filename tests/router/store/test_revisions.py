"""Directives and policies: every revision stays, the newest is in force."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from common.quality.bound import FloorKind
from router.directives.levels import Directive, Placement
from router.directives.policy import (
    BudgetScope,
    CarbonBudget,
    LatencyObjective,
    Mode,
    Policy,
    QualityBudget,
    WhenSpent,
)
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BRIEF = Directive(
    name="brief",
    text="Be brief · 簡潔に",
    placement=Placement.SYSTEM,
    max_output_tokens=64,
    stop=("\n\n", "END"),
    suppressed_words=("perhaps",),
    history_messages=3,
    model="tiny@0123456789ab",
    updated_at=NOW,
    updated_by="ada",
)
POLICY = Policy(
    name="support",
    tenant="acme",
    task="extraction",
    mode=Mode.ON,
    traffic_share=0.5,
    floor=0.9,
    floor_kind=FloorKind.ABSOLUTE,
    directives=("brief", "L1"),
    holdback_share=0.1,
    sample_share=0.2,
    grader="exact",
    bound_max_age_seconds=3600,
    updated_at=NOW,
    updated_by="ada",
)


async def test_a_directive_comes_back_as_it_was(database: Database) -> None:
    async with database.changing() as connection:
        await DirectiveRepository(connection).add(BRIEF, Action.CREATE, "why not")
    async with database.reading() as connection:
        found = await DirectiveRepository(connection).get("brief")
    assert found == BRIEF
    assert found is not None
    assert (found.updated_at, found.updated_by) == (NOW, "ada")


async def test_the_newest_revision_is_in_force_until_deleted(database: Database) -> None:
    async with database.changing() as connection:
        directives = DirectiveRepository(connection)
        other = Directive("Able", updated_at=NOW)
        await directives.add(BRIEF, Action.CREATE, "")
        await directives.add(other, Action.CREATE, "")
        newer = replace(BRIEF, text="Briefer", revision=2)
        await directives.add(newer, Action.UPDATE, "")
        assert await directives.get("brief") == newer
        assert await directives.all() == (other, newer)
        await directives.add(replace(newer, revision=3), Action.DELETE, "")
        assert await directives.get("brief") is None
        assert await directives.all() == (other,)
        assert await directives.last_revision("brief") == 3
        assert await directives.last_revision("never") == 0
        again = replace(BRIEF, revision=4)
        await directives.add(again, Action.CREATE, "")
        assert await directives.all() == (other, again)


async def test_names_are_in_the_same_order_on_every_database(database: Database) -> None:
    names = ["b", "B", "a", "A", "_", "1", "."]
    async with database.changing() as connection:
        policies = PolicyRepository(connection)
        for name in names:
            await policies.add(Policy(name, updated_at=NOW), Action.CREATE, "")
        assert [policy.name for policy in await policies.all()] == sorted(names)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"latency": LatencyObjective(2.5, 0.9)},
        {"carbon_budget": CarbonBudget(1 / 3, WhenSpent.REFUSE)},
        {"quality_budget": QualityBudget(1 / 3)},
        {"quality_budget": QualityBudget(0.85, BudgetScope.DAY)},
        {"leave_alone": frozenset()},
    ],
    ids=["none", "latency", "carbon", "quality of tasks", "quality of days", "nothing left alone"],
)
async def test_the_parts_of_a_policy_come_back(database: Database, parts: dict[str, Any]) -> None:
    policy = Policy("p", updated_at=NOW, **parts)
    async with database.changing() as connection:
        await PolicyRepository(connection).add(policy, Action.CREATE, "")
    async with database.reading() as connection:
        assert await PolicyRepository(connection).all() == (policy,)


async def test_a_policy_and_its_history(database: Database) -> None:
    async with database.changing() as connection:
        policies = PolicyRepository(connection)
        await policies.add(POLICY, Action.CREATE, "the first")
        for revision in (2, 3, 4):
            await policies.add(replace(POLICY, floor=0.9 + revision / 100, revision=revision), Action.UPDATE, "")
        await policies.add(replace(POLICY, revision=5), Action.DELETE, "no longer needed")
    async with database.reading() as connection:
        policies = PolicyRepository(connection)
        assert await policies.get("support") is None
        first = await policies.revision("support", 1)
        assert first is not None
        assert (first.policy, first.action, first.reason) == (POLICY, Action.CREATE, "the first")
        assert await policies.revision("support", 6) is None
        newest = await policies.revisions("support", limit=2)
        assert [(r.policy.revision, r.action) for r in newest] == [(5, Action.DELETE), (4, Action.UPDATE)]
        rest = await policies.revisions("support", limit=9, before=4)
        assert [r.policy.revision for r in rest] == [3, 2, 1]
