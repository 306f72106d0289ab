"""Builds each task's linear programme from what is known, and the plan from their solutions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from common.quality.bound import Cell
from router.directives.bounds import Snapshot, bound_value, open_bound
from router.directives.levels import L0, PRIOR_RELATIVE_CARBON
from router.directives.policy import Mode, Policy, match
from router.directives.quality_budget import over_the_day
from router.optimizer.costs import UNKNOWN_DIRECTIVE_PRIOR, Cost, CostBook
from router.optimizer.grants import Class, Day, Known, Standing, grants
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
    day: Day | None = None,
    accepting: Collection[str] = (),
) -> Plan:
    """Solves every (policy, model, task) for which a bound exists; elsewhere nothing is open and L0 is the plan. For
    tenants whose own bounds open other directives it solves a policy for every tenant once more.

    Args:
        grams: Carbon of a request at the intensity that the plan is for.
        latencies: Answer times; without, latency objectives have no effect.
        day: What quality budgets over a day go by; without, they are kept by each task at any time.
        accepting: "name@digest" of the models that engines here accept requests for.
    """
    entries: dict[tuple[str, str, str], Entry] = {}
    of_tenant: dict[tuple[str, str, str, str], Entry] = {}
    acting = [policy for policy in snapshot.policies if policy.mode is not Mode.OFF]
    judged_of = _judged(snapshot.bounds)
    known = _known(snapshot, accepting, acting, judged_of, costs, grams, day, now) if day else {}
    granted, budgets = _granted(acting, known, day) if day else ({}, {})
    for (model, task), judged in judged_of.items():
        policies = [policy for policy in acting if policy.task in ("", task)]
        carbon_of = _carbon(policies, model, task, costs, grams)
        for policy in policies:
            carbon = {name: carbon_of[name] for name in (L0.name, *policy.directives)}
            late = _late(policy, model, task, latencies) if latencies else None
            found = known.get(policy.name)
            if found:
                opened = found[model, task].kept
            else:
                opened = _present(_opened(snapshot, policy, judged, policy.tenant, now), snapshot, model, accepting)
            floor = granted.get((policy.name, model, task), policy.floor)
            entry = entries[policy.name, model, task] = _entry(policy, opened, carbon, late, floor)
            entry_of: dict[Hashable, Entry] = {_told_apart(policy, opened): entry}
            for tenant in () if policy.tenant else judged.tenants:
                if match(snapshot.policies, tenant, task) is policy:
                    opened = _present(_opened(snapshot, policy, judged, tenant, now), snapshot, model, accepting)
                    if (told := _told_apart(policy, opened)) not in entry_of:
                        entry_of[told] = _entry(policy, opened, carbon, late, floor)
                    if entry_of[told] is not entry:
                        of_tenant[policy.name, model, task, tenant] = entry_of[told]
    return Plan(entries, now, g_per_kwh, of_tenant, budgets)


def _known(
    snapshot: Snapshot,
    accepting: Collection[str],
    policies: Sequence[Policy],
    judged_of: Mapping[Class, _Judged],
    costs: CostBook,
    grams: Callable[[Cost], float],
    day: Day,
    now: datetime,
) -> dict[str, dict[Class, Known]]:
    """What may be served to the classes of each policy with a budget over the day, by its name. What was served
    of a directive whose model is away still counts by its bound."""
    over_day = over_the_day(policies)
    known: dict[str, dict[Class, Known]] = {policy.name: {} for policy in over_day}
    for (model, task), judged in judged_of.items():
        of_task = [policy for policy in over_day if policy.task in ("", task)]
        predicted = {
            name: _at_default_grid(cost, grams, day)
            for name, cost in costs.predicted(model, task, _names(of_task)).items()
        }
        for policy in of_task:
            kept_by = _opened(snapshot, policy, judged, policy.tenant, now)
            of_tenants = [
                _opened(snapshot, policy, judged, tenant, now)
                for tenant in (() if policy.tenant else judged.tenants)
                if match(snapshot.policies, tenant, task) is policy
            ]
            least = {name: min([kept, *(own.get(name, kept) for own in of_tenants)]) for name, kept in kept_by.items()}
            opened = _present(kept_by, snapshot, model, accepting)
            # Answers in time go before quality that only others would spend.
            no_surplus = {name for name in opened if policy.latency or any(name not in own for own in of_tenants)}
            known[policy.name][model, task] = Known(
                predicted if L0.name in predicted else {}, opened, least, no_surplus
            )
    return known


def _present(
    opened: Mapping[str, float], snapshot: Snapshot, model: str, accepting: Collection[str]
) -> Mapping[str, float]:
    """Without directives whose own model is away. Where no engine here answers for the model asked for, its callers
    have engines of their own, and say with each request which models these are of."""
    if model not in accepting:
        return opened
    models = {name: snapshot.directives[name].model for name in opened}
    return {name: kept for name, kept in opened.items() if not models[name] or models[name] in accepting}


def _at_default_grid(cost: Cost, grams: Callable[[Cost], float], day: Day) -> Cost:
    """The cost at the default's grid, whose forecast a day goes by, that emits what this one does now: zones are taken
    to stay in proportion."""
    there = day.grams(cost, day.hours[0].g_per_kwh)
    share = grams(cost) / there if there > 0 else 1.0
    return cost._replace(energy_joules=cost.energy_joules * share, busy_seconds=cost.busy_seconds * share)


def _granted(
    policies: Sequence[Policy], known: Mapping[str, Mapping[Class, Known]], day: Day
) -> tuple[dict[tuple[str, str, str], float], dict[str, Standing]]:
    """Floors of the present hour by policy, model and task, and how each budget over the day stands."""
    floors: dict[tuple[str, str, str], float] = {}
    budgets: dict[str, Standing] = {}
    for policy in policies:
        if (budget := policy.quality_budget) is not None and policy.name in known:
            served = day.served.get(policy.name, {})
            found = grants(known[policy.name], served, day, policy.floor, budget.directive_floor)
            if found is not None:
                of_class, budgets[policy.name] = found
                floors |= {(policy.name, *of): floor for of, floor in of_class.items()}
    return floors, budgets


def _told_apart(policy: Policy, opened: Mapping[str, float]) -> Hashable:
    """By what one tenant's entry is another than another's: where every open directive clears the floor, the names."""
    return frozenset(opened) if policy.quality_budget is None else frozenset(opened.items())


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
    names = _names(policies)
    predicted = costs.predicted(model, task, names)
    # Without L0's cost there is no scale: the published shares order the levels then, all in units of one L0 request.
    if L0.name in predicted:
        return {name: grams(cost) for name, cost in predicted.items()}
    return {name: PRIOR_RELATIVE_CARBON.get(name, UNKNOWN_DIRECTIVE_PRIOR) for name in names}


def _names(policies: Iterable[Policy]) -> Iterable[str]:
    """L0 and the policies' directives."""
    return dict.fromkeys((L0.name, *(name for policy in policies for name in policy.directives)))


