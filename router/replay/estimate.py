"""What requests would have emitted under other directives, and how sure that is. Pure.

A request served under directive a that would have had b is taken to emit g m_b / m_a: g grams as recorded, m the mean
energy of a request of the same model and task under each. So its own hour's intensity stays, and how long it is beside
others. Summed over the requests i that would have changed from a to b in a cell, with r = m_b / m_a,

    carbon as it would have been = carbon of the unchanged + sum over (a, b) of r sum g_i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from common.quality.bound import Cell
from common.quality.interval import Interval
from router.replay.recorded import CellCost

MIN_REQUESTS = 10
"""Recorded with energy, from which on the mean of a cell and its spread are taken for known."""

METHOD = "ratios of mean energies by cell, delta method, Welch-Satterthwaite t; approximate for few or skewed requests"

Served = tuple[Cell, int]
"""A cell and its directive's revision."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Requests with known carbon that would have had another directive than they had."""

    recorded: Served
    simulated: Served
    grams: float
    """As recorded, summed."""
    grams_square: float
    """Sum of their squares."""


def ratio(exchange: Exchange, costs: Mapping[Served, CellCost]) -> float | None:
    """Energy of a request as simulated, as a share of what it was; None where either is not known well enough."""
    new, old = costs.get(exchange.simulated), costs.get(exchange.recorded)
    if new is None or old is None or min(new.requests, old.requests) < MIN_REQUESTS:
        return None
    return new.mean_joules / old.mean_joules if min(new.mean_joules, old.mean_joules) > 0 else None


def simulated_grams(
    unchanged_grams: float,
    exchanges: Sequence[Exchange],
    costs: Mapping[Served, CellCost],
    confidence: float = 0.95,
) -> Interval | None:
    """Carbon as it would have been; None where the cost of an exchange is not known.

    Two things make it uncertain. The means: with h_c the derivative of the sum by the logarithm of the mean of cell c,
    s_c its standard deviation over its mean and n_c its requests, sum of (h_c s_c)² / n_c (delta method; each mean may
    stand in several exchanges). And the requests' own scatter about them, as if a request's cost under one directive
    told nothing of that under the other, which errs to the wide side: r² sum g_i² (s_a² + s_b²) / (1 + s_a²).
    """
    value = unchanged_grams
    slopes: dict[Served, float] = {}
    variances: dict[Served, float] = {}
    for exchange in exchanges:
        share = ratio(exchange, costs)
        if share is None:
            return None
        grams = share * exchange.grams
        value += grams
        old_variation = costs[exchange.recorded].variation_square
        scatter = share**2 * exchange.grams_square / (1 + old_variation)
        for served, slope in ((exchange.simulated, grams), (exchange.recorded, -grams)):
            slopes[served] = slopes.get(served, 0.0) + slope
            variances[served] = variances.get(served, 0.0) + scatter * costs[served].variation_square
    for served, slope in slopes.items():
        cost = costs[served]
        variances[served] += slope**2 * cost.variation_square / cost.requests
    variance = math.fsum(variances.values())
    half_width = 0.0
    if variance > 0:
        freedom = variance**2 / math.fsum(v**2 / (costs[served].requests - 1) for served, v in variances.items())
        half_width = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    lower = max(unchanged_grams, value - half_width)
    return Interval(value, lower, value + half_width, confidence, METHOD)
