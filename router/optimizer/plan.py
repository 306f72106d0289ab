"""A plan: for each policy, model and task the share of requests that each directive gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from router.optimizer.grants import Standing

Shares = tuple[tuple[str, float], ...]
"""(directive, share of eligible requests), summing to 1."""

ALL_AT_L0: Shares = (("L0", 1.0),)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is planned for one policy's requests of one task to one model."""

    shares: Shares = ALL_AT_L0
    by_carbon: tuple[str, ...] = ()
    """L0 and every directive that the policy allows, open or not, the one of least predicted carbon first."""
    late_share: float | None = None
    """Share of requests that this mix is expected to answer later than the policy's objective says; None where it has
    none, or where nothing is known of how long answers take."""
    floor: float | None = None
    """What the mix keeps at least, by its directives' bounds: the policy's floor, or what its quality budget grants the
    task in the hour of the plan; None where nothing is planned."""
    policy_revision: int | None = None
    """By which it was made."""


NOTHING_PLANNED = Entry()


@dataclass(frozen=True, slots=True)
class Plan:
    """Entries by (policy, model, task); whatever it does not name is served at L0."""

    entries: Mapping[tuple[str, str, str], Entry]
    made_at: datetime
    g_per_kwh: float | None = None
    """The intensity that it was made for."""
    of_tenant: Mapping[tuple[str, str, str, str], Entry] = field(default_factory=dict)
    """By (policy, model, task, tenant), where a policy for every tenant decides, and the tenant's own bounds open other
    directives than those of all tenants do."""

    budgets: Mapping[str, Standing] = field(default_factory=dict)
    """By policy, where it has a quality budget over the day."""

    def entry(self, policy: str, model: str, task: str, tenant: str = "") -> Entry:
        """What holds for a tenant; for "", and for every tenant that has nothing of its own, that of all."""
        own = self.of_tenant.get((policy, model, task, tenant)) if self.of_tenant else None
        return own or self.entries.get((policy, model, task), NOTHING_PLANNED)

    def shares(self, policy: str, model: str, task: str, tenant: str = "") -> Shares:
        return self.entry(policy, model, task, tenant).shares
