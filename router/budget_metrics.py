"""Carbon budgets among the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.snapshot import SnapshotKeeper
from router.spending import Spending

MAX_POLICIES = 200
"""With a budget, in order of name: each is two series."""


class BudgetMetrics(Collector):
    """What each policy with a carbon budget has emitted today, over all routers, and what it may. Does no I/O."""

    def __init__(self, keeper: SnapshotKeeper, spending: Spending) -> None:
        self._keeper = keeper
        self._spending = spending

    def collect(self) -> Iterable[GaugeMetricFamily]:
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
