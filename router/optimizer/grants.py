"""What a quality budget over a day grants each task in the present hour.

All that a policy's requests may lose over the day is one budget. It goes first where a unit of quality saves most
carbon: to the dirtiest hours, and to the tasks and directives that save most for what they lose. What a task may lose
of it in the present hour sets what it must keep then: its floor for an hour, at which its programme is solved like any
other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.directives.levels import L0
from router.optimizer.costs import Cost

Floats = NDArray[np.float64]
Class = tuple[str, str]
"""Model and task."""

STEPS_PER_OCTAVE: Final = 8
"""What saves alike for a unit of quality, to within 9 %, is granted alike: forecasts tell no better which saves more,
and hours of like intensity should not take turns. At least 2^(-1/8), or 92 %, of what can be saved at all is saved."""
_LEAST_GRAMS = 1e-12
"""A joule's: that clean hours emit nothing must not leave their savings without an order."""
_ROUNDING = 1e-9
EARLIER_REVISION: Final = ""
"""No directive's name: what was served under it is no longer open."""


class Hour(NamedTuple):
    """An hour of the day, or what is left of it."""

    hours: float
    """At most 1."""
    g_per_kwh: float


@dataclass(frozen=True, slots=True)
class Served:
    """Requests of one policy's class for which its plan decided.

    Attributes:
        today: By directive, L0 among them; those under what a directive was before by EARLIER_REVISION.
        per_hour: To be expected.
        ahead: The same of each of the day's hours, where that is known of them; empty where it is not.
    """

    today: Mapping[str, int]
    per_hour: float
    ahead: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Day:
    """The rest of a day (UTC).

    Attributes:
        hours: The present one first.
        served: By policy, and the classes that it had requests of.
        grams: Of requests of a cost at an intensity in gCO2eq/kWh; linear in the cost.
    """

    hours: Sequence[Hour]
    served: Mapping[str, Mapping[Class, Served]]
    grams: Callable[[Cost, float], float]


class Known(NamedTuple):
    """What may be served to a class' requests.

    Attributes:
        costs: Of L0, and of the open directives; empty where no energy is known.
        kept: Share of L0's quality that each open directive surely keeps.
        least: The same for the tenant for which that is least, where tenants have bounds of their own: what was served
            to whom is not counted apart.
        no_surplus: Of which nothing beyond L0's quality is counted on: open directives that not all requests may have.
    """

    costs: Mapping[str, Cost]
    kept: Mapping[str, float]
    least: Mapping[str, float] = MappingProxyType({})
    no_surplus: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a policy's budget when the plan was made.

    Attributes:
        requests: For which the plan decided so far today.
        kept: Mean share of L0's quality that they surely kept, by the bounds of now; None before the first.
        grams: What the quality of one request saves where the budget ends; infinite where nothing may be spent, 0
            where all that can be is.
        keeps: Whether the floor is expected to be kept over the day.
    """

    requests: int
    kept: float | None
    grams: float
    keeps: bool


def grants(
    known: Mapping[Class, Known], served: Mapping[Class, Served], day: Day, floor: float, directive_floor: float
) -> tuple[dict[Class, float], Standing] | None:
    """What each class must keep in the mean of the present hour, so that all of the day's requests together keep the
    floor with the least carbon; None where no class of known energy is expected to have requests. It is above 1 where a
    class keeps more than L0's quality, which others spend: within the same hour, or once it was kept. What later hours
    would keep so is not spent before: where these requests do not come, or the bound falls, the day would end below the
    floor by as much more.

    Args:
        known: The classes. Those of unknown energy and those without requests to come are granted nothing: they have no
            place in the order of savings, and keep the floor by themselves.
        floor: In the mean, of all of the day's requests.
        directive_floor: What is taken to have been kept by what was served and is no longer open.
    """
    requests, kept = _so_far(known, served, directive_floor)
    classes = [name for name, of in known.items() if of.costs and name in served and served[name].per_hour > 0]
    # Of an hour's last moment, and of one in which none is expected, it is asked too what may be lost.
    hours = np.maximum([hour.hours for hour in day.hours], _ROUNDING)
    to_come = np.maximum([served[name].ahead or [served[name].per_hour] * len(hours) for name in classes], _ROUNDING)
    to_come = to_come.reshape(len(classes), len(hours)) * hours  # [classes, hours]
    rates = [served[name].per_hour for name in classes]
    base = [known[name].costs[L0.name] for name in classes]
    an_hour = Cost(
        sum(rate * cost.energy_joules for rate, cost in zip(rates, base, strict=True)),
        sum(rate * cost.busy_seconds for rate, cost in zip(rates, base, strict=True)),
    )
    if an_hour.energy_joules <= 0:
        return None
    grams = np.array([day.grams(an_hour, hour.g_per_kwh) for hour in day.hours])
    grams_per_joule = np.maximum(grams / an_hour.energy_joules, _LEAST_GRAMS)
    found = [(place, step) for place, name in enumerate(classes) for step in savings(known[name])]
    of_class = np.array([place for place, _ in found], dtype=np.int64)  # [steps]
    lost = np.array([step.lost for _, step in found])
    joules = np.array([step.joules for _, step in found])
    # Where L0 is outdone, what a class keeps beyond L0's quality is another's to spend.
    surplus = np.array([max(0.0, -least_lost(known[name])) for name in classes])
    left = kept - floor * requests + (1.0 - floor) * float(to_come.sum()) + float(surplus @ to_come[:, 0])
    # What is not counted on of later hours is not theirs to lose either.
    later = np.maximum(lost - np.array([step.of_surplus for _, step in found]), _ROUNDING * lost)
    amounts = np.column_stack([lost, *[later] * (len(hours) - 1)]) * to_come[of_class]
    spent, price = _spend(left, amounts, np.outer(joules / lost, grams_per_joule))
    losses = np.bincount(of_class, spent * lost, len(classes))
    granted = {name: 1.0 + float(more - loss) for name, more, loss in zip(classes, surplus, losses, strict=True)}
    most = left + float(surplus @ to_come[:, 1:].sum(axis=1))
    standing = Standing(requests, kept / requests if requests else None, price, most >= -_ROUNDING * max(requests, 1))
    return granted, standing


class Saving(NamedTuple):
    """A step from one mix to the next on a class' way from what keeps most, L0 or better, to its least energy."""

    lost: float
    """Share of L0's quality."""
    joules: float
    of_surplus: float = 0.0
    """Of what is lost, that which was kept beyond L0's quality."""


