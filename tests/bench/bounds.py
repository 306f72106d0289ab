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
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from common.quality import drift
from common.quality.confidence import BETS, LOG_WEIGHTS, STEPS_PER_UNIT
from tests.bench.machine import description
from tests.bench.pairing import pairing
from tests.bench.score_laws import LAWS, Law

ALPHA, DRIFT_ALPHA = 0.05, 0.01
FLOOR = 0.95
WEIGHTS = np.exp(LOG_WEIGHTS)
BATCH, RUN_SAMPLES, PATIENCE = 8, 200, 200
POWERS = (0.8, 0.9, 0.95)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def draw(law: Law, share: Floats, rng: np.random.Generator) -> Ints:
    """One pair for each share: its index in the law's support."""
    edges = np.cumsum(law.chances(share), axis=-1)[..., :-1]
    return np.asarray((rng.random(share.shape)[..., None] > edges).sum(-1))


# -- what opens, vectorised over streams


def betting(law: Law, floor: float) -> Callable[[Ints], NDArray[np.bool_]]:
    """The rule in force, over whole streams [streams, samples] of pairs: whether the floor is cleared at each."""
    factor = 1 + np.outer(law.quality / floor - law.baseline, BETS)  # [pairs, bets]

    def cleared(pairs: Ints) -> NDArray[np.bool_]:
        reached = np.zeros(pairs.shape, bool)
        capital = np.ones((len(pairs), len(BETS)))
        for at in range(pairs.shape[1]):
            capital *= factor[pairs[:, at]]
            reached[:, at] = capital @ WEIGHTS >= 1 / ALPHA
        return reached

    return cleared


def peeking(law: Law, floor: float) -> Callable[[Ints], NDArray[np.bool_]]:
    """Fault: the fixed-size normal bound at every look, from the 30th score on."""
    gain = law.quality - floor * law.baseline

    def cleared(pairs: Ints) -> NDArray[np.bool_]:
        count = np.arange(1, pairs.shape[1] + 1)
        total, squares = gain[pairs].cumsum(1), (gain[pairs] ** 2).cumsum(1)
        deviation = np.sqrt(np.maximum(squares - total**2 / count, 1e-12))
        return (total >= norm.ppf(1 - ALPHA) * deviation) & (count >= 30)

    return cleared


def decayed(law: Law, floor: float) -> Callable[[Ints], NDArray[np.bool_]]:
    """Fault: exponentially weighted mean (0.99 a score) with the normal bound of its effective size."""
    gain = law.quality - floor * law.baseline

    def cleared(pairs: Ints) -> NDArray[np.bool_]:
        mean = square = np.zeros(len(pairs))
        reached = np.zeros(pairs.shape, bool)
        for at in range(pairs.shape[1]):
            new = gain[pairs[:, at]]
            mean, square = 0.99 * mean + 0.01 * new, 0.99 * square + 0.01 * new**2
            deviation = np.sqrt(np.maximum(square - mean**2, 1e-12) * 0.01 / 1.99)
            reached[:, at] = (mean >= norm.ppf(1 - ALPHA) * deviation) & (at >= 30)
        return reached

    return cleared


def first(reached: NDArray[np.bool_]) -> Ints:
    """Samples to the first time, [streams]; one more than there are where it never comes."""
    return np.asarray(np.where(reached.any(1), reached.argmax(1) + 1, reached.shape[1] + 1))


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


