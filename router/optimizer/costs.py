"""What a request costs by (model, task, directive): its lengths by the engine's calibration, or observed energy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from common.carbon.accounting import CarbonSettings, embodied_grams, operational_grams
from common.quality.bound import Cell
from router.directives.levels import L0, PRIOR_RELATIVE_CARBON, Directive
from router.optimizer.pricing import Lengths, Price

MEMORY_REQUESTS = 2_000
"""Beyond this many, a mean forgets exponentially, so that it follows traffic that changes."""
UNKNOWN_DIRECTIVE_PRIOR = 0.5
MAX_CELLS = 10_000
"""Kept at once: a task is any string that a caller names. The one that was longest not served goes first."""
PRIOR_REQUESTS = 20
"""How many observed requests the prior is worth."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A running mean, and how many requests are in it."""

    value: float = 0.0
    requests: int = 0

    def with_(self, value: float) -> Mean:
        requests = self.requests + 1
        return Mean(self.value + _weight(requests) * (value - self.value), requests)


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known of a cell's requests; each mean is over those that told."""

    lengths: Lengths | None = None
    requests: int = 0
    """Whose lengths are known."""
    energy_joules: Mean = Mean()
    busy_seconds: Mean = Mean()

    def with_(self, lengths: Lengths | None, energy_joules: float | None, busy_seconds: float) -> Observed:
        requests, mean = self.requests, self.lengths
        if lengths is not None:
            requests += 1
            mean = lengths if mean is None else mean.toward(lengths, _weight(requests))
        return Observed(
            mean,
            requests,
            self.energy_joules if energy_joules is None else self.energy_joules.with_(energy_joules),
            self.busy_seconds.with_(busy_seconds) if busy_seconds > 0 else self.busy_seconds,
        )


class Cost(NamedTuple):
    """What one request is expected to cost. The energy is modelled, however that of the requests behind it is known."""

    energy_joules: float
    busy_seconds: float
    words: Callable[[], str] = str
    model: str = ""
    """"name@digest" of the one that answers, by whose engines' grid the energy is charged; empty for the default's."""

    @property
    def priced_by(self) -> str:
        """What the energy rests on, in words; made where they are asked for, as a plan takes thousands of costs."""
        return self.words()


def request_grams(cost: Cost, g_per_kwh: float, carbon: CarbonSettings) -> float:
    """gCO2eq of a request of that cost, operational and embodied."""
    return operational_grams(cost.energy_joules, g_per_kwh, carbon.pue) + embodied_grams(
        cost.busy_seconds, carbon.embodied_grams_total, carbon.lifetime_seconds
    )


_NOTHING = Observed()


class CostBook:
    """Observed means, and what is made of them.

    Where the model's engines are calibrated, energy is computed from the requests' mean lengths at the batch that they
    have at present, the same for all directives. Means of observed joules would compare what was served in a full batch
    with what was served in an empty one, where the same request costs several times more. They are used where there is
    no calibration; device time is a mean of what was observed in either case.

    Args:
        observed: What is known at the start.
        price_of: The price of a model's requests ("name@digest") at present; None where no engine of it is calibrated.
        directive_of: What a directive's name stands for at present; None where there is none of that name.
    """

    def __init__(
        self,
        observed: Mapping[Cell, Observed] | None = None,
        price_of: Callable[[str], Price | None] = lambda _model: None,
        directive_of: Callable[[str], Directive | None] = lambda _name: None,
    ) -> None:
        # Not by cells: these take longer to make and to find than all else of a cost.
        self._observed = OrderedDict((_key(cell), known) for cell, known in (observed or {}).items())
        self._price_of = price_of
        self._directive_of = directive_of

    def observe(
        self, cell: Cell, energy_joules: float | None, busy_seconds: float, lengths: Lengths | None = None
    ) -> None:
        """Takes a request in. None, and 0 busy seconds, stand for what is not known of it."""
        # Never taken out in between: plans are made in a thread of their own, which would miss it.
        key = _key(cell)
        self._observed[key] = self._observed.get(key, _NOTHING).with_(lengths, energy_joules, busy_seconds)
        self._observed.move_to_end(key)
        if len(self._observed) > MAX_CELLS:
            self._observed.popitem(last=False)

    def observed(self, cell: Cell) -> Observed | None:
        return self._observed.get(_key(cell))

    def predicted(self, model: str, task: str, directives: Iterable[str]) -> dict[str, Cost]:
        """By directive, all by one price; without those of which neither the cell nor L0's tells anything.

        A cell's own mean is drawn towards a prior as if that were PRIOR_REQUESTS more requests. Without that, a few
        dear requests could make L0 look cheaper for good: what is not served is not observed again. The prior is L0
        with PRIOR_RELATIVE_CARBON of its output tokens where lengths are priced: the published shares are of energy,
        but of prompts so short that they are the shares of output tokens too (SPROUT's ScienceQA: 0.29 and 0.19 of
        both). The prefill is not shrunk, so that a long prompt with a short answer hardly gains. Without a price the
        prior is that share of L0's energy.

        A directive that names a model is priced by that model's engines, in a cell of the model that was asked for.
        Where it says nothing to it, the prior is that it answers at the length of L0. Where only L0's model has a
        price, its energy is to L0's as what was observed of both.
        """
        directives = tuple(directives)
        named = {name: found for name in directives if (found := self._directive_of(name)) and found.model}
        price = self._price_of(model)
        prices = {one.model: self._price_of(one.model) for one in named.values()}
        base = self._observed.get((model, task, L0.name))
        if price is None or (base is not None and base.lengths is None):
            # What is priced beside what is of observed joules would not be comparable.
            price, prices = None, dict.fromkeys(prices)
        base = base or _NOTHING
        l0 = _energy(base, price)
        costs = {}
        for name in directives:
            if name == L0.name:
                if l0.requests:
                    costs[name] = _alone(base, l0, price, model)
                continue
            other = named.get(name)
            answers, own_price = (model, price) if other is None else (other.model, prices[other.model])
            own = self._observed.get((model, task, name), _NOTHING)
            mean = _energy(own, own_price)
            if price is not None and own_price is None:
                mean = _beside(mean, base, l0)
            if l0.requests:
                costs[name] = _drawn_to_l0(_prior(name, other, own_price), own, mean, base, l0, own_price, answers)
            elif mean.requests:
                costs[name] = _alone(own, mean, own_price, answers)
        return costs


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.model, cell.task, cell.directive


