"""A policy's quality budget over gRPC: what it may say, that it is kept, and what it opens."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from pith.router.v1 import feedback_pb2, policies_pb2, reports_pb2

from common.clock import ManualClock
from router.directives.policy import BudgetScope, QualityBudget
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from tests.postgres import on_both_databases
from tests.router.admin_client import AdminClient, faults
from tests.router.quality_reports import bound, keep, report

pb: Any = policies_pb2
TASK, DAY = pb.QualityBudget.SCOPE_TASK, pb.QualityBudget.SCOPE_DAY


@pytest.fixture
def admin(client: AdminClient) -> Any:
    return client.policies


def budget(directive_floor: float = 0.85, scope: int = 0) -> Any:
    return pb.QualityBudget(directive_floor=directive_floor, scope=scope)


def policy(name: str = "p", **fields: Any) -> Any:
    return pb.Policy(name=name, **{"tenant": name, "floor": 0.95, "directives": ["L1"], **fields})


async def create(admin: Any, **fields: Any) -> Any:
    return await admin.CreatePolicy(pb.CreatePolicyRequest(policy=policy(**fields), reason="test"))


async def update(admin: Any, etag: str, *paths: str, **fields: Any) -> Any:
    given = pb.Policy(name="p", etag=etag, **fields)
    return await admin.UpdatePolicy(pb.UpdatePolicyRequest(policy=given, update_mask=FieldMask(paths=paths)))


FLOOR_FAULT = "must be above 0 and below the policy's floor, "
FAULTY: list[tuple[dict[str, Any], str, str]] = [
    ({"quality_budget": budget(0)}, "directive_floor", f"is 0; {FLOOR_FAULT}0.95"),
    ({"quality_budget": budget(-0.1)}, "directive_floor", f"is -0.1; {FLOOR_FAULT}0.95"),
    ({"quality_budget": budget(0.95)}, "directive_floor", f"is 0.95; {FLOOR_FAULT}0.95"),
    ({"quality_budget": budget(0.9), "floor": 0.8}, "directive_floor", f"is 0.9; {FLOOR_FAULT}0.8"),
    ({"quality_budget": budget(1), "floor": 1}, "directive_floor", f"is 1; {FLOOR_FAULT}1"),
    ({"quality_budget": budget(math.nan)}, "directive_floor", f"is nan; {FLOOR_FAULT}0.95"),
    ({"quality_budget": budget(math.inf)}, "directive_floor", f"is inf; {FLOOR_FAULT}0.95"),
    ({"quality_budget": budget(0.85, 9)}, "scope", "is 9; must be one of SCOPE_TASK, SCOPE_DAY"),
    ({"quality_budget": budget(0.85, -1)}, "scope", "is -1; must be one of SCOPE_TASK, SCOPE_DAY"),
    (
        {"quality_budget": budget(), "floor_kind": pb.FLOOR_KIND_ABSOLUTE},
        "",
        "needs the floor_kind FLOOR_KIND_RELATIVE; the policy's is FLOOR_KIND_ABSOLUTE",
    ),
]


@pytest.mark.parametrize(("fields", "part", "fault"), FAULTY)
async def test_what_a_budget_cannot_say_is_refused_at_every_door(
    admin: Any, fields: dict[str, Any], part: str, fault: str
) -> None:
    at = f"quality_budget{'.' if part else ''}{part}"
    wish = policy(**fields)
    assert await faults(admin.CreatePolicy(pb.CreatePolicyRequest(policy=wish))) == {f"policy.{at}": fault}
    assert await faults(admin.Simulate(pb.SimulateRequest(policy=wish))) == {f"policy.{at}": fault}
    second = {f"policies[1].{at}": fault}
    assert await faults(admin.Apply(pb.ApplyRequest(policies=[policy("sound"), wish]))) == second
    assert await faults(admin.CheckPolicies(pb.CheckPoliciesRequest(policies=[policy("sound"), wish]))) == second
    made = await create(admin)
    found = await faults(update(admin, made.etag, "quality_budget", "floor", "floor_kind", **{"floor": 0.95, **fields}))
    assert found == {f"policy.{at}": fault}
    assert [one.name for one in (await admin.ListPolicies(pb.ListPoliciesRequest())).policies] == ["default", "p"]


@pytest.mark.parametrize("floor", [0, math.nan, 2])
async def test_a_floor_at_fault_is_told_once(admin: Any, floor: float) -> None:
    assert set(await faults(create(admin, floor=floor, quality_budget=budget(0.85)))) == {"policy.floor"}
    both = {"policy.floor", "policy.quality_budget.directive_floor"}
    assert set(await faults(create(admin, floor=floor, quality_budget=budget(1)))) == both


@on_both_databases
@pytest.mark.parametrize(
    ("given", "kept", "in_force"),
    [
        (budget(), budget(0.85, TASK), QualityBudget(0.85)),
        (budget(5e-324, TASK), budget(5e-324, TASK), QualityBudget(5e-324)),
        (budget(0.9499999, DAY), budget(0.9499999, DAY), QualityBudget(0.9499999, BudgetScope.DAY)),
        (None, None, None),
    ],
)
async def test_what_it_can_say_is_kept_and_in_force(
    admin: Any, keeper: SnapshotKeeper, given: Any, kept: Any, in_force: QualityBudget | None
) -> None:
    made = await create(admin, quality_budget=given)
    assert made == await admin.GetPolicy(pb.GetPolicyRequest(name="p"))
    assert made.HasField("quality_budget") is (kept is not None)
    assert made.quality_budget == (kept or pb.QualityBudget())
    (found,) = (one for one in keeper.snapshot.policies if one.name == "p")
    assert found.quality_budget == in_force
    assert found.opening_floor == (0.95 if in_force is None else in_force.directive_floor)


async def test_an_update_sets_it_replaces_it_and_takes_it_out(admin: Any) -> None:
    made = await create(admin)
    given = await update(admin, made.etag, "quality_budget", quality_budget=budget(0.85, DAY), floor=0.5)
    assert (given.quality_budget, given.floor, given.revision) == (budget(0.85, DAY), 0.95, 2)
    same = await update(admin, given.etag, "quality_budget", quality_budget=budget(0.85, DAY))
    assert (same.revision, same.etag) == (2, given.etag)
    # As a message, it is replaced whole: what is not said of it gets its default.
    replaced = await update(admin, given.etag, "quality_budget", quality_budget=budget(0.8))
    assert replaced.quality_budget == budget(0.8, TASK)
    other = await update(admin, replaced.etag, "mode", mode=pb.MODE_ON)
    assert other.quality_budget == budget(0.8, TASK)
    unmasked = await admin.UpdatePolicy(
        pb.UpdatePolicyRequest(policy=pb.Policy(name="p", etag=other.etag, quality_budget=budget(0.7)))
    )
    assert unmasked.quality_budget == budget(0.7, TASK)
    removed = await update(admin, unmasked.etag, "quality_budget")
    assert not removed.HasField("quality_budget")
    found = await faults(update(admin, removed.etag, "quality_budget.scope", quality_budget=budget(0.7, DAY)))
    assert found["update_mask"].startswith("has 'quality_budget.scope'; must name fields of Policy")
    back = await admin.RollbackPolicy(pb.RollbackPolicyRequest(name="p", revision=2, etag=removed.etag))
    assert (back.quality_budget, back.floor) == (budget(0.85, DAY), 0.95)


async def test_an_update_of_the_floor_alone_must_suit_the_budget(admin: Any) -> None:
    made = await create(admin, quality_budget=budget(0.85))
    assert await faults(update(admin, made.etag, "floor", floor=0.85)) == {
        "policy.quality_budget.directive_floor": f"is 0.85; {FLOOR_FAULT}0.85"
    }
    found = await faults(update(admin, made.etag, "floor_kind", floor_kind=pb.FLOOR_KIND_ABSOLUTE))
    assert set(found) == {"policy.quality_budget"}
    without = await update(admin, made.etag, "floor_kind", "quality_budget", floor_kind=pb.FLOOR_KIND_ABSOLUTE)
    assert (without.floor_kind, without.HasField("quality_budget")) == (pb.FLOOR_KIND_ABSOLUTE, False)


@on_both_databases
async def test_apply_makes_it_as_wished_once(admin: Any) -> None:
    wish = pb.ApplyRequest(policies=[policy(quality_budget=budget(0.85, DAY))])
    (change,) = (await admin.Apply(wish)).changes
    assert change.policy_after.quality_budget == budget(0.85, DAY)
    assert not (await admin.Apply(wish)).changes
    (change,) = (await admin.Apply(pb.ApplyRequest(policies=[policy()]))).changes
    assert change.policy_before.HasField("quality_budget") and not change.policy_after.HasField("quality_budget")


@on_both_databases
async def test_bounds_open_at_the_directive_floor_and_evaluators_learn_both(
    client: AdminClient, admin: Any, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    _, _, reports = client.as_role("admin")
    everybody = {"tenant": "", "task": "sums", "mode": pb.MODE_ON, "grader": "numeric"}
    await create(admin, **everybody)
    await keep(database, clock, 1)
    assert await report(evaluator, bounds=[bound(clock, 0.9)]) == []

    async def opened() -> tuple[list[str], list[str]]:
        (listed,) = (await reports.ListBounds(reports_pb2.ListBoundsRequest())).bounds
        return list(listed.open_for), list(listed.closed_for)

    async def floors() -> list[float]:
        plan = await evaluator.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
        (target,) = (one for one in plan.targets if one.cell.directive == "L1")
        return [floor.quality for floor in target.floors]

    async def budgeted(**fields: Any) -> tuple[list[str], list[str]]:
        await clock.advance(60)
        present = await admin.GetPolicy(pb.GetPolicyRequest(name="p"))
        await update(admin, present.etag, "quality_budget", **fields)
        return await opened()

    assert await opened() == ([], ["p"])
    assert await floors() == [0.95]
    assert await budgeted(quality_budget=budget(0.85)) == (["p"], [])
    assert await floors() == [0.85, 0.95]
    assert await budgeted(quality_budget=budget(0.91, DAY)) == ([], ["p"])
    await clock.advance(60)
    assert await report(evaluator, bounds=[bound(clock, 0.92)]) == [("L1", "p", True)]
    assert await opened() == (["p"], [])
    assert await budgeted() == ([], ["p"])

    history = await reports.ListQualityHistory(reports_pb2.ListQualityHistoryRequest())
    told = [(one.floor, one.was_open, one.open) for step in history.steps for one in step.openings]
    assert told == [(0.85, False, True), (0.91, True, False), (0.91, False, True), (0.95, True, False)]
    assert history.steps[0].policy.policy.quality_budget == budget(0.85, TASK)
    assert not history.steps[0].policy_before.HasField("quality_budget")


async def test_a_budget_with_nothing_to_spend_it_on_is_told(admin: Any) -> None:
    async def codes(**fields: Any) -> dict[str, str]:
        request = pb.CheckPoliciesRequest(policies=[policy(mode=pb.MODE_OFF, quality_budget=budget(), **fields)])
        findings = (await admin.CheckPolicies(request)).findings
        return {found.code: found.message for found in findings if found.subject == "p"}

    assert await codes() == {}
    found = await codes(directives=[])
    assert set(found) == {"quality_budget_without_directives"}
    assert "take the budget out" in found["quality_budget_without_directives"]


async def test_a_tenants_lower_directive_floor_is_nothing_to_tell_of(admin: Any) -> None:
    of_all = policy("all", tenant="", grader="numeric", quality_budget=budget(0.9))
    own = policy("own", grader="numeric", quality_budget=budget(0.5))
    request = pb.CheckPoliciesRequest(policies=[of_all, own])
    found = {finding.code for finding in (await admin.CheckPolicies(request)).findings if finding.subject == "own"}
    assert found <= {"all_closed"}
