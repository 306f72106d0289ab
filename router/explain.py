"""What would be decided for a request, and why: the words for `Explain`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from pith.router.v1 import generation_pb2, policies_pb2

from common.energy.reading import Energy, EnergySource
from common.quality.bound import Cell
from router import convert, policy_messages
from router.directives.bounds import Snapshot, bound_value, open_bound, own_bound
from router.directives.decide import Accepting, Facts, Spent, away_words, decide, no_other_model, nothing_spent
from router.directives.levels import L0
from router.directives.policy import Policy
from router.directives.tell import Tell, tells_nothing
from router.directives.traits import traits_of
from router.optimizer.costs import Cost, CostBook


def explain(
    request: generation_pb2.GenerateRequest,
    tenant: str,
    model: str,
    snapshot: Snapshot,
    costs: CostBook,
    grams: Callable[[Cost], float | None],
    now: datetime,
    spent: Spent = nothing_spent,
    tell: Tell = tells_nothing,
    accepting: Accepting = no_other_model,
) -> policies_pb2.ExplainResponse:
    """By the code that decides, on the snapshot that it would use. A refusal is stated, not raised.

    Args:
        model: "name@digest"; empty while no engine is known.
        grams: Carbon of a request at the present intensity; None where that is unknown.
        spent: What each policy's requests have emitted today.
    """
    turns = convert.to_turns(request.messages)
    told = None if request.task else tell(turns)
    facts = Facts(
        tenant=tenant,
        task=told.task if told else request.task,
        model=model,
        key=request.conversation_id or request.request_id,
        request_id=request.request_id,
        traits=traits_of(turns, policy_messages.to_traits(request.traits), request.opt_out),
        floor=request.floor if request.HasField("floor") else None,
        task_likelihood=told.likelihood if told else None,
    )
    decision = decide(facts, snapshot, now, spent, accepting)
    response = policies_pb2.ExplainResponse(decision=convert.from_decision(decision), steps=decision.steps)
    if decision.policy is not None:
        names = (L0.name, *decision.policy.directives)
        predicted = costs.predicted(model, facts.task, names)
        for name in names:
            candidate = _candidate(name, facts, decision.policy, snapshot, now, accepting)
            if cost := predicted.get(name):
                _price(candidate, cost, grams(cost))
            response.candidates.append(candidate)
    return response


def _candidate(
    name: str, facts: Facts, policy: Policy, snapshot: Snapshot, now: datetime, accepting: Accepting
) -> policies_pb2.ExplainResponse.Candidate:
    shares = dict(snapshot.plan.shares(policy.name, facts.model, facts.task, facts.tenant))
    planned = shares.get(name, 0.0)
    if name == L0.name:
        why = f"{name}: no directive, always open"
        return policies_pb2.ExplainResponse.Candidate(directive=name, open=True, why=why, planned_share=planned)
    floor = max(policy.opening_floor, facts.floor or 0.0)
    cell = Cell(facts.model, facts.task, name, facts.tenant)
    found, words = open_bound(snapshot, policy, cell, floor, now)
    own, _ = own_bound(snapshot, policy, cell, floor, now)
    known = own or snapshot.bounds.get(cell.of_all)
    other = snapshot.directives[name].model if found else ""
    away = other != "" and other not in accepting()
    return policies_pb2.ExplainResponse.Candidate(
        directive=name,
        open=found is not None and not away,
        bound=bound_value(known, policy) if known else None,
        why=away_words(name, other) if away else words(),
        planned_share=planned,
    )


def _price(candidate: policies_pb2.ExplainResponse.Candidate, cost: Cost, grams: float | None) -> None:
    energy = Energy(cost.energy_joules, EnergySource.MODELLED)
    candidate.predicted_energy.CopyFrom(convert.from_energy(energy))
    candidate.priced_by = cost.priced_by
    if grams is not None:
        candidate.predicted_grams = grams
