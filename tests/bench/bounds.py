"""Do the quality bounds keep what they promise, and what do they cost?

    OMP_NUM_THREADS=1 python -m tests.bench.bounds --json tests/bench/results/bounds-DATE.json

Simulations of the rule that `common.quality` follows (bets, weights, thresholds and order are imported, and a test
holds the simulation against `Estimates` score by score), 2,000 runs each, looked at after every score:

(a) false openings: 12 cells a run, every share below the floor at all times, though it moves: constant just below,
    pooled over three tenants in a mix that changes from one evaluation to the next (one of them above the floor),
    rising towards the floor, or swinging; two directives a task compete for 200 samples an evaluation as the
    evaluator has them do. A contradiction begins an epoch anew, with fresh alpha.
(b) samples to open, the share being 3 points above the floor, beside the fixed-size paired test of equal power: for
    power p the budget N is where a share p of the sequential runs has opened, the samples are those of min(opening,
    N), and the fixed size is that of the one-sided z test of level alpha with the true variances.
(c) samples from a planted drop of 5 points to the close, of runs that were open: from 3 or 4 points above the floor,
    after 1,000 scores or more. `least` is log(1 / drift_alpha) / KL(after, before): what a detector needs on the mean
    that knows both laws beforehand (Lorden), at the same mean run between false alarms.
(d) the interval's cut by pairing on SPROUT's graded answers: width of the share's interval from the true pairs,
    beside that from the same scores with L0's dealt to other prompts (--data; left out where the data is absent).
(e) the same with two faults planted: a fixed-size normal bound that is looked at after every score, and an
    exponentially decayed mean with its normal bound.
(f) one tenant among others of another quality: how often the directive is open for it, by the bound of all tenants
    alone and with its own beside it, and after how many of its scores its own closes or opens. Scores come by traffic,
    none is drawn for the tenant's sake. What has opened stays so here: no drift alarm closes it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from common.quality import drift
from common.quality.confidence import BETS
from tests.bench.betting_streams import (
    ALPHA,
    BATCH,
    DRIFT_ALPHA,
    FLOOR,
    PATIENCE,
    RUN_SAMPLES,
    WEIGHTS,
    Epochs,
    Floats,
    Ints,
    betting,
    bound,
    decayed,
    draw,
    peeking,
    quantiles,
)
from tests.bench.machine import description
from tests.bench.pairing import pairing
from tests.bench.score_laws import LAWS, Law
from tests.bench.tenant_bounds import print_tenants, tenants

POWERS = (0.8, 0.9, 0.95)


# -- (a) false openings


def shares(pattern: str, evaluations: int, runs: int, rng: np.random.Generator) -> Floats:
    """True share of a cell in each evaluation, [runs, evaluations], below FLOOR throughout."""
    if pattern == "just below":
        return np.full((runs, evaluations), FLOOR - 0.002)
    if pattern == "pooled":
        tenants = np.array([FLOOR - 0.04, FLOOR - 0.02, FLOOR + 0.02])
        mix = rng.dirichlet([2.0, 2.0, 2.0], (runs, evaluations))
        return np.asarray(np.minimum(mix @ tenants, FLOOR - 0.001))
    if pattern == "rising":
        return np.broadcast_to(np.linspace(FLOOR - 0.1, FLOOR - 0.001, evaluations), (runs, evaluations))
    phase = rng.integers(0, 2, (runs, 1))
    return np.where((np.arange(evaluations) + phase) % 2 == 0, FLOOR - 0.05, FLOOR - 0.001)


def false_openings(runs: int, evaluations: int, seed: int) -> dict[str, Any]:
    """Part (a): how often a cell is open at any time."""
    rng = np.random.default_rng(seed)
    patterns = ("just below", "pooled", "rising", "swinging")
    ever, names = [], []
    for task, (name, law) in enumerate(LAWS.items()):
        of_directive = [patterns[task % 4], patterns[(task + 2) % 4 if task < 4 else (task + 1) % 4]]
        truth = [shares(pattern, evaluations, runs, rng) for pattern in of_directive]
        cells = [Epochs(law, runs), Epochs(law, runs)]
        for evaluation in range(evaluations):
            for _ in range(RUN_SAMPLES // BATCH):
                # As the evaluator has it: the least carbon first, but the other one's turn after a spell.
                spells = np.stack([np.where(c.opened | c.closed, 10**9, c.samples // PATIENCE) for c in cells])
                turn = spells.argmin(0)
                for index, cell in enumerate(cells):
                    at = np.flatnonzero((turn == index) & ~cell.opened & ~cell.closed)
                    if len(at):
                        cell.take(at, truth[index][at, evaluation], rng)
        ever += [cell.opened for cell in cells]
        names += [f"{name}, L{2 - index}, {pattern}" for index, pattern in enumerate(of_directive)]
    opened = np.stack(ever)  # [cells, runs]
    return {
        "runs": runs,
        "evaluations": evaluations,
        "samples_an_evaluation_and_task": RUN_SAMPLES,
        "by_cell": dict(zip(names, opened.mean(1).tolist(), strict=True)),
        "worst_cell": float(opened.mean(1).max()),
        "family_of_12": float(opened.any(0).mean()),
    }


# -- (b) samples to open


def openings(law: Law, share: float, runs: int, horizon: int, seed: int) -> Ints:
    """Samples to open, [runs]; horizon + 1 where it takes more."""
    rng = np.random.default_rng(seed)
    factor = 1 + np.outer(law.quality / FLOOR - law.baseline, BETS)
    found, live, capital = np.full(runs, horizon + 1), np.arange(runs), np.ones((runs, len(BETS)))
    for at in range(1, horizon + 1):
        capital *= factor[draw(law, np.full(len(live), share), rng)]
        reached = capital @ WEIGHTS >= 1 / ALPHA
        if reached.any():
            found[live[reached]] = at
            live, capital = live[~reached], capital[~reached]
        if not len(live):
            break
    return found


def fixed_size(law: Law, share: float, power: float) -> float:
    """Samples of the one-sided z test of level ALPHA with that power, the variances known."""
    mean, variance = law.moments(share, FLOOR)
    at_floor = law.moments(FLOOR, FLOOR)[1]
    return float(((norm.ppf(1 - ALPHA) * at_floor**0.5 + norm.ppf(power) * variance**0.5) / mean) ** 2)


def samples_to_open(runs: int, seed: int) -> dict[str, Any]:
    """Part (b)."""
    found = {}
    for name, law in LAWS.items():
        share = FLOOR + 0.03
        horizon = math.ceil(6 * fixed_size(law, share, 0.9))
        samples = openings(law, share, runs, horizon, seed)
        by_power = {}
        for power in POWERS:
            budget = np.quantile(samples, power, method="inverted_cdf")
            mean = float(np.minimum(samples, budget).mean())
            fixed = fixed_size(law, share, power)
            by_power[str(power)] = {"mean": mean, "fixed": fixed, "ratio": mean / fixed}
        found[name] = {
            "opened_within_horizon": float((samples <= horizon).mean()),
            "horizon": horizon,
            "mean": float(samples.mean()),
            "median": float(np.median(samples)),
            "mean_over_fixed_of_power_0.9": float(samples.mean()) / fixed_size(law, share, 0.9),
            "by_power": by_power,
        }
    return {"share": FLOOR + 0.03, "runs": runs, "laws": found}


# -- (c) samples to close


def alarms(law: Law, path: Floats, counts: Ints, seed: int) -> dict[str, Ints]:
    """Samples of `path` (true shares) to each detector's alarm, [streams], after the pairs that `counts` counts.

    In force; the same with a threshold that does not grow with the scores; that with the floor for its level; and
    discounted e-processes, M^discount in place of max(M, 1).
    """
    rng = np.random.default_rng(seed)
    level = np.maximum(bound(law, counts.astype(float), lower=True), FLOOR)
    shape = (len(counts), len(drift.BETS))
    of_level, of_floor, unsurer = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    samples = counts.sum(axis=1)
    discounted = {0.99: np.ones(shape), 0.998: np.ones(shape)}
    names = ["in force", "constant threshold", "level = floor", *(f"discounted {d}" for d in discounted)]
    found = {name: np.full(len(counts), len(path) + 1) for name in names}
    for at, share in enumerate(path, start=1):
        pair = draw(law, np.full(len(counts), share), rng)
        quality, baseline = law.quality[pair], law.baseline[pair]
        to_level = 1 + drift.BETS * (level * baseline - quality)[:, None]
        to_floor = 1 + drift.BETS * (FLOOR * baseline - quality)[:, None]
        threshold = np.maximum(1 / DRIFT_ALPHA, drift.EVIDENCE_A_SCORE * (samples + at - drift.MANY_SCORES))
        of_level = np.minimum(np.maximum(of_level, 1) * to_level, threshold[:, None] / drift.WEIGHTS)
        unsurer = np.minimum(np.maximum(unsurer, 1) * to_level, 1 / DRIFT_ALPHA / drift.WEIGHTS)
        of_floor = np.maximum(of_floor, 1) * to_floor
        leans = of_floor @ drift.WEIGHTS >= drift.LEANING
        reached = [
            (of_level @ drift.WEIGHTS >= threshold) & leans,
            (unsurer @ drift.WEIGHTS >= 1 / DRIFT_ALPHA) & leans,
            of_floor @ drift.WEIGHTS >= 1 / DRIFT_ALPHA,
        ]
        for discount, evidence in discounted.items():
            evidence[:] = np.maximum(evidence, 1e-300) ** discount * to_floor
            reached.append(evidence @ drift.WEIGHTS >= 1 / DRIFT_ALPHA)
        for name, alarm in zip(names, reached, strict=True):
            found[name][alarm & (found[name] > len(path))] = at
    return found


def opened(law: Law, share: float, samples: int, runs: int, rng: np.random.Generator) -> Ints:
    """How often each pair came in streams that are open after so many samples, [at most runs, pairs]."""
    counts = rng.multinomial(samples, law.chances(share), size=runs)
    return counts[bound(law, counts.astype(float), lower=True) >= FLOOR]


def samples_to_close(runs: int, seed: int) -> dict[str, Any]:
    """Part (c), and the same of a slow fall, and how often nothing has changed and an alarm comes all the same."""
    rng = np.random.default_rng(seed)
    most, found = 3000, {}
    for name, law in LAWS.items():
        enough = math.ceil(2 * fixed_size(law, FLOOR + 0.03, 0.9))
        cases = {(before, max(least, enough)) for before, least in ((0.98, 1000), (0.98, 3000), (0.99, 1000))}
        for before, samples in sorted(cases):
            after = before - 0.05
            counts = opened(law, before, samples, runs, rng)
            start, end = law.chances(before), law.chances(after)
            possible = end > 0
            with np.errstate(divide="ignore"):
                information = float((end[possible] * np.log(end[possible] / start[possible])).sum())
            drop = alarms(law, np.full(most, after), counts, seed)
            steps = np.full(most, after)
            steps[:1000] = np.linspace(before, after, 1000)
            below = int((steps >= FLOOR).sum())
            slow = alarms(law, steps, counts, seed + 1)
            same = alarms(law, np.full(most, before), counts[: runs // 4], seed + 2)
            found[f"{name}, {before:.2f} to {after:.2f} after {samples}"] = {
                "samples_before": samples,
                "open": len(counts),
                "least": -math.log(DRIFT_ALPHA) / information,
                "to_close": {detector: quantiles(of, most) for detector, of in drop.items()},
                "slow_fall_to_close_from_the_floor_on": {
                    detector: float(np.median(of)) - below if np.median(of) <= most else None
                    for detector, of in slow.items()
                },
                f"false_alarms_in_{most}": {detector: float((of <= most).mean()) for detector, of in same.items()},
            }
    return {"runs": runs, "drift_alpha": DRIFT_ALPHA, "most": most, "laws": found}


# -- (e) faults


def faults(runs: int, samples: int, seed: int) -> dict[str, Any]:
    """How often a cell just below the floor is open at any time, by rule."""
    found: dict[str, Any] = {}
    for name, law in LAWS.items():
        pairs = draw(law, np.full((runs, samples), FLOOR - 0.002), np.random.default_rng(seed))
        rules = {"in force": betting, "fixed-size bound, peeked at": peeking, "decayed mean": decayed}
        found[name] = {rule: float(make(law, FLOOR)(pairs).any(1).mean()) for rule, make in rules.items()}
    return {"runs": runs, "samples": samples, "laws": found}


def _print(document: dict[str, Any]) -> None:
    console = Console(width=120)
    if "tenants" in document:
        print_tenants(console, document["tenants"])
    if "false_openings" not in document:
        return
    table = Table("cell", "open at any time", title="(a) every share below the floor", title_justify="left")
    for name, rate in document["false_openings"]["by_cell"].items():
        table.add_row(name, f"{rate:.1%}")
    table.add_row("any of the 12", f"{document['false_openings']['family_of_12']:.1%}")
    console.print(table)
    table = Table("law", "mean samples", *(f"ratio at power {p}" for p in POWERS), title="(b)", title_justify="left")
    for name, one in document["samples_to_open"]["laws"].items():
        table.add_row(name, f"{one['mean']:.0f}", *(f"{of['ratio']:.2f}" for of in one["by_power"].values()))
    console.print(table)
    closings = document["samples_to_close"]["laws"]
    detectors = list(next(iter(closings.values()))["to_close"])
    table = Table("law", "open", "least", *detectors, title="(c) median samples to close", title_justify="left")
    for name, one in closings.items():
        medians = (of["0.5"] for of in one["to_close"].values())
        table.add_row(
            name, str(one["open"]), f"{one['least']:.0f}", *("-" if m is None else f"{m:.0f}" for m in medians)
        )
    console.print(table)
    table = Table("law", *next(iter(document["faults"]["laws"].values())), title="(e)", title_justify="left")
    for name, by_rule in document["faults"]["laws"].items():
        table.add_row(name, *(f"{rate:.1%}" for rate in by_rule.values()))
    console.print(table)
    if document["pairing"]:
        print(f"(d) mean cut by pairing: {document['pairing']['mean_cut']:.1%}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tenants", action="store_true", help="part (f) alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    document: dict[str, Any] = {
        "command": " ".join(["python -m tests.bench.bounds", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": description(),
        "floor": FLOOR,
        "alpha": ALPHA,
        "tenants": tenants(given.runs, 4000, given.seed),
    }
    if not given.tenants:
        document |= {
            "false_openings": false_openings(given.runs, 10, given.seed),
            "samples_to_open": samples_to_open(given.runs, given.seed),
            "samples_to_close": samples_to_close(given.runs, given.seed),
            "faults": faults(given.runs, 2000, given.seed),
            "pairing": pairing(given.seed),
        }
    document["seconds"] = round(time.monotonic() - started)
    _print(document)
    if given.json:
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