class Epochs:
    """Capitals of the present epochs of some cells of one law: what opens, closes, or contradicts itself."""

    def __init__(self, law: Law, runs: int) -> None:
        gain = law.quality / FLOOR - law.baseline
        self.factor_up, self.factor_down = 1 + np.outer(gain, BETS), 1 - FLOOR * np.outer(gain, BETS)
        self.law = law
        self.up, self.down = np.ones((runs, len(BETS))), np.ones((runs, len(BETS)))
        self.counts = np.zeros((runs, len(gain)))
        self.samples = np.zeros(runs, np.int64)
        self.lower, self.upper = np.zeros(runs), np.full(runs, 2.0)
        self.opened, self.closed = np.zeros(runs, bool), np.zeros(runs, bool)

    def take(self, at: Ints, share: Floats, rng: np.random.Generator) -> None:
        """A batch of each of the cells `at`; then those that contradict themselves begin anew."""
        for _ in range(BATCH):
            self.add(at, draw(self.law, share, rng))
        self.settle(at)

    def add(self, at: Ints, pair: Ints) -> None:
        """One pair of each of the cells `at`."""
        self.up[at] *= self.factor_up[pair]
        self.down[at] *= self.factor_down[pair]
        self.counts[at, pair] += 1
        self.samples[at] += 1
        self.opened[at] |= self.up[at] @ WEIGHTS >= 1 / ALPHA
        self.closed[at] |= self.down[at] @ WEIGHTS >= 1 / ALPHA

    def settle(self, at: Ints) -> None:
        """Has those of the cells `at` begin anew that contradict themselves."""
        self.lower[at] = np.maximum(self.lower[at], bound(self.law, self.counts[at], lower=True))
        self.upper[at] = np.minimum(self.upper[at], bound(self.law, self.counts[at], lower=False))
        anew = at[(self.lower[at] > self.upper[at]) & ~self.opened[at]]
        self.up[anew] = self.down[anew] = 1.0
        self.counts[anew] = 0.0
        self.samples[anew] = 0
        self.lower[anew], self.upper[anew] = 0.0, 2.0
        self.closed[anew] = False


def bound(law: Law, counts: Floats, *, lower: bool) -> Floats:
    """The bound of ShareSequence from how often each pair came, [streams, pairs], without its running intersection."""
    near = np.zeros(len(counts), np.int64) if lower else np.full(len(counts), 2 * STEPS_PER_UNIT)
    far = np.full(len(counts), 2 * STEPS_PER_UNIT + 1) if lower else np.full(len(counts), 0)
    while (np.abs(far - near) > 1).any():
        middle = (near + far) // 2
        share = np.maximum(middle, 1)[:, None] / STEPS_PER_UNIT
        gain = law.quality / share - law.baseline if lower else share * law.baseline - law.quality
        log_capital = np.einsum("sbp,sp->sb", np.log1p(BETS[None, :, None] * gain[:, None, :]), counts) + LOG_WEIGHTS
        rejected = np.logaddexp.reduce(log_capital, axis=1) >= -math.log(ALPHA)
        near, far = np.where(rejected, middle, near), np.where(rejected, far, middle)
    return near / STEPS_PER_UNIT


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

    In force; the same with the floor for its level; and discounted e-processes, M^discount in place of max(M, 1).
    """
    rng = np.random.default_rng(seed)
    level = np.maximum(bound(law, counts.astype(float), lower=True), FLOOR)
    shape = (len(counts), len(drift.BETS))
    of_level, of_floor = np.zeros(shape), np.zeros(shape)
    discounted = {0.99: np.ones(shape), 0.998: np.ones(shape)}
    names = ["in force", "level = floor", *(f"discounted {d}" for d in discounted)]
    found = {name: np.full(len(counts), len(path) + 1) for name in names}
    for at, share in enumerate(path, start=1):
        pair = draw(law, np.full(len(counts), share), rng)
        quality, baseline = law.quality[pair], law.baseline[pair]
        to_level = 1 + drift.BETS * (level * baseline - quality)[:, None]
        to_floor = 1 + drift.BETS * (FLOOR * baseline - quality)[:, None]
        of_level, of_floor = np.maximum(of_level, 1) * to_level, np.maximum(of_floor, 1) * to_floor
        of_level = np.minimum(of_level, 1 / DRIFT_ALPHA / drift.WEIGHTS)
        reached = [
            (of_level @ drift.WEIGHTS >= 1 / DRIFT_ALPHA) & (of_floor @ drift.WEIGHTS >= drift.LEANING),
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


def _quantiles(samples: Ints, most: int) -> dict[str, float | None]:
    values = {str(q): float(np.quantile(samples, q, method="inverted_cdf")) for q in (0.1, 0.5, 0.9)}
    return {q: value if value <= most else None for q, value in values.items()}


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
                "to_close": {detector: _quantiles(of, most) for detector, of in drop.items()},
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


# -- (f) tenants

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
    return _quantiles(np.where(samples == 0, never, samples), never - 1)


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


def _print_tenants(console: Console, found: dict[str, Any]) -> None:
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


def _print(document: dict[str, Any]) -> None:
    console = Console(width=120)
    if "tenants" in document:
        _print_tenants(console, document["tenants"])
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
