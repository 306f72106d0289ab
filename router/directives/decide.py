"""Which directive a request gets: pure, a few dictionary look-ups, and the one code that `Explain` runs as well."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial

from common.quality.bound import Cell
from router.directives.assign import pick, uniform
from router.directives.bounds import Snapshot, Words, open_bound, open_bounds
from router.directives.levels import L0, Directive
from router.directives.policy import (
    LatencyObjective,
    Mode,
    Policy,
    Trait,
    WhenSpent,
    match,
)
from router.directives.quality_budget import budget_words, granted_floor, kept_within
from router.optimizer.plan import ALL_AT_L0, Entry


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
    BUDGET_SPENT = "budget_spent"


Spent = Callable[[str], float]
"""gCO2eq of a policy's requests so far today, by its name."""


def nothing_spent(_policy: str) -> float:
    return 0.0


Accepting = Callable[[], Collection[str]]
""""name@digest" of the models that may answer in the place of the one asked for; asked where a directive names one."""


def no_other_model() -> Collection[str]:
    return ()


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
    traits: frozenset[Trait] = frozenset()
    floor: float | None = None
    """The caller's own, which each directive keeps by itself; only one above that at which the policy's open has an
    effect."""
    task_likelihood: float | None = None
    """Of the task, where it was told from the text; None where the request named it."""


Step = str | Words | Callable[[], Sequence[str]]


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
    refused: bool = False
    """The policy's carbon budget is spent, and it wants no request served after that."""
    task: str = ""
    task_told: bool = False
    words: tuple[Step, ...] = field(default=(), compare=False)

    @property
    def steps(self) -> tuple[str, ...]:
        """How it came about, in words."""
        steps: list[str] = []
        for words in self.words:
            told = words if isinstance(words, str) else words()
            steps += (told,) if isinstance(told, str) else told
        return tuple(steps)


def is_spent(policy: Policy, spent: Spent) -> bool:
    """Whether the policy has a carbon budget, and today's is used up."""
    return policy.carbon_budget is not None and spent(policy.name) >= policy.carbon_budget.grams_per_day


def refuses(policy: Policy, spent: Spent) -> bool:
    """Whether the policy's requests are to be refused for the rest of the day. One in shadow only records."""
    return (
        policy.carbon_budget is not None
        and policy.carbon_budget.when_spent is WhenSpent.REFUSE
        and policy.mode is Mode.ON
        and is_spent(policy, spent)
    )


