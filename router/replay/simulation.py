"""The sums of a replay: what was served and emitted, and what would have been. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from common.quality.bound import Cell
from common.quality.interval import Interval
from router.directives.bounds import Snapshot
from router.directives.decide import Decision, Facts, Reason, decide
from router.directives.policy import BudgetScope, Mode, Policy, Trait, WhenSpent, match
from router.optimizer.costs import CostBook
from router.replay.estimate import MIN_REQUESTS, Exchange, Served, ratio, simulated_grams
from router.replay.recorded import CellCost, Recorded


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a policy would have made of recorded requests."""

    requests: int
    requests_without_energy: int
    recorded_grams: float
    simulated_grams: Interval | None
    """None where no energy is known, or not what the simulated directives cost."""
    saving: Interval | None
    """Share of the recorded grams; None as above, and where they are 0."""
    served: tuple[tuple[str, Reason, int], ...]
    """(directive, reason, requests), by name and reason."""
    assumptions: tuple[str, ...]
    """What the figures rest on, in words."""


class Simulation:
    """Replays requests, one after the other.

    Args:
        policies: All that compete for requests, the candidate among them.
        snapshot: With the candidate alone, and its plan.
        costs: What requests cost that were served; decides what is known.
        book: What the planner takes them to cost, known or not.
    """

    def __init__(
        self,
        candidate: Policy,
        policies: Sequence[Policy],
        snapshot: Snapshot,
        costs: Mapping[Served, CellCost],
        book: CostBook,
        now: datetime,
    ) -> None:
        self._candidate = candidate
        self._policies = policies
        self._snapshot = snapshot
        self._costs = costs
        self._book = book
        self._now = now
        self._decisive: dict[tuple[str, str], bool] = {}
        self._models = {directive.model for directive in snapshot.directives.values()} - {""}
        self._served: Counter[tuple[str, Reason]] = Counter()
        self._without_energy = 0
        self._left_alone = 0
        self._refused = 0
        self._recorded_grams = 0.0
        self._unchanged_grams = 0.0
        self._exchanged = 0
        self._exchanges: dict[tuple[Served, Served], Exchange] = {}
        self._day: date | None = None
        self._spent_grams = 0.0

    def add(self, requests: Sequence[Recorded]) -> None:
        """Replays requests, oldest first; those for which another policy decides are left out."""
        for request in requests:
            of = request.tenant, request.task
            if of not in self._decisive:
                self._decisive[of] = match(self._policies, *of) is self._candidate
            if self._decisive[of]:
                self._replay(request)

    def result(self) -> Simulated:
        exchanges = tuple(self._exchanges.values())
        grams = simulated_grams(self._unchanged_grams, exchanges, self._costs)
        requests = self._served.total()
        if requests == self._without_energy:
            grams = None
        recorded = self._recorded_grams
        saving = None
        if grams is not None and recorded > 0:
            shares = (1 - grams.value / recorded, 1 - grams.upper / recorded, 1 - grams.lower / recorded)
            saving = Interval(*shares, grams.confidence, grams.method)
        return Simulated(
            requests=requests,
            requests_without_energy=self._without_energy,
            recorded_grams=recorded,
            simulated_grams=grams,
            saving=saving,
            served=tuple(
                (directive, reason, count)
                for (directive, reason), count in sorted(
                    self._served.items(), key=lambda item: (item[0][0], item[0][1].value)
                )
            ),
            assumptions=tuple(self._assumptions(exchanges)),
        )

    def _replay(self, request: Recorded) -> None:
        if request.started_at.date() != self._day:
            self._day, self._spent_grams = request.started_at.date(), 0.0
        decision = decide(
            self._facts(request),
            self._snapshot,
            self._now,
            lambda _policy: self._spent_grams,
            lambda: self._models,
        )
        self._served[decision.directive.name, decision.reason] += 1
        self._refused += decision.refused
        if request.grams is None:
            self._without_energy += 1
            return
        self._recorded_grams += request.grams
        if not decision.refused:
            self._spent_grams += self._simulate(request, request.grams, decision)

    def _facts(self, request: Recorded) -> Facts:
        traits: frozenset[Trait] = frozenset()
        if request.reason == Reason.OPT_OUT.value:
            traits = frozenset((Trait.OPT_OUT,))
        elif request.reason == Reason.LEFT_ALONE.value:
            # Which traits it showed is not recorded: any that the candidate leaves alone stands for them.
            self._left_alone += 1
            traits = self._candidate.leave_alone - {Trait.OPT_OUT}
        return Facts(
            tenant=request.tenant,
            task=request.task,
            model=request.model,
            key=request.request_id,
            request_id=request.request_id,
            traits=traits,
        )

    def _simulate(self, request: Recorded, grams: float, decision: Decision) -> float:
        """Adds the request to the sums; returns what it would have emitted, as far as that is known."""
        directive = decision.directive
        old: Served = Cell(request.model, request.task, request.directive), request.directive_revision
        new: Served = Cell(request.model, request.task, directive.name), directive.revision
        if old == new:
            self._unchanged_grams += grams
            return grams
        self._exchanged += 1
        exchange = self._exchanges.get((old, new), Exchange(old, new, 0.0, 0.0))
        self._exchanges[old, new] = replace(
            exchange, grams=exchange.grams + grams, grams_square=exchange.grams_square + grams**2
        )
        return grams * self._share(exchange)

    def _share(self, exchange: Exchange) -> float:
        """Energy as simulated as a share of what it was: where it is not known, as the planner takes it to be."""
        known = ratio(exchange, self._costs)
        if known is not None:
            return known
        new_cell, old_cell = exchange.simulated[0], exchange.recorded[0]
        predicted = self._book.predicted(new_cell.model, new_cell.task, (new_cell.directive, old_cell.directive))
        new, old = predicted.get(new_cell.directive), predicted.get(old_cell.directive)
        return new.energy_joules / old.energy_joules if new and old and old.energy_joules > 0 else 1.0

    def _assumptions(self, exchanges: Sequence[Exchange]) -> list[str]:
        policy = self._candidate
        said = [
            "bounds, plan and costs are those known now, not those of the time",
            "each request draws its share, plan and hold-back by its own id: conversations are not recorded",
            "no caller asked for a higher floor than the policy's, which is not recorded",
        ]
        if self._left_alone or policy.leave_alone - {Trait.OPT_OUT}:
            said.append(
                "what a request showed is not recorded: those left alone then "
                f"({self._left_alone:,}) would be again, no other would"
            )
        if policy.quality_budget is not None and policy.quality_budget.scope is BudgetScope.DAY:
            said.append(
                "the quality budget is simulated as one of each task: the mean of a task's requests keeps the floor in "
                "every hour, and nothing is saved up for the dirty ones"
            )
        if self._models.intersection(self._snapshot.directives[name].model for name in policy.directives):
            said.append("engines of the models that its directives name accept requests")
        if policy.mode is not Mode.ON:
            said.append(f"in mode {policy.mode.value} every request is served at L0; simulate it in mode on")
        if self._exchanged:
            said.append(
                f"the {self._exchanged:,} requests with another directive than recorded emit their recorded carbon "
                "times the ratio of mean energies of the two directives in their model and task (modelled)"
            )
        if self._without_energy:
            said.append(f"the energy of {self._without_energy:,} requests is unknown: they are in no sum")
        unknown = [exchange for exchange in exchanges if ratio(exchange, self._costs) is None]
        if unknown:
            names = sorted({f"{e.simulated[0].directive} for task {e.simulated[0].task!r}" for e in unknown})
            guess = self._unchanged_grams + sum(e.grams * self._share(e) for e in exchanges)
            said.append(
                f"what is simulated is not known: fewer than {MIN_REQUESTS} requests of each side were recorded of "
                f"{', '.join(names[:5])}{' and others' if len(names) > 5 else ''}. By the planner's prior it would be "
                f"{guess:.4g} g"
            )
        if policy.carbon_budget is not None:
            said.append("the carbon budget counts the simulated requests, from the window's start or midnight UTC on")
            if policy.carbon_budget.when_spent is WhenSpent.REFUSE:
                said.append(f"{self._refused:,} requests would be refused and emit nothing")
        return said
