"""Does the share that is freed of a judge's liking for length open what keeps quality, and only that?

    OMP_NUM_THREADS=1 python -m tests.bench.preference_bounds --json tests/bench/results/preference-bounds-DATE.json

Simulated pairs of one cell: logit P(directive preferred) = strength + u of the prompt + 0.8 tanh(d / 800 characters)
+- 0.3 for the place, with u of standard deviation 1. L0's answers have 665 characters in the median, brief ones about
half of theirs, verbose ones half as many again. The strength is set by the true share at equal length and balanced
order. The form of the length's effect is none of those that the fit tries.

(a) false openings: the true share 3 points below the floor, and a judge that says yes or no; how often a look at the
    bound, after every batch of 20 pairs up to 1,000, ever finds it open. For a verbose directive, which the raw
    preference overrates; for a brief one; and where the judge has no liking for length. Beside it the raw share.
(b) openings and closings by a judge that says how sure it is: a brief directive of equal quality, which the raw
    preference underrates, and one that has truly lost 15 points; the same for a verbose one, which it overrates. Looks
    after every 250 pairs up to 6,000: how often each has the directive open or closed by then, and the median number of
    pairs until then. At last a brief directive of equal quality by the judge of (a), up to 12,000 pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from common.quality.confidence import ShareSequence
from common.quality.corrected import LEAST_PAIRS, CellPairs
from common.quality.likings import Likings
from common.quality.pairwise import BASELINE_QUALITY, Comparison
from tests.bench.machine import description

ALPHA, FLOOR = 0.05, 0.95
BATCH, FALSE_PAIRS = 20, 1_000
SPACING, MOST = 250, 6_000
LIKING, CHARACTERS, PLACE, PROMPTS = 0.8, 800.0, 0.3, 1.0
RATIOS = {"brief": (-1.0, -0.5, 0.6), "verbose": (1.0, -0.9, 0.5)}
"""Log of the ratio of lengths: its sign, and mean and standard deviation of the log of its size."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)


@dataclass(frozen=True)
class Scenario:
    """One directive and judge."""

    lengths: str
    share: float
    liking: float = LIKING
    says_how_sure: bool = False


def _expit(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def share_of(strength: float) -> float:
    """At equal length and balanced order."""
    levels = _expit(strength + PROMPTS * _NODES + PLACE * np.array([[1.0], [-1.0]]))
    return float(2 * (levels.mean(0) @ _WEIGHTS) / _WEIGHTS.sum())


def strength_of(share: float) -> float:
    low, high = -6.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_of(middle) < share else (low, middle)
    return low


def comparisons(scenario: Scenario, pairs: int, rng: np.random.Generator) -> list[Comparison]:
    baseline = rng.lognormal(6.5, 0.5, pairs)
    sign, mean, deviation = RATIOS[scenario.lengths]
    answer = baseline * np.exp(sign * rng.lognormal(mean, deviation, pairs))
    lengths = np.ceil(np.stack([answer, baseline])).astype(int)
    level = strength_of(scenario.share) + rng.normal(0, PROMPTS, pairs)
    level = level + scenario.liking * np.tanh((lengths[0] - lengths[1]) / CHARACTERS)
    chance = _expit(level + PLACE * np.array([[1.0], [-1.0]]))
    preferred = chance if scenario.says_how_sure else rng.random((2, pairs)) < chance
    return [
        Comparison(int(a), int(b), float(first), float(second))
        for a, b, first, second in zip(*lengths, *preferred, strict=True)
    ]


def run(scenario: Scenario, looks: Sequence[int], seed: int) -> dict[str, int | None]:
    """Pairs to the first look that has each verdict; None where none has."""
    rng = np.random.default_rng(seed)
    likings, raw = Likings(), ShareSequence(ALPHA)
    cell = CellPairs()
    given = comparisons(scenario, looks[-1], rng)
    found: dict[str, int | None] = dict.fromkeys(("open", "closed", "raw open", "raw closed"))
    for number, comparison in enumerate(given, start=1):
        cell.take(str(number), comparison, likings, teaches=True)
        # Betting's bounds only tighten: after one verdict comes no other, a contradiction apart.
        if found["raw open"] is None and found["raw closed"] is None:
            raw.update(comparison.quality, BASELINE_QUALITY)
        # Before, nothing is said.
        if number not in looks or number < LEAST_PAIRS:
            continue
        corrected = cell.corrected(likings, ALPHA)
        assert corrected is not None
        at_look = {
            "open": corrected.lower >= FLOOR,
            "closed": corrected.upper < FLOOR,
            "raw open": raw.lower >= FLOOR,
            "raw closed": raw.upper < FLOOR,
        }
        found = {name: number if at is None and at_look[name] else at for name, at in found.items()}
    return found


def summary(found: Sequence[dict[str, int | None]]) -> dict[str, Any]:
    of_verdict = {}
    for name in found[0]:
        reached = [one[name] for one in found if one[name] is not None]
        middle = float(np.median([math.inf if one[name] is None else one[name] for one in found]))
        of_verdict[name] = {
            "share_of_runs": len(reached) / len(found),
            "median_pairs": None if math.isinf(middle) else middle,
        }
    return {"runs": len(found), **of_verdict}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="of (a)")
    parser.add_argument("--long-runs", type=int, default=40, help="of (b)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    short = range(BATCH, FALSE_PAIRS + 1, BATCH)
    long = range(SPACING, MOST + 1, SPACING)
    false = {
        "verbose, liked": Scenario("verbose", FLOOR - 0.03),
        "brief, disliked": Scenario("brief", FLOOR - 0.03),
        "verbose, no liking": Scenario("verbose", FLOOR - 0.03, liking=0.0),
    }
    paths = {
        f"{lengths}, {what}": Scenario(lengths, share, says_how_sure=True)
        for lengths in RATIOS
        for what, share in (("equal quality", 1.0), ("15 points lost", 0.85))
    }
    hard = {"brief, equal quality, yes or no": Scenario("brief", 1.0)}
    report: dict[str, Any] = {
        "command": "python -m tests.bench.preference_bounds " + " ".join(arguments),
        "machine": description(),
        "alpha": ALPHA,
        "floor": FLOOR,
    }
    console = Console(width=120)
    with ProcessPoolExecutor(options.processes) as pool:
        for part, scenarios, looks, runs in (
            ("false_openings", false, short, options.runs),
            ("verdicts", paths, long, options.long_runs),
            ("verdicts_of_yes_or_no", hard, range(2 * SPACING, 2 * MOST + 1, 2 * SPACING), options.long_runs),
        ):
            report[part] = {}
            shown = Table("scenario", "runs", "open", "closed", "raw open", "raw closed", title=part)
            for name, scenario in scenarios.items():
                seeds = range(options.seed, options.seed + runs)
                found = list(pool.map(partial(run, scenario, looks), seeds, chunksize=5))
                report[part][name] = one = {
                    "share": round(scenario.share, 6),
                    "liking": scenario.liking,
                    **summary(found),
                }
                verdicts = [
                    f"{100 * one[verdict]['share_of_runs']:.1f} % ({one[verdict]['median_pairs'] or '-'})"
                    for verdict in ("open", "closed", "raw open", "raw closed")
                ]
                shown.add_row(name, str(runs), *verdicts)
                report["seconds"] = round(time.monotonic() - began)
                if options.json is not None:
                    # After each, since all take long.
                    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            console.print(shown)


if __name__ == "__main__":
    main(sys.argv[1:])