def decide(
    facts: Facts,
    snapshot: Snapshot,
    now: datetime,
    spent: Spent = nothing_spent,
    accepting: Accepting = no_other_model,
) -> Decision:
    """Chooses a directive; anything unknown, stale or closed leads to L0."""
    steps: list[Step] = []
    told = facts.task_likelihood is not None
    if told:
        steps.append(f"task '{facts.task}' told from the text (likelihood {facts.task_likelihood:.2f})")

    def served(
        directive: Directive,
        reason: Reason,
        explanation: str,
        *,
        planned: str = "L0",
        bound: float | None = None,
        eligible: bool = False,
        refused: bool = False,
    ) -> Decision:
        steps.append(explanation)
        return Decision(
            directive,
            reason,
            explanation,
            policy,
            planned,
            bound=bound,
            floor=floor,
            eligible=eligible,
            refused=refused,
            task=facts.task,
            task_told=told,
            words=tuple(steps),
        )

    floor: float | None = None
    policy = match(snapshot.policies, facts.tenant, facts.task)
    if policy is None:
        return served(L0, Reason.NO_POLICY, f"no policy for tenant '{facts.tenant}' and task '{facts.task}'")
    steps.append(lambda: f"policy {policy.name}, revision {policy.revision}, mode {policy.mode.value}")
    if policy.mode is Mode.OFF:
        return served(L0, Reason.MODE_OFF, f"policy {policy.name} is off")
    tighten = False
    if policy.carbon_budget is not None:
        steps.append(carbon_budget_words(policy, spent))
        if refuses(policy, spent):
            why = "refused: the carbon budget is spent until the next day (UTC)"
            return served(L0, Reason.BUDGET_SPENT, why, refused=True)
        if is_spent(policy, spent):
            tighten = policy.carbon_budget.when_spent is WhenSpent.TIGHTEN
            steps.append(
                "budget spent: the open directive of least carbon, whatever share of traffic, hold-back and plan say"
                if tighten
                else "budget spent: the request would be refused, were the policy not in shadow"
            )
    if left_alone := facts.traits & policy.leave_alone:
        if Trait.OPT_OUT in left_alone:
            return served(L0, Reason.OPT_OUT, "the caller opted out")
        return served(L0, Reason.LEFT_ALONE, f"left alone: the request shows {_names(left_alone)}")
    if facts.traits:
        steps.append(f"the request shows {_names(facts.traits)}, for which the policy leaves none alone: no effect")
    if not tighten and uniform("share", policy.name, facts.key) >= policy.traffic_share:
        return served(L0, Reason.OUTSIDE_SHARE, f"outside the policy's {policy.traffic_share:.0%} of traffic")

    floor = max(policy.opening_floor, facts.floor or 0.0)
    bounds = open_bounds(snapshot, policy, facts.model, facts.task, facts.tenant, floor, now)
    others = {name: other for name in bounds if (other := snapshot.directives[name].model)}
    if others:
        present = accepting()
        bounds = {name: bound for name, bound in bounds.items() if name not in others or others[name] in present}
    steps.append(partial(_openings_words, facts, snapshot, policy, floor, now, bounds))
    if not bounds:
        return served(L0, Reason.NONE_OPEN, "no directive is open")
    entry = snapshot.plan.entry(policy.name, facts.model, facts.task, facts.tenant)
    if tighten:
        # Served to all, whatever the plan: a directive that keeps the floor only in a mix is none of these.
        open_to_all = {name for name, bound in bounds.items() if bound >= policy.floor}
        if not open_to_all:
            return served(L0, Reason.NONE_OPEN, "no directive keeps the floor by itself")
        name = next((name for name in entry.by_carbon if name == "L0" or name in open_to_all), "")
        if not name:
            return served(L0, Reason.NONE_OPEN, "directives are open, but the plan does not know their carbon yet")
        if policy.mode is Mode.SHADOW:
            return served(L0, Reason.SHADOW, _shadow(policy, name), planned=name)
        # No hold-back is drawn, so the request is none of those that the counterfactual speaks of.
        why = f"{name}: least carbon of what is open, as the day's carbon budget is spent"
        return served(snapshot.directives.get(name, L0), Reason.BUDGET_SPENT, why, planned=name, bound=bounds.get(name))

    granted = None
    if (budget := policy.quality_budget) is not None:
        granted = granted_floor(policy, budget, entry, snapshot.plan, now)
        steps.append(partial(budget_words, policy, budget, snapshot.plan, granted))
    # The plan may be some minutes old: what has closed since is taken out, and its share falls to L0.
    in_force = [(name, share) for name, share in entry.shares if name in bounds]
    if not in_force:
        if entry.shares == ALL_AT_L0:
            return served(L0, Reason.PLANNED, "directives are open, but the plan keeps this task at L0")
        return served(L0, Reason.NONE_OPEN, "what the plan uses has closed, and it does not use what is open yet")
    if granted is not None:
        in_force = kept_within(in_force, bounds, granted)
    in_force.append(("L0", 1.0 - sum(share for _, share in in_force)))
    name = pick(in_force, uniform("level", policy.name, facts.key))
    steps.append(lambda: "plan: " + ", ".join(f"{name} {share:.0%}" for name, share in in_force if share > 0))
    if (latency := policy.latency) is not None:
        steps.append(lambda: _latency_words(latency, entry))
    bound_of_choice = bounds.get(name)
    if policy.mode is Mode.SHADOW:
        return served(L0, Reason.SHADOW, _shadow(policy, name), planned=name)
    # Drawn by request, not by conversation: the held-back are a random sample of requests, as the estimator assumes.
    if uniform("holdback", policy.name, facts.request_id) < policy.holdback_share:
        return served(
            L0, Reason.HOLDBACK, f"held back at random from {name} to tell the savings by", planned=name, eligible=True
        )
    explanation = (
        "the plan leaves this conversation at L0"
        if bound_of_choice is None
        else f"{name}: least carbon among the directives whose bound clears the floor"
        if policy.quality_budget is None
        else f"{name}: of the mix of least carbon whose mean keeps the floor"
    )
    directive = snapshot.directives.get(name, L0)
    return served(directive, Reason.PLANNED, explanation, planned=name, bound=bound_of_choice, eligible=True)


def _openings_words(
    facts: Facts, snapshot: Snapshot, policy: Policy, floor: float, now: datetime, present: Mapping[str, float]
) -> Sequence[str]:
    """Of each of the policy's directives, why it is open or closed.

    Args:
        present: The open ones, but for those whose model is away.
    """
    steps = []
    for name in policy.directives:
        bound, words = open_bound(snapshot, policy, Cell(facts.model, facts.task, name, facts.tenant), floor, now)
        away = bound is not None and name not in present
        steps.append(away_words(name, snapshot.directives[name].model) if away else words())
    return steps


def away_words(directive: str, model: str) -> str:
    """Why a directive whose bound clears the floor is closed."""
    return f"{directive}: closed, no engine of {model} accepts requests at present"


def carbon_budget_words(policy: Policy, spent: Spent) -> str:
    """How much of its carbon budget a policy has used today; empty where it has none."""
    if policy.carbon_budget is None:
        return ""
    return f"carbon budget: {spent(policy.name):.4g} g of {policy.carbon_budget.grams_per_day:.4g} g spent today (UTC)"


def _latency_words(latency: LatencyObjective, entry: Entry) -> str:
    objective = f"latency: {latency.share:.4g} of answers within {latency.seconds:.4g} s"
    if entry.late_share is None:
        return f"{objective}; nothing is known of how long answers take, so it has no effect yet"
    expected = f"{objective}; the plan expects {1.0 - entry.late_share:.4g}"
    # Solvers keep constraints to within a tolerance.
    if entry.late_share <= 1.0 - latency.share + 1e-6:
        return expected
    return f"{expected}, as near as a mix of what is open comes"


def _shadow(policy: Policy, name: str) -> str:
    return f"policy {policy.name} is in shadow: {name} chosen, L0 served"


def _names(traits: frozenset[Trait]) -> str:
    return ", ".join(sorted(trait.value for trait in traits))