def savings(known: Known) -> list[Saving]:
    """Of one request, the one that saves most for what it loses first: the lower convex hull of energy over quality.

    Between its corners lie the mixes of least energy for what they keep (Sinha and Zoltners 1979, "The multiple-choice
    knapsack problem").
    """
    points = {0.0: known.costs[L0.name].energy_joules}
    for name in known.kept:
        lost = _lost(known, name)
        points[lost] = min(points.get(lost, np.inf), known.costs[name].energy_joules)
    hull: list[tuple[float, float]] = []
    for lost, joules in sorted(points.items()):
        if hull and joules >= hull[-1][1]:
            continue
        while len(hull) > 1 and _steepness(hull[-2], hull[-1]) <= _steepness(hull[-1], (lost, joules)):
            hull.pop()
        hull.append((lost, joules))
    return [Saving(b[0] - a[0], a[1] - b[1], min(b[0], 0.0) - min(a[0], 0.0)) for a, b in pairwise(hull)]


def least_lost(known: Known) -> float:
    """Share of L0's quality where most is kept; below 0 where that is more than L0's."""
    return min((_lost(known, name) for name in known.kept), default=0.0)


def _lost(known: Known, name: str) -> float:
    kept = known.kept[name]
    if kept <= 1.0:
        return 1.0 - kept
    # More than L0's quality counts as far as every tenant has it: others will have spent it.
    return 0.0 if name in known.no_surplus else 1.0 - max(1.0, min(kept, known.least.get(name, kept)))


def _steepness(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Joules saved for a unit of quality."""
    return (one[1] - other[1]) / (other[0] - one[0])


def _spend(left: float, amounts: Floats, grams: Floats) -> tuple[Floats, float]:
    """Spends a budget where it saves most, and evenly on what saves alike.

    Args:
        left: Of the budget.
        amounts: What each step of every class takes of it in each hour, above 0, [steps, hours].
        grams: What a unit of it saves there, above 0, of the same shape.

    Returns:
        Share of each step that is taken in the first hour, [steps], and the grams where the budget ends.
    """
    if left <= 0:
        return np.zeros(len(amounts)), np.inf
    if not amounts.size:
        return np.zeros(len(amounts)), 0.0
    alike = np.rint((np.log2(grams.max()) - np.log2(grams)) * STEPS_PER_OCTAVE).astype(np.int64)
    rank, of = np.unique(alike, return_inverse=True)  # of the most first
    of = of.reshape(alike.shape)
    each = np.bincount(of.ravel(), amounts.ravel(), len(rank))
    share = np.clip((left - (np.cumsum(each) - each)) / each, 0.0, 1.0)
    more = np.flatnonzero(share < 1.0)
    price = float(grams.max()) * 2.0 ** (-float(rank[more[0]]) / STEPS_PER_OCTAVE) if len(more) else 0.0
    return share[of[:, 0]], price


def _so_far(known: Mapping[Class, Known], served: Mapping[Class, Served], directive_floor: float) -> tuple[int, float]:
    """Requests of the day, and the sum of what each surely kept."""
    requests, kept = 0, 0.0
    for name, of in served.items():
        bounds = {**known[name].kept, **known[name].least} if name in known else {}
        for directive, count in of.today.items():
            requests += count
            kept += count * (1.0 if directive == L0.name else bounds.get(directive, directive_floor))
    return requests, kept
