"""Carbon and quality budgets among the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.directives.quality_budget import over_the_day
from router.snapshot import SnapshotKeeper
from router.spending import Spending

MAX_POLICIES = 200
"""With a budget of either kind, in order of name: each is two series, or three."""


class BudgetMetrics(Collector):
    """What each policy with a carbon budget has emitted today, over all routers, and what it may; how each quality
    budget over the day stood when the plan in force was made. Does no I/O."""

    def __init__(self, keeper: SnapshotKeeper, spending: Spending) -> None:
        self._keeper = keeper
        self._spending = spending

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return (*self._of_carbon(), *self._of_quality())

    def _of_carbon(self) -> Iterable[GaugeMetricFamily]:
        spent = GaugeMetricFamily(
            "pith_router_carbon_budget_spent_grams",
            "gCO2eq of a policy's requests today (UTC), over all routers; the most under any one signal.",
            labels=("policy",),
        )
        budget = GaugeMetricFamily(
            "pith_router_carbon_budget_grams", "gCO2eq that a policy's requests may emit a day.", labels=("policy",)
        )
        policies = sorted(self._keeper.snapshot.policies, key=lambda policy: policy.name)
        limited = ((p.name, p.carbon_budget) for p in policies if p.carbon_budget is not None)
        for name, limit in islice(limited, MAX_POLICIES):
            spent.add_metric((name,), self._spending.today(name))
            budget.add_metric((name,), limit.grams_per_day)
        return spent, budget

    def _of_quality(self) -> Iterable[GaugeMetricFamily]:
        kept = GaugeMetricFamily(
            "pith_router_quality_budget_kept_ratio",
            "Mean share of L0's quality that a policy's requests today (UTC) surely kept, over all routers.",
            labels=("policy",),
        )
        floor = GaugeMetricFamily(
            "pith_router_quality_budget_floor_ratio", "What that is to be over the day.", labels=("policy",)
        )
        price = GaugeMetricFamily(
            "pith_router_quality_budget_price_grams",
            "gCO2eq that are to be saved for the quality of one request; infinite where none may be spent.",
            labels=("policy",),
        )
        snapshot = self._keeper.snapshot
        limited = sorted(over_the_day(snapshot.policies), key=lambda policy: policy.name)
        for policy in limited[:MAX_POLICIES]:
            floor.add_metric((policy.name,), policy.floor)
            if (standing := snapshot.plan.budgets.get(policy.name)) is not None:
                price.add_metric((policy.name,), standing.grams)
                if standing.kept is not None:
                    kept.add_metric((policy.name,), standing.kept)
        return kept, floor, price