def _alone(own: Observed, mean: Mean, price: Price | None, model: str) -> Cost:
    return Cost(mean.value, own.busy_seconds.value, partial(_words, own, mean, price), model)


def _beside(mean: Mean, base: Observed, l0: Mean) -> Mean:
    """A mean of observed joules, at the scale of L0's price."""
    observed = base.energy_joules
    if not (mean.requests and observed.requests and observed.value > 0):
        return Mean()
    return Mean(mean.value * l0.value / observed.value, mean.requests)


def _prior(name: str, of_model: Directive | None, price: Price | None) -> float:
    """Output tokens as a share of L0's; energy without a price, and nothing is known of another model's then."""
    as_long = price is not None and of_model is not None and not of_model.changes_messages
    return PRIOR_RELATIVE_CARBON.get(name, 1.0 if as_long else UNKNOWN_DIRECTIVE_PRIOR)


def _drawn_to_l0(
    prior: float, own: Observed, mean: Mean, base: Observed, l0: Mean, price: Price | None, model: str
) -> Cost:
    """Of a directive, where L0, `base`, has a mean energy."""
    share = prior
    if price is not None and base.lengths is not None and l0.value > 0:
        share = price.joules(base.lengths.answered_with(prior)) / l0.value
    # Device time goes with energy: what the prior leaves of the one it leaves of the other.
    busy_seconds = own.busy_seconds.value
    if base.busy_seconds.requests:
        busy_seconds = _drawn(own.busy_seconds, share * base.busy_seconds.value)
    words = partial(_drawn_words, own, mean, base, l0, prior, price)
    return Cost(_drawn(mean, share * l0.value), busy_seconds, words, model)


def _energy(observed: Observed, price: Price | None) -> Mean:
    if price is None:
        return observed.energy_joules
    return Mean() if observed.lengths is None else Mean(price.joules(observed.lengths), observed.requests)


def _drawn(mean: Mean, prior: float) -> float:
    weight = mean.requests / (mean.requests + PRIOR_REQUESTS)
    return weight * mean.value + (1 - weight) * prior


def _words(own: Observed, mean: Mean, price: Price | None) -> str:
    if price is None or own.lengths is None:
        return f"mean energy of {_requests(mean)}"
    return f"lengths of {_requests(mean)}, {price.words(own.lengths)}"


def _drawn_words(own: Observed, mean: Mean, base: Observed, l0: Mean, prior: float, price: Price | None) -> str:
    lengths = own.lengths or (base.lengths and base.lengths.answered_with(prior))
    if price is None or lengths is None:
        of_l0 = f"{100 * prior:.3g} % of the mean energy of L0's {_requests(l0)}"
        return f"{_words(own, mean, None)}, and {of_l0} as {PRIOR_REQUESTS} more" if mean.requests else of_l0
    of_l0 = f"L0's {_requests(l0)} with {100 * prior:.3g} % of their output tokens"
    known = f"{_requests(mean)}, and of {of_l0} as {PRIOR_REQUESTS} more" if mean.requests else of_l0
    return f"lengths of {known}, {price.words(lengths)}"


def _requests(mean: Mean) -> str:
    return f"{mean.requests:,} request{'' if mean.requests == 1 else 's'}"


def _weight(requests: int) -> float:
    return 1.0 / min(requests, MEMORY_REQUESTS)
