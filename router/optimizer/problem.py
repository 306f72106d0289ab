"""Builds each task's linear programme from what is known, and the plan from their solutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from common.quality.bound import Cell
from router.directives.bounds import Snapshot, bound_value, open_bound
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
    acting = [policy for policy in snapshot.policies if policy.mode is not Mode.OFF]
    for (model, task), (cells, tenants) in _judged(snapshot.bounds).items():
        policies = [policy for policy in acting if policy.task in ("", task)]
        carbon_of = _carbon(policies, model, task, costs, grams)
        for policy in policies:
            carbon = {name: carbon_of[name] for name in (L0.name, *policy.directives)}
            late = _late(policy, model, task, latencies) if latencies else None
            opened = _opened(snapshot, policy, cells, policy.tenant, now)
            entry = entries[policy.name, model, task] = _entry(policy, opened, carbon, late)
            # What is open clears the floor, by whatever bound: the names alone tell one tenant's entry from another's.
            entry_of = {frozenset(opened): entry}
            for tenant in () if policy.tenant else tenants:
                if match(snapshot.policies, tenant, task) is policy:
                    opened = _opened(snapshot, policy, cells, tenant, now)
                    if (names := frozenset(opened)) not in entry_of:
                        entry_of[names] = _entry(policy, opened, carbon, late)
                    if entry_of[names] is not entry:
                        of_tenant[policy.name, model, task, tenant] = entry_of[names]
    return Plan(entries, now, g_per_kwh, of_tenant)


class _Judged(NamedTuple):
    """What there are bounds of for a model's task: all tenants' cells, by directive, and tenants with their own."""

    cells: dict[str, Cell]
    tenants: dict[str, None]


def _judged(bounds: Iterable[Cell]) -> Mapping[tuple[str, str], _Judged]:
    found: dict[tuple[str, str], _Judged] = {}
    for cell in bounds:
        judged = found.get((cell.model, cell.task))
        if judged is None:
            judged = found[cell.model, cell.task] = _Judged({}, {})
        if cell.tenant:
            judged.tenants[cell.tenant] = None
        else:
            judged.cells[cell.directive] = cell
    return found


def _carbon(
    policies: Sequence[Policy], model: str, task: str, costs: CostBook, grams: Callable[[Cost], float]
) -> Mapping[str, float]:
    """Of a request, by L0 and the policies' directives, open or not."""
    names = dict.fromkeys((L0.name, *(name for policy in policies for name in policy.directives)))
    predicted = costs.predicted(model, task, names)
    # Without L0's cost there is no scale: the published shares order the levels then, all in units of one L0 request.
    if L0.name in predicted:
        return {name: grams(cost) for name, cost in predicted.items()}
    return {name: PRIOR_RELATIVE_CARBON.get(name, UNKNOWN_DIRECTIVE_PRIOR) for name in names}


def _late(policy: Policy, model: str, task: str, latencies: LatencyBook) -> Mapping[str, float] | None:
    """Share of answers later than the policy's objective, by L0 and its directives; None where there is nothing to go
    by."""
    if policy.latency is None:
        return None
    names = (L0.name, *policy.directives)
    known = latencies.late_shares(model, task, names, policy.latency.seconds)
    # Without L0's, what was never served is taken to be as late as the latest.
    return {name: known[name] if name in known else max(known.values()) for name in names} if known else None


def _opened(
    snapshot: Snapshot, policy: Policy, cells: Mapping[str, Cell], tenant: str, now: datetime
) -> Mapping[str, float]:
    """What a bound says that each directive keeps at least, of those that are open for a tenant; for all where it is
    empty. None is open without a bound of all tenants, whose are the `cells`, by directive."""
    found = {}
    for name in policy.directives:
        if (cell := cells.get(name)) is not None:
            whose = Cell(cell.model, cell.task, name, tenant) if tenant else cell
            bound, _ = open_bound(snapshot, policy, whose, policy.floor, now)
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
