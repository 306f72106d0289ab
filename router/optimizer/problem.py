"""Builds each task's linear programme from what is known, and the plan from their solutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from common.quality.bound import Cell, QualityBound
from router.directives.decide import Snapshot, bound_value, open_bound
from router.directives.levels import L0, PRIOR_RELATIVE_CARBON
from router.directives.policy import Mode, Policy, match
from router.optimizer.costs import UNKNOWN_DIRECTIVE_PRIOR, Cost, CostBook
from router.optimizer.latency import LatencyBook
from router.optimizer.plan import Entry, Plan
from router.optimizer.solve import Candidate, solve


def make_plan(
    snapshot: Snapshot,
    costs: CostBook,
    grams: Callable[[Cost], float],
    now: datetime,
    g_per_kwh: float | None,
    latencies: LatencyBook | None = None,
) -> Plan:
    """Solves every (policy, model, task) for which a bound exists; elsewhere nothing is open and L0 is the plan. For
    tenants whose own bounds open other directives it solves a policy for every tenant once more.

    Args:
        grams: Carbon of a request at the intensity that the plan is for.
        latencies: Answer times; without, latency objectives have no effect.
    """
    entries: dict[tuple[str, str, str], Entry] = {}
    of_tenant: dict[tuple[str, str, str, str], Entry] = {}
    tenants: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for cell in snapshot.bounds:
        if cell.tenant:
            tenants[cell.model, cell.task][cell.tenant] = None
    for policy in snapshot.policies:
        if policy.mode is Mode.OFF:
            continue
        for model, task in _judged(snapshot.bounds, policy):
            carbon = _carbon(policy, model, task, costs, grams)
            late = _late(policy, model, task, latencies) if latencies else None
            opened = _opened(snapshot, policy, model, task, policy.tenant, now)
            entry = entries[policy.name, model, task] = _entry(policy, opened, carbon, late)
            # What is open clears the floor, by whatever bound: the names alone tell one tenant's entry from another's.
            entry_of = {frozenset(opened): entry}
            for tenant in () if policy.tenant else tenants[model, task]:
                if match(snapshot.policies, tenant, task) is policy:
                    opened = _opened(snapshot, policy, model, task, tenant, now)
                    if (names := frozenset(opened)) not in entry_of:
                        entry_of[names] = _entry(policy, opened, carbon, late)
                    if entry_of[names] is not entry:
                        of_tenant[policy.name, model, task, tenant] = entry_of[names]
    return Plan(entries, now, g_per_kwh, of_tenant)


def _judged(bounds: Mapping[Cell, QualityBound], policy: Policy) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((cell.model, cell.task) for cell in bounds if policy.task in ("", cell.task))


def _carbon(
    policy: Policy, model: str, task: str, costs: CostBook, grams: Callable[[Cost], float]
) -> Mapping[str, float]:
    """Of a request, by L0 and the policy's directives, open or not."""
    names = (L0.name, *policy.directives)
    predicted = costs.predicted(model, task, names)
    # Without L0's cost there is no scale: the published shares order the levels then, all in units of one L0 request.
    if L0.name in predicted:
        return {name: grams(predicted[name]) for name in names}
    return {name: PRIOR_RELATIVE_CARBON.get(name, UNKNOWN_DIRECTIVE_PRIOR) for name in names}


def _late(policy: Policy, model: str, task: str, latencies: LatencyBook) -> Mapping[str, float] | None:
    """Share of answers later than the policy's objective, by L0 and its directives; None where there is nothing to go
    by."""
    if policy.latency is None:
        return None
    seconds = policy.latency.seconds
    shares = {n: latencies.late_share(Cell(model, task, n), seconds) for n in (L0.name, *policy.directives)}
    known = [share for share in shares.values() if share is not None]
    # Without L0's, what was never served is taken to be as late as the latest.
    return {n: max(known) if share is None else share for n, share in shares.items()} if known else None


def _opened(
    snapshot: Snapshot, policy: Policy, model: str, task: str, tenant: str, now: datetime
) -> Mapping[str, float]:
    """What a bound says that each directive keeps at least, of those that are open for a tenant; for all where it is
    empty."""
    found = {}
    for name in policy.directives:
        bound, _ = open_bound(snapshot, policy, Cell(model, task, name, tenant), policy.floor, now)
        if bound is not None:
            found[name] = bound_value(bound, policy)
    return found


def _entry(
    policy: Policy, opened: Mapping[str, float], carbon: Mapping[str, float], late: Mapping[str, float] | None
) -> Entry:
    late_of = late or dict.fromkeys(carbon, 0.0)
    # L0 is what quality is a share of, and the safe side of an absolute floor: it satisfies any.
    candidates = [Candidate(L0.name, carbon[L0.name], max(1.0, policy.floor), late_of[L0.name])]
    candidates += [Candidate(name, carbon[name], quality, late_of[name]) for name, quality in opened.items()]
    most_late = 1.0 - policy.latency.share if policy.latency and late else None
    shares = solve(candidates, policy.floor, most_late)
    return Entry(
        shares,
        by_carbon=tuple(sorted(carbon, key=lambda name: carbon[name])),
        late_share=None if late is None else sum(share * late[name] for name, share in shares),
    )
