"""For which policies a directive is open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot, open_bound, own_bound
from router.directives.policy import Mode, Policy, deciding, match


def allowing(policies: Sequence[Policy], task: str, directive: str, tenant: str = "") -> tuple[Policy, ...]:
    """Of those that decide for the task, the ones that allow the directive; for one tenant at most the one that decides
    for it."""
    if tenant:
        policy = match(policies, tenant, task)
        return (policy,) if policy and policy.mode is not Mode.OFF and directive in policy.directives else ()
    return tuple(policy for policy in deciding(policies, task) if directive in policy.directives)


def opening(snapshot: Snapshot, policy: Policy, cell: Cell, now: datetime) -> tuple[QualityBound | None, str]:
    """The bound by which requests of the cell's tenant, or of the policy's, may get the directive, callers' own floors
    left out of account; None where it is closed. And in words why."""
    bound, why = open_bound(snapshot, policy, _of_whom(cell, policy), policy.opening_floor, now)
    return bound, why()


def is_open(snapshot: Snapshot, policy: Policy, cell: Cell, now: datetime) -> bool:
    """As `opening`: whether there is one."""
    bound, _ = open_bound(snapshot, policy, _of_whom(cell, policy), policy.opening_floor, now)
    return bound is not None


def opens(snapshot: Snapshot, policy: Policy, cell: Cell, now: datetime) -> bool | None:
    """Whether the cell's own bound opens the directive, or closes it; None where it is for another's to decide: that of
    a tenant alone where it tells, else that of all tenants."""
    whom = _of_whom(cell, policy)
    own, _ = own_bound(snapshot, policy, whom, policy.opening_floor, now)
    if (own is not None) != bool(cell.tenant):
        return None
    return is_open(snapshot, policy, whom, now)


def _of_whom(cell: Cell, policy: Policy) -> Cell:
    return cell if cell.tenant else replace(cell, tenant=policy.tenant)
