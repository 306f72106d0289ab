"""Part (f) of `tests.bench.bounds`: one tenant among others of another quality."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.bench.betting_streams import BATCH, FLOOR, Epochs, Ints, draw, quantiles
from tests.bench.score_laws import LAWS, Law

TENANTS = {
    "5 points below the floor, a fifth of the scores, all together 2 above": (FLOOR - 0.05, 0.2, FLOOR + 0.02),
    "2 points below, a fifth, all together 2 above": (FLOOR - 0.02, 0.2, FLOOR + 0.02),
    "10 points below, a twentieth, all together 2 above": (FLOOR - 0.1, 0.05, FLOOR + 0.02),
    "just below, a fifth, all together just below": (FLOOR - 0.002, 0.2, FLOOR - 0.002),
    "3 points above, a fifth, all together 2 below": (FLOOR + 0.03, 0.2, FLOOR - 0.02),
}
"""True share of the tenant, its part of the scores, and true share of all tenants together."""


def tenant(law: Law, case: tuple[float, float, float], runs: int, scores: int, seed: int) -> dict[str, Any]:
    """Part (f) of one law: one tenant's stream of so many scores among those of all, by both bounds."""
    share, part, together = case
    others = (together - part * share) / (1 - part)
    rng = np.random.default_rng(seed)
    common, own = Epochs(law, runs), Epochs(law, runs)
    everyone = np.arange(runs)
    its_scores, its_opening, its_closing = (np.zeros(runs, np.int64) for _ in range(3))
    open_by_common, is_open = np.zeros(runs), np.zeros(runs)
    ever = np.zeros(runs, bool)
    for at in range(1, scores + 1):
        its = rng.random(runs) < part
        pair = draw(law, np.where(its, share, others), rng)
        common.add(everyone, pair)
        own.add(np.flatnonzero(its), pair[its])
        its_scores += its
        its_opening[own.opened & (its_opening == 0)] = its_scores[own.opened & (its_opening == 0)]
        its_closing[own.closed & (its_closing == 0)] = its_scores[own.closed & (its_closing == 0)]
        served = own.opened | (common.opened & ~own.closed)
        open_by_common += common.opened
        is_open += served
        ever |= served
        if at % BATCH == 0:
            common.settle(everyone)
            own.settle(everyone)
    return {
        "its_scores": float(its_scores.mean()),
        "ever_open_by_all_together": float(common.opened.mean()),
        "ever_open_by_its_own": float((its_opening > 0).mean()),
        "ever_open": float(ever.mean()),
        "ever_closed_by_its_own": float((its_closing > 0).mean()),
        "time_open_by_all_together_alone": float(open_by_common.mean()) / scores,
        "time_open": float(is_open.mean()) / scores,
        "open_at_the_end": float(served.mean()),
        "its_scores_to_open": _reached(its_opening),
        "its_scores_to_close": _reached(its_closing),
    }


def _reached(samples: Ints) -> dict[str, float | None]:
    """Quantiles over all runs; where it was not reached, 0, it counts as never."""
    never = np.iinfo(np.int64).max
    return quantiles(np.where(samples == 0, never, samples), never - 1)


def tenants(runs: int, scores: int, seed: int) -> dict[str, Any]:
    """Part (f)."""
    found = {name: {law: tenant(LAWS[law], case, runs, scores, seed) for law in LAWS} for name, case in TENANTS.items()}
    below = [of for name, case in TENANTS.items() if case[0] < FLOOR for of in found[name].values()]
    return {
        "runs": runs,
        "scores_of_all": scores,
        "worst_false_opening_by_its_own": max(of["ever_open_by_its_own"] for of in below),
        "cases": found,
    }


def print_tenants(console: Console, found: dict[str, Any]) -> None:
    for name, by_law in found["cases"].items():
        columns = ("ever open by its own", "time open, by all alone", "with its own", "its scores to close", "to open")
        table = Table("law", *columns, title=f"(f) {name}", title_justify="left")
        for law, of in by_law.items():
            medians = (of[f"its_scores_to_{what}"]["0.5"] for what in ("close", "open"))
            times = (of["time_open_by_all_together_alone"], of["time_open"])
            table.add_row(
                law,
                f"{of['ever_open_by_its_own']:.1%}",
                *(f"{share:.1%}" for share in times),
                *("-" if m is None else f"{m:.0f}" for m in medians),
            )
        console.print(table)