def _late(policy: Policy, model: str, task: str, latencies: LatencyBook) -> Mapping[str, float] | None:
    """Share of answers later than the policy's objective, by L0 and its directives; None where there is nothing to go
    by."""
    if policy.latency is None:
        return None
    names = (L0.name, *policy.directives)
    known = latencies.late_shares(model, task, names, policy.latency.seconds)
    # Without L0's, what was never served is taken to be as late as the latest.
    return {name: known[name] if name in known else max(known.values()) for name in names} if known else None


def _opened(snapshot: Snapshot, policy: Policy, judged: _Judged, tenant: str, now: datetime) -> Mapping[str, float]:
    """What a bound says that each directive keeps at least, of those that are open for a tenant; for all where it is
    empty. None is open without a bound of all tenants."""
    found = {}
    has_own = tenant in judged.tenants
    for name in policy.directives:
        if (cell := judged.cells.get(name)) is not None:
            whose = Cell(cell.model, cell.task, name, tenant) if has_own else cell
            bound, _ = open_bound(snapshot, policy, whose, policy.opening_floor, now)
            if bound is not None:
                found[name] = bound_value(bound, policy)
    return found


def _entry(
    policy: Policy,
    opened: Mapping[str, float],
    carbon: Mapping[str, float],
    late: Mapping[str, float] | None,
    floor: float,
) -> Entry:
    late_of = late or dict.fromkeys(carbon, 0.0)
    # L0 is what quality is a share of, and the safe side of an absolute floor: it satisfies any.
    candidates = [Candidate(L0.name, carbon[L0.name], max(1.0, policy.floor), late_of[L0.name])]
    candidates += [Candidate(name, carbon[name], quality, late_of[name]) for name, quality in opened.items()]
    most_late = 1.0 - policy.latency.share if policy.latency and late else None
    shares = solve(candidates, floor, most_late)
    return Entry(
        shares,
        by_carbon=tuple(sorted(carbon, key=lambda name: carbon[name])),
        floor=floor,
        policy_revision=policy.revision,
        late_share=None if late is None else sum(share * late[name] for name, share in shares),
    )
