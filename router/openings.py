"""For which policies a directive is open."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from common.quality.bound import Cell
from router.directives.decide import Snapshot, open_bound
from router.directives.policy import Mode, Policy, match


def deciding(policies: Sequence[Policy], task: str) -> tuple[Policy, ...]:
    """The policies, not OFF, that decide for some tenant's requests of a task, by name.

    A tenant's own policies go before those for every tenant, so each tenant's best is told among its own; that of no
    tenant decides for all tenants that have none.
    """
    of_tenant: dict[str, list[Policy]] = {}
    for policy in policies:
        of_tenant.setdefault(policy.tenant, []).append(policy)
    best = (match(own, tenant, task) for tenant, own in of_tenant.items())
    return tuple(sorted((p for p in best if p and p.mode is not Mode.OFF), key=lambda policy: policy.name))


def allowing(policies: Sequence[Policy], task: str, directive: str) -> tuple[Policy, ...]:
    """Of those that decide for the task, the ones that allow the directive."""
    return tuple(policy for policy in deciding(policies, task) if directive in policy.directives)


def is_open(snapshot: Snapshot, policy: Policy, cell: Cell, now: datetime) -> bool:
    """Whether a request under the policy may get the directive, callers' own floors left out of account."""
    bound, _ = open_bound(snapshot, policy, cell.model, cell.task, cell.directive, policy.floor, now)
    return bound is not None
