"""How many scores an evaluator is told that a directive is worth: by the requests that its kept samples stand for."""

from typing import Any

import pytest
from pith.router.v1 import feedback_pb2, policies_pb2

from common.clock import ManualClock
from common.quality.sample_size import worthwhile_pairs
from router.store.database import Database
from tests.router.admin_client import AdminClient
from tests.router.quality_reports import keep

BUDGET = policies_pb2.QualityBudget(directive_floor=0.8)


async def add_policy(client: AdminClient, name: str, **fields: Any) -> None:
    given = {
        "mode": policies_pb2.MODE_ON,
        "task": "sums",
        "floor": 0.9,
        "directives": ["L1"],
        "grader": "numeric",
        "sample_share": 0.01,
        **fields,
    }
    request = policies_pb2.CreatePolicyRequest(policy=policies_pb2.Policy(name=name, **given))
    await client.policies.CreatePolicy(request)


async def worthwhile(evaluator: Any) -> dict[str, int]:
    """By directive, of the task sums."""
    plan = await evaluator.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
    return {t.cell.directive: t.worthwhile_samples for t in plan.targets if t.cell.task == "sums"}


async def test_it_is_by_the_requests_that_gradable_samples_stand_for(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await add_policy(client, "mean", quality_budget=BUDGET, tenant="acme")
    assert await worthwhile(evaluator) == {}
    await keep(database, clock, 20)
    await keep(database, clock, 5, prefix="ungraded", grader="")
    await keep(database, clock, 5, prefix="exact", grader="exact")
    await keep(database, clock, 5, prefix="other", task="lists")
    # The default policy allows L2 as well, and has no budget.
    assert await worthwhile(evaluator) == {"L1": worthwhile_pairs(2_000), "L2": 0}
    await keep(database, clock, 40)
    assert await worthwhile(evaluator) == {"L1": worthwhile_pairs(4_000), "L2": 0}


async def test_it_is_nothing_where_no_budget_is_spent_by_bounds(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 20)
    await add_policy(client, "each")
    assert (await worthwhile(evaluator))["L1"] == 0


@pytest.mark.parametrize("fields", [{"sample_share": 0.0}, {"grader": ""}, {"mode": policies_pb2.MODE_OFF}])
async def test_it_is_nothing_by_a_policy_that_has_nothing_judged(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock, fields: dict[str, Any]
) -> None:
    await keep(database, clock, 20)
    await add_policy(client, "each", tenant="other", sample_share=0.5)
    await add_policy(client, "mean", **{"quality_budget": BUDGET, "tenant": "acme", **fields})
    assert (await worthwhile(evaluator))["L1"] == 0


async def test_of_several_policies_with_a_budget_that_counts_which_is_worth_most(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 20)
    await add_policy(client, "a", tenant="acme", quality_budget=BUDGET)
    await add_policy(client, "b", tenant="beta", quality_budget=BUDGET, sample_share=0.1)
    # Samples of another grader are not judged.
    await add_policy(client, "c", tenant="other", quality_budget=BUDGET, sample_share=0.001, grader="exact")
    assert (await worthwhile(evaluator))["L1"] == worthwhile_pairs(2_000)


async def test_a_share_of_next_to_nothing_leaves_a_plan(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 20)
    await add_policy(client, "mean", tenant="acme", quality_budget=BUDGET, sample_share=5e-324)
    assert (await worthwhile(evaluator))["L1"] > 10**7
