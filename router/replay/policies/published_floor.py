"""SPROUT's linear programme: shares of the levels of least carbon that keep a floor which follows the intensity."""

from __future__ import annotations

from itertools import product

import numpy as np

from router.replay.recordings import BASELINE, Floats
from router.replay.trace import Year


def floor_share(g_per_kwh: float, year: Year, xi: float) -> float:
    """Of L0's preference, to be kept: 1 - xi (k0 - k_min) / (k_max - k_min), k_min and k_max of the whole year."""
    span = year.most - year.least
    return 1.0 - xi * (g_per_kwh - year.least) / span if span else 1.0


def shares(grams: Floats, preference: Floats, floor: float) -> Floats:
    """Of requests by level, [levels]: least grams.x subject to preference.x >= floor preference_0, sum x = 1, x >= 0.

    Two constraints leave no optimum with more than two levels: one that keeps the floor, and one that may miss it. L0
    satisfies it wherever floor <= 1. An intensity below the year's least may ask for more than any level keeps: then
    the level that keeps most is served.
    """
    least = min(floor * float(preference[BASELINE]), float(preference.max()))
    best, cheapest = np.zeros(len(grams)), np.inf
    for keeps, misses in product(range(len(grams)), repeat=2):
        if preference[keeps] < least or (misses != keeps and preference[misses] >= least):
            continue
        share = 1.0
        if misses != keeps:
            share = (least - preference[misses]) / (preference[keeps] - preference[misses])
        cost = share * grams[keeps] + (1.0 - share) * grams[misses]
        if cost < cheapest:
            best, cheapest = np.zeros(len(grams)), cost
            best[misses] = 1.0 - share
            best[keeps] += share
    return best
