"""What a request costs by (model, task, directive): running means over what was served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.quality.estimates import Cell
from router.directives.levels import PRIOR_RELATIVE_CARBON

MEMORY_REQUESTS = 2_000
"""Beyond this many, a mean forgets exponentially, so that it follows traffic that changes."""
UNKNOWN_DIRECTIVE_PRIOR = 0.5
MAX_CELLS = 10_000
"""Kept at once: a task is any string that a caller names. The one that was longest not served goes first."""
PRIOR_REQUESTS = 20
"""How many observed requests the prior is worth."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Means of one request."""

    energy_joules: float
    busy_seconds: float
    output_tokens: float
    requests: int


class CostBook:
    """Observed costs, with a stated prior for what has not been served yet."""

    def __init__(self, observed: Mapping[Cell, Cost] | None = None) -> None:
        self._costs: dict[Cell, Cost] = dict(observed or {})

    def observe(self, cell: Cell, energy_joules: float, busy_seconds: float, output_tokens: int) -> None:
        old = self._costs.pop(cell, Cost(0.0, 0.0, 0.0, 0))
        requests = old.requests + 1
        weight = 1.0 / min(requests, MEMORY_REQUESTS)
        self._costs[cell] = Cost(
            old.energy_joules + weight * (energy_joules - old.energy_joules),
            old.busy_seconds + weight * (busy_seconds - old.busy_seconds),
            old.output_tokens + weight * (output_tokens - old.output_tokens),
            requests,
        )
        if len(self._costs) > MAX_CELLS:
            del self._costs[next(iter(self._costs))]

    def observed(self, cell: Cell) -> Cost | None:
        return self._costs.get(cell)

    def predicted(self, cell: Cell) -> Cost | None:
        """Observed mean, drawn towards the prior share of L0's mean as if that were PRIOR_REQUESTS more requests.

        Without that, a few dear requests could make L0 look cheaper for good: what is not served is not observed again.
        None where neither it nor L0 was observed.
        """
        observed = self._costs.get(cell)
        base = self._costs.get(Cell(cell.model, cell.task, "L0"))
        if cell.directive == "L0" or base is None:
            return observed
        share = PRIOR_RELATIVE_CARBON.get(cell.directive, UNKNOWN_DIRECTIVE_PRIOR)
        if observed is None:
            return Cost(base.energy_joules * share, base.busy_seconds * share, base.output_tokens * share, 0)
        weight = observed.requests / (observed.requests + PRIOR_REQUESTS)

        def drawn(mean: float, l0_mean: float) -> float:
            return weight * mean + (1 - weight) * share * l0_mean

        return Cost(
            drawn(observed.energy_joules, base.energy_joules),
            drawn(observed.busy_seconds, base.busy_seconds),
            drawn(observed.output_tokens, base.output_tokens),
            observed.requests,
        )
