"""Letting a request in: its fields, its tenant, what that may still ask for, and the directive that it gets."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime

from pith.router.v1 import generation_pb2

from common.auth import Principal, Role, note_asked
from common.carbon.hours import next_day
from common.clock import Clock
from common.errors import PithError, not_found, permission_denied, quota_exceeded
from router.convert import to_turns
from router.directives.compile import Turn
from router.directives.decide import Accepting, Decision, Facts, Reason, carbon_budget_words, decide, refuses
from router.directives.levels import TRIAL, Directive
from router.directives.policy import Policy, Trait, match
from router.directives.traits import traits_of
from router.policy_messages import to_directive, to_traits
from router.rate_limit import RateLimiter
from router.snapshot import SnapshotKeeper
from router.spending import Spending
from router.task_keeper import TaskKeeper
from router.tenant import tenant_of
from router.validation import RequestLimits, check


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that was let in."""

    request: generation_pb2.GenerateRequest
    tenant: str
    request_id: str
    turns: tuple[Turn, ...]
    traits: frozenset[Trait]
    directive: Directive | None
    """What an evaluator asked for; None for all others."""
    task_likelihood: float | None
    """Of the request's task, where that was told from the text; None where it was named, or is not known."""
    started_at: datetime


class Admission:
    """What Generate and Decide have in common. Does no I/O.

    Args:
        on_refused: Told which limit refused a request: "carbon_budget".
        rng: Draws the ids of requests that came without.
    """

    def __init__(
        self,
        keeper: SnapshotKeeper,
        rates: RateLimiter,
        spending: Spending,
        tasks: TaskKeeper,
        clock: Clock,
        limits: RequestLimits,
        on_refused: Callable[[str], None] = lambda limit: None,
        rng: random.Random | None = None,
    ) -> None:
        self._keeper = keeper
        self._rates = rates
        self._spending = spending
        self._tasks = tasks
        self._clock = clock
        self._limits = limits
        self._on_refused = on_refused
        self._rng = rng or random.Random()

    def admit(self, request: generation_pb2.GenerateRequest, principal: Principal) -> Admitted:
        """Checks all that can be known before an engine is. A task that is told from the text is put into the request:
        all that comes after is as if its caller had named it."""
        note_asked(request.request_id)
        check(request, self._limits)
        directive = None
        if request.HasField("evaluation"):
            if principal.role not in (Role.EVALUATOR, Role.ADMIN):
                raise permission_denied(principal.role, (Role.EVALUATOR, Role.ADMIN))
            if request.evaluation.HasField("candidate"):
                directive = replace(to_directive(request.evaluation.candidate), name=TRIAL)
            else:
                directive = self._keeper.snapshot.directives.get(request.evaluation.directive)
            if directive is None:
                raise not_found("directive", request.evaluation.directive)
        turns = to_turns(request.messages)
        told = None
        if not request.task and not request.HasField("evaluation"):
            told = self._tasks.tell(turns)
        if told is not None:
            request.task = told.task
        return Admitted(
            request=request,
            tenant=tenant_of(request.tenant, principal),
            request_id=request.request_id or f"{self._rng.getrandbits(128):032x}",
            turns=turns,
            traits=traits_of(turns, to_traits(request.traits), request.opt_out),
            directive=directive,
            task_likelihood=told.likelihood if told else None,
            started_at=self._clock.now(),
        )

    def limited(self, admitted: Admitted) -> AbstractContextManager[None]:
        """Takes the request from what its tenant may ask for; what an evaluator asks for is no tenant's request."""
        return nullcontext() if admitted.request.HasField("evaluation") else self.of_tenant(admitted.tenant)

    def of_tenant(self, tenant: str) -> AbstractContextManager[None]:
        """Takes a call, whichever it is, from what the tenant may ask for."""
        return self._rates.request(tenant)

    def decide(self, admitted: Admitted, model: str, accepting: Accepting) -> Decision:
        if admitted.directive is not None:
            why = f"an evaluator asked for {admitted.directive.name}"
            name, task = admitted.directive.name, admitted.request.task
            return Decision(admitted.directive, Reason.EVALUATION, why, planned=name, task=task)
        request = admitted.request
        facts = Facts(
            tenant=admitted.tenant,
            task=request.task,
            model=model,
            key=request.conversation_id or admitted.request_id,
            request_id=admitted.request_id,
            traits=admitted.traits,
            floor=request.floor if request.HasField("floor") else None,
            task_likelihood=admitted.task_likelihood,
        )
        decision = decide(facts, self._keeper.snapshot, self._clock.now(), self._spending.today, accepting)
        if decision.refused and decision.policy is not None:
            raise self._budget_spent(decision.policy)
        return decision

    def check_budget(self, admitted: Admitted) -> None:
        """Refuses before any engine is looked for. What an evaluator asks for is the product's, and never refused."""
        policy = match(self._keeper.snapshot.policies, admitted.tenant, admitted.request.task)
        if admitted.directive is None and policy is not None and refuses(policy, self._spending.today):
            raise self._budget_spent(policy)

    def _budget_spent(self, policy: Policy) -> PithError:
        self._on_refused("carbon_budget")
        now = self._clock.now()
        again = next_day(now)
        why = f"{carbon_budget_words(policy, self._spending.today)}; the next day begins at {again.isoformat()}"
        return quota_exceeded("CARBON_BUDGET_SPENT", f"policy:{policy.name}", why, (again - now).total_seconds())
