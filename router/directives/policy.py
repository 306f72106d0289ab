"""A policy: what may be done for whom, and what quality must be kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from common.quality.bound import FloorKind
from router.directives.levels import EPOCH, etag


class Mode(Enum):
    """Whether a policy acts."""

    OFF = "off"
    """Serve at L0."""
    SHADOW = "shadow"
    """Decide and record, serve at L0."""
    ON = "on"


class Trait(Enum):
    """What makes a shorter answer to a request a wrong one."""

    STRUCTURED_OUTPUT = "structured_output"
    TOOLS = "tools"
    EXPLICIT_LENGTH = "explicit_length"
    CODE = "code"
    OPT_OUT = "opt_out"


class WhenSpent(Enum):
    """What happens for the rest of a day whose carbon budget is spent."""

    TIGHTEN = "tighten"
    """The open directive of least carbon for every request that may have one."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class LatencyObjective:
    """At least `share` of the requests are answered whole within `seconds` of their arrival."""

    seconds: float
    share: float = 0.95


@dataclass(frozen=True, slots=True)
class CarbonBudget:
    """Operational and embodied gCO2eq a day (UTC), over all routers."""

    grams_per_day: float
    when_spent: WhenSpent = WhenSpent.TIGHTEN


class BudgetScope(Enum):
    """Which requests' mean holds the floor."""

    TASK = "task"
    """At any time those of each task."""
    DAY = "day"
    """All of a day (UTC), whatever their tasks: quality is spent in the hours and on the tasks where it saves most."""


@dataclass(frozen=True, slots=True)
class QualityBudget:
    """The floor is one of requests' mean, those served at L0 among them: what these keep beyond it may be spent on
    directives that keep less. Each directive by itself still keeps `directive_floor`."""

    directive_floor: float
    scope: BudgetScope = BudgetScope.TASK


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy, as the policy database holds it; its limits are checked where it enters (`router.limits`)."""

    name: str
    tenant: str = ""
    """Empty matches every tenant."""
    task: str = ""
    """Empty matches every task."""
    mode: Mode = Mode.SHADOW
    traffic_share: float = 1.0
    """Share of conversations, by stable hash, that the policy acts on."""
    floor: float = 0.95
    floor_kind: FloorKind = FloorKind.RELATIVE
    quality_budget: QualityBudget | None = None
    """None: every directive keeps the floor by itself."""
    directives: tuple[str, ...] = ()
    """Names of what may be used beside L0."""
    holdback_share: float = 0.02
    """Share of eligible requests served at L0 at random, to tell the savings by."""
    sample_share: float = 0.05
    """Share of requests whose text is kept for the evaluator."""
    grader: str = ""
    """Grader of answers with a reference; empty keeps samples ungraded."""
    bound_max_age_seconds: int = 7 * 24 * 3600
    latency: LatencyObjective | None = None
    carbon_budget: CarbonBudget | None = None
    leave_alone: frozenset[Trait] = frozenset(Trait)
    """Requests with any of these are served as they came."""
    revision: int = 1
    updated_at: datetime = field(default=EPOCH, compare=False)
    updated_by: str = field(default="", compare=False)

    @property
    def etag(self) -> str:
        return etag("policy", self.name, self.revision)

    @property
    def opening_floor(self) -> float:
        """What a directive's bound must clear for the directive to be open."""
        return self.floor if self.quality_budget is None else self.quality_budget.directive_floor

    @property
    def specificity(self) -> int:
        """Tenant and task, then tenant, then task, then neither."""
        return 2 * bool(self.tenant) + bool(self.task)


def match(policies: Iterable[Policy], tenant: str, task: str) -> Policy | None:
    """The most specific policy for a tenant's task; among equals the first by name, so that routers agree."""
    matching = [p for p in policies if p.tenant in ("", tenant) and p.task in ("", task)]
    return min(matching, key=lambda p: (-p.specificity, p.name), default=None)


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


def counting_grader(policies: Iterable[Policy]) -> str:
    """Whose scores count for a directive, of the policies that decide and allow it; empty where none names a grader.

    Samples carry the grader of their policy, and only those of one are judged: of one that keeps some, first by order.
    """
    graded = sorted((p for p in policies if p.grader), key=lambda policy: policy.sample_share == 0)
    return graded[0].grader if graded else ""
