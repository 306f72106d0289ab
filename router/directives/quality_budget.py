"""What a mix of directives may lose of quality, where a policy's floor is one of the mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from common.carbon.hours import hour_start
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget
from router.optimizer.plan import Entry, Plan

_ROUNDING = 1e-9


def over_the_day(policies: Iterable[Policy]) -> list[Policy]:
    """Those that act, or would if they were not in shadow, and have a budget over the day."""
    return [
        policy
        for policy in policies
        if policy.mode is not Mode.OFF
        and policy.quality_budget is not None
        and policy.quality_budget.scope is BudgetScope.DAY
    ]


def granted_floor(policy: Policy, budget: QualityBudget, entry: Entry, plan: Plan, now: datetime) -> float:
    """What the requests of the entry's task must keep in the mean. What a day's budget grants holds in the hour that it
    was reckoned for, and for what the policy was then; else, and until the next plan, the policy's floor does."""
    is_of_now = entry.policy_revision == policy.revision and hour_start(plan.made_at) == hour_start(now)
    if budget.scope is BudgetScope.TASK or entry.floor is None or not is_of_now:
        return policy.floor
    return entry.floor


def kept_within(
    shares: Sequence[tuple[str, float]], bounds: Mapping[str, float], floor: float
) -> list[tuple[str, float]]:
    """The directives' shares, all of them less where bounds have fallen since they were planned, so that the mean with
    L0's requests keeps the floor by the bounds of now.

    Args:
        shares: Of requests, by directive; the rest is L0's.
        bounds: Share of L0's quality that each surely keeps.
        floor: Above 1 where directives keep more than L0's quality, of which no less of them would leave more.
    """
    lost = sum(share * (1.0 - bounds[name]) for name, share in shares)
    most = max(0.0, 1.0 - floor)
    if lost <= most + _ROUNDING:
        return list(shares)
    return [(name, share * most / lost) for name, share in shares]


def budget_words(policy: Policy, budget: QualityBudget, plan: Plan, floor: float) -> str:
    """What the budget grants, and how the day's stands."""
    if budget.scope is BudgetScope.TASK:
        return f"quality budget: the mean of the task's requests keeps {floor:.3f}"
    words = f"quality budget of the day (UTC): the mean of this task's requests keeps {floor:.3f} at present"
    standing = plan.budgets.get(policy.name)
    if standing is None:
        return f"{words}, as too little is known of the day's requests to grant less"
    so_far = "no request yet" if standing.kept is None else f"{standing.requests:,} requests kept {standing.kept:.3f}"
    expected = "" if standing.keeps else ", and it is not expected to be kept"
    return f"{words}; so far {so_far}, of a floor of {policy.floor:.3f}{expected}"
