"""Which directive a request gets: pure, a few dictionary look-ups, and the one code that `Explain` runs as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from common.quality.estimates import MAX_CLOCK_SKEW_SECONDS, Cell, QualityBound
from router.directives.assign import pick, uniform
from router.directives.levels import L0, Directive
from router.directives.policy import Mode, Policy, match
from router.optimizer.plan import ALL_AT_L0, Plan


class Reason(Enum):
    """Why a directive was chosen; the values are the contract's, without prefix."""

    PLANNED = "planned"
    NO_POLICY = "no_policy"
    MODE_OFF = "mode_off"
    SHADOW = "shadow"
    NONE_OPEN = "none_open"
    HOLDBACK = "holdback"
    OUTSIDE_SHARE = "outside_share"
    OPT_OUT = "opt_out"
    EVALUATION = "evaluation"
    LEFT_ALONE = "left_alone"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that decisions depend on; replaced as a whole, so that a decision never sees half a change."""

    directives: Mapping[str, Directive]
    """By name; L0 is always there."""
    policies: Sequence[Policy]
    bounds: Mapping[Cell, QualityBound]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision looks at in a request."""

    tenant: str
    task: str
    model: str
    """Name and digest, as cells have it; empty while no engine is known."""
    key: str
    """Conversation id, or else request id: what stable draws hang on."""
    request_id: str
    opt_out: bool = False
    floor: float | None = None
    """The caller's own floor; only one above the policy's has an effect."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome. `planned` is what the plan would serve: it differs from `directive` in SHADOW and hold-back."""

    directive: Directive
    reason: Reason
    explanation: str
    policy: Policy | None = None
    planned: str = "L0"
    bound: float | None = None
    floor: float | None = None
    eligible: bool = False
    """An open directive would have been used but for the hold-back draw: the population of the counterfactual."""
    steps: tuple[str, ...] = field(default=(), compare=False)


def bound_value(bound: QualityBound, policy: Policy) -> float:
    """The number that the policy's floor is held against."""
    return bound.lower if policy.floor_kind.name == "RELATIVE" else bound.absolute_lower


def open_bound(
    snapshot: Snapshot, policy: Policy, model: str, task: str, name: str, floor: float, now: datetime
) -> tuple[QualityBound | None, str]:
    """The directive's bound where it is open, else None, and in words why."""
    directive = snapshot.directives.get(name)
    if directive is None:
        return None, f"{name}: there is no such directive"
    bound = snapshot.bounds.get(Cell(model, task, name))
    if bound is None:
        return None, f"{name}: closed, no quality bound for it yet"
    if bound.revision != str(directive.revision):
        return None, f"{name}: closed, the bound is of revision {bound.revision}, the directive at {directive.revision}"
    if not bound.is_open(floor, policy.floor_kind, now, policy.bound_max_age_seconds):
        age, longest = (now - bound.updated_at).total_seconds(), policy.bound_max_age_seconds
        if age < -MAX_CLOCK_SKEW_SECONDS:
            return None, f"{name}: closed, the bound is of {bound.updated_at.isoformat()}, in the future"
        if age > longest:
            return None, f"{name}: closed, the bound is {age:.0f} s old, the policy allows {longest} s"
        if bound.samples == 0:
            return None, f"{name}: closed, no sample is behind the bound"
        return None, f"{name}: closed, bound {bound_value(bound, policy):.3f} is below the floor {floor:.3f}"
    return bound, f"{name}: open, bound {bound_value(bound, policy):.3f} clears the floor {floor:.3f}"


def decide(facts: Facts, snapshot: Snapshot, now: datetime) -> Decision:
    """Chooses a directive; anything unknown, stale or closed leads to L0."""
    steps: list[str] = []

    def served(
        directive: Directive,
        reason: Reason,
        explanation: str,
        *,
        planned: str = "L0",
        bound: float | None = None,
        eligible: bool = False,
    ) -> Decision:
        steps.append(explanation)
        return Decision(directive, reason, explanation, policy, planned, bound, floor, eligible, tuple(steps))

    floor: float | None = None
    policy = match(snapshot.policies, facts.tenant, facts.task)
    if policy is None:
        return served(L0, Reason.NO_POLICY, f"no policy for tenant '{facts.tenant}' and task '{facts.task}'")
    steps.append(f"policy {policy.name}, revision {policy.revision}, mode {policy.mode.value}")
    if policy.mode is Mode.OFF:
        return served(L0, Reason.MODE_OFF, f"policy {policy.name} is off")
    if facts.opt_out:
        return served(L0, Reason.OPT_OUT, "the caller opted out")
    if uniform("share", policy.name, facts.key) >= policy.traffic_share:
        return served(L0, Reason.OUTSIDE_SHARE, f"outside the policy's {policy.traffic_share:.0%} of traffic")

    floor = max(policy.floor, facts.floor or 0.0)
    bounds: dict[str, float] = {}
    for name in policy.directives:
        bound, why = open_bound(snapshot, policy, facts.model, facts.task, name, floor, now)
        steps.append(why)
        if bound is not None:
            bounds[name] = bound_value(bound, policy)
    # The plan may be some minutes old: what has closed since is taken out, and its share falls to L0.
    shares = snapshot.plan.shares(policy.name, facts.model, facts.task)
    in_force = [(name, share) for name, share in shares if name in bounds]
    if not in_force:
        if not bounds:
            return served(L0, Reason.NONE_OPEN, "no directive is open")
        if shares == ALL_AT_L0:
            return served(L0, Reason.PLANNED, "directives are open, but the plan keeps this task at L0")
        return served(L0, Reason.NONE_OPEN, "what the plan uses has closed, and it does not use what is open yet")
    in_force.append(("L0", 1.0 - sum(share for _, share in in_force)))
    name = pick(in_force, uniform("level", policy.name, facts.key))
    steps.append("plan: " + ", ".join(f"{name} {share:.0%}" for name, share in in_force if share > 0))
    bound_of_choice = bounds.get(name)
    if policy.mode is Mode.SHADOW:
        return served(L0, Reason.SHADOW, f"policy {policy.name} is in shadow: {name} chosen, L0 served", planned=name)
    # Drawn by request, not by conversation: the held-back are a random sample of requests, as the estimator assumes.
    if uniform("holdback", policy.name, facts.request_id) < policy.holdback_share:
        return served(
            L0, Reason.HOLDBACK, f"held back at random from {name} to tell the savings by", planned=name, eligible=True
        )
    explanation = (
        "the plan leaves this conversation at L0"
        if bound_of_choice is None
        else f"{name}: least carbon among the directives whose bound clears the floor"
    )
    directive = snapshot.directives.get(name, L0)
    return served(directive, Reason.PLANNED, explanation, planned=name, bound=bound_of_choice, eligible=True)
