"""Builds each task's linear programme from what is known, and the plan from their solutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from common.quality.estimates import Cell, QualityBound
from router.directives.decide import Snapshot, bound_value, open_bound
from router.directives.levels import PRIOR_RELATIVE_CARBON
from router.directives.policy import Mode, Policy
from router.optimizer.costs import UNKNOWN_DIRECTIVE_PRIOR, Cost, CostBook
from router.optimizer.plan import Plan, Shares
from router.optimizer.solve import Candidate, solve


def make_plan(
    snapshot: Snapshot, costs: CostBook, grams: Callable[[Cost], float], now: datetime, g_per_kwh: float | None
) -> Plan:
    """Solves every (policy, model, task) for which a bound exists; elsewhere nothing is open and L0 is the plan."""
    entries: dict[tuple[str, str, str], Shares] = {}
    for policy in snapshot.policies:
        if policy.mode is Mode.OFF:
            continue
        for model, task in _judged(snapshot.bounds, policy):
            candidates = _candidates(snapshot, policy, model, task, costs, grams, now)
            entries[policy.name, model, task] = solve(candidates, policy.floor)
    return Plan(entries, now, g_per_kwh)


def _judged(bounds: Mapping[Cell, QualityBound], policy: Policy) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((cell.model, cell.task) for cell in bounds if policy.task in ("", cell.task))


def _candidates(
    snapshot: Snapshot,
    policy: Policy,
    model: str,
    task: str,
    costs: CostBook,
    grams: Callable[[Cost], float],
    now: datetime,
) -> list[Candidate]:
    # Without L0's cost there is no scale: the published shares order the levels then, all in units of one L0 request.
    scaled = costs.predicted(Cell(model, task, "L0")) is not None

    def cost_of(name: str) -> float:
        cost = costs.predicted(Cell(model, task, name)) if scaled else None
        return grams(cost) if cost else PRIOR_RELATIVE_CARBON.get(name, UNKNOWN_DIRECTIVE_PRIOR)

    # L0 is what quality is a share of, and the safe side of an absolute floor: it satisfies any.
    candidates = [Candidate("L0", cost_of("L0"), max(1.0, policy.floor))]
    for name in policy.directives:
        bound, _ = open_bound(snapshot, policy, model, task, name, policy.floor, now)
        if bound is not None:
            candidates.append(Candidate(name, cost_of(name), bound_value(bound, policy)))
    return candidates
