"""Policies in the database, with all their revisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common.quality.bound import FloorKind
from router.directives.policy import (
    BudgetScope,
    CarbonBudget,
    LatencyObjective,
    Mode,
    Policy,
    QualityBudget,
    Trait,
    WhenSpent,
)
from router.store import revisions
from router.store.revisions import Action, RevisionKey
from router.store.tables import policies


@dataclass(frozen=True, slots=True)
class PolicyRevision:
    """A policy as it was; who and when are in the policy."""

    policy: Policy
    action: Action
    reason: str

    @property
    def key(self) -> RevisionKey:
        return self.policy.updated_at, self.policy.name, self.policy.revision


class PolicyRepository:
    """Within one transaction; `add` within `Database.changing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def all(self) -> tuple[Policy, ...]:
        """Those in force, by name."""
        rows = (await self._connection.execute(revisions.in_force(policies))).all()
        return tuple(sorted((_revision(row).policy for row in rows), key=lambda policy: policy.name))

    async def get(self, name: str) -> Policy | None:
        found = await self._connection.execute(revisions.in_force(policies).where(policies.c.name == name))
        row = found.one_or_none()
        return None if row is None else _revision(row).policy

    async def last_revision(self, name: str) -> int:
        """0 where the name was never used."""
        return await revisions.last_revision(self._connection, policies, name)

    async def revision(self, name: str, revision: int) -> PolicyRevision | None:
        query = select(policies).where(policies.c.name == name, policies.c.revision == revision)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _revision(row)

    async def revisions(self, name: str, limit: int, before: int | None = None) -> tuple[PolicyRevision, ...]:
        """Newest first, of deleted policies too; `before` is a revision, exclusive."""
        query = select(policies).where(policies.c.name == name).order_by(policies.c.revision.desc()).limit(limit)
        if before is not None:
            query = query.where(policies.c.revision < before)
        return tuple(map(_revision, (await self._connection.execute(query)).all()))

    async def revisions_after(self, key: RevisionKey | None, limit: int) -> tuple[PolicyRevision, ...]:
        """Of all names, by time; None: from the first."""
        return tuple(map(_revision, await revisions.after(self._connection, policies, key, limit)))

    async def newest_as_of(self, key: RevisionKey) -> tuple[PolicyRevision, ...]:
        """The newest of every name, deleted ones too, among the revisions up to and with a key."""
        return tuple(map(_revision, await revisions.as_of(self._connection, policies, key)))

    async def add(self, policy: Policy, action: Action, reason: str) -> None:
        """Makes it the newest revision of its name. Raises IntegrityError where that revision exists."""
        await self.add_many([(policy, action)], reason)

    async def add_many(self, changed: Sequence[tuple[Policy, Action]], reason: str) -> None:
        """As `add`, each."""
        if changed:
            rows = [_row(policy, action, reason) for policy, action in changed]
            await self._connection.execute(insert(policies), rows)

    async def last_revisions(self) -> dict[str, int]:
        """Of every name that was ever used."""
        return await revisions.last_revisions(self._connection, policies)


def _row(policy: Policy, action: Action, reason: str) -> dict[str, Any]:
    return {
        "name": policy.name,
        "revision": policy.revision,
        "action": action.value,
        "reason": reason,
        "tenant": policy.tenant,
        "task": policy.task,
        "mode": policy.mode.value,
        "traffic_share": policy.traffic_share,
        "floor": policy.floor,
        "floor_kind": policy.floor_kind.value,
        "directives": policy.directives,
        "holdback_share": policy.holdback_share,
        "sample_share": policy.sample_share,
        "grader": policy.grader,
        "bound_max_age_seconds": policy.bound_max_age_seconds,
        "latency_seconds": policy.latency.seconds if policy.latency else None,
        "latency_share": policy.latency.share if policy.latency else None,
        "carbon_grams_per_day": policy.carbon_budget.grams_per_day if policy.carbon_budget else None,
        "when_carbon_spent": policy.carbon_budget.when_spent.value if policy.carbon_budget else None,
        "directive_floor": policy.quality_budget.directive_floor if policy.quality_budget else None,
        "quality_budget_scope": policy.quality_budget.scope.value if policy.quality_budget else None,
        "leave_alone": sorted(trait.value for trait in policy.leave_alone),
        "updated_at": policy.updated_at,
        "updated_by": policy.updated_by,
    }


def _revision(row: Row[Any]) -> PolicyRevision:
    policy = Policy(
        name=row.name,
        tenant=row.tenant,
        task=row.task,
        mode=Mode(row.mode),
        traffic_share=row.traffic_share,
        floor=row.floor,
        floor_kind=FloorKind(row.floor_kind),
        quality_budget=(
            None
            if row.directive_floor is None
            else QualityBudget(row.directive_floor, BudgetScope(row.quality_budget_scope))
        ),
        directives=tuple(row.directives),
        holdback_share=row.holdback_share,
        sample_share=row.sample_share,
        grader=row.grader,
        bound_max_age_seconds=row.bound_max_age_seconds,
        latency=None if row.latency_seconds is None else LatencyObjective(row.latency_seconds, row.latency_share),
        carbon_budget=(
            None
            if row.carbon_grams_per_day is None
            else CarbonBudget(row.carbon_grams_per_day, WhenSpent(row.when_carbon_spent))
        ),
        leave_alone=frozenset(map(Trait, row.leave_alone)),
        revision=row.revision,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
    )
    return PolicyRevision(policy, Action(row.action), row.reason)
