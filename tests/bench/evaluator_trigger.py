"""Are decisions as good with the evaluator as with the published one, from a fifth of its samples?

    OMP_NUM_THREADS=1 python -m tests.bench.evaluator_trigger --json tests/bench/results/evaluator-trigger-DATE.json

SPROUT's window of 720 h from hour 800 of 2023 in its five zones, its mix of tasks, its recorded energies of Llama-2
13B, and its answers to the five tasks that have references, by our graders; 10,000 requests an hour, 2 % of them
sampled. Samples are drawn from the recorded prompts with replacement, so that the share that a level truly keeps of
L0's quality is known: that of all recorded prompts.

Both evaluators drive the same programme (`router.optimizer.solve`) on the same cells (task, level) every hour: the
mix of levels of least carbon that keeps the floor. `mixed` is as published: every level that was judged may be part
of the mix. `open_only` is as the router has it: only levels that clear the floor on their own.

- Published: at the hours that its trigger names (with its look-ahead mean), 1,000 prompts in the mix of the hour,
  each answered and graded at all levels; the quality of a level is the mean of the last run alone.
- Ours: the same trigger without look-ahead and with value of information (`work_waits`), what `evaluator.sampling`
  draws, and the lower bounds from `Estimates`, with the evaluator's own settings but for at most 1,000 samples a task
  and evaluation and spells of 100. A sample is a prompt answered at L0 and at one level.

Measures, weighted by requests, means over seeds:

- saving: carbon of the plan and of the evaluator's own answers, against L0 throughout.
- below: share of the requests whose task's plan truly keeps less than the floor, in that hour.
- shortfall: by how much, averaged over all requests.
- kept saving: the part of the saving that comes from hours and tasks whose plan truly keeps the floor, less the
  evaluator's own carbon. What is saved below the floor is no saving: it was not to be had.

As good means: below and shortfall are no larger, and the kept saving is no smaller. The published evaluator's
setting, xi = 0.1, is a floor of 0.9. Several levels keep within a point of a floor here (`true_share`), and neither
evaluator can tell on which side of it they lie: the published one serves them half of the time, by chance.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common.quality.bound import Cell, Floor, FloorKind, PairedScore
from common.quality.estimates import Estimates
from common.quality.trigger import EvaluationTrigger
from evaluator.config import EvaluatorConfig
from evaluator.samples import Target
from evaluator.sampling import Tally, next_batch, work_waits
from router.optimizer.solve import Candidate, solve
from tests.bench.machine import description
from tests.bench.sprout_scores import DATA, LEVELS, Graded, read

ZONES = ("US-TEX-ERCO", "US-CAL-CISO", "AU-SA", "NL", "GB")
FIRST_HOUR, HOURS = 800, 720
REQUESTS_PER_HOUR, SAMPLED = 10_000, 0.02
PUBLISHED_SAMPLES = 1000
START = datetime(2023, 2, 3, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)

Floats = NDArray[np.float64]
Kept = dict[str, dict[str, float]]
"""By task and level: the share of L0's quality that it is taken to keep."""


def intensities(zone: str) -> Floats:
    """gCO2eq/kWh, direct, of the window's hours."""
    with gzip.open(DATA / "carbon" / f"{zone}_2023_hourly.csv.gz", "rt", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))[FIRST_HOUR : FIRST_HOUR + HOURS]
    column = next(name for name in rows[0] if name.endswith("(direct)"))
    return np.array([float(row[column]) for row in rows])


def mix() -> Floats:
    """Share of the tasks in each hour as SPROUT draws it, those with references alone, [hours, tasks]."""
    with (DATA / "pai.csv").open(newline="") as file:
        jobs = np.array([float(row["job_name"]) for row in csv.DictReader(file)])
    generator = np.random.RandomState(0)  # as published
    rows = np.array([generator.randint(0, len(jobs) - HOURS // 24) for _ in range(6)])
    found: list[Floats] = []
    while len(found) < HOURS:
        counts = jobs[rows][1:]  # alpaca, which has no reference to grade by, comes first
        found += [counts / counts.sum()] * max(1, round(generator.normal(24, 4.8)))
        rows = (rows + 1) % len(jobs)
    return np.array(found[:HOURS])


@dataclass(frozen=True, slots=True)
class Spent:
    """What an evaluator did in one hour."""

    samples: int
    energy_kwh: float


def published(
    graded: dict[str, Graded], shares: Floats, trace: Floats, floor: float, rng: np.random.Generator
) -> Iterator[tuple[Kept, Spent]]:
    trigger, mean = EvaluationTrigger(), float(trace.mean())
    points = [(START + hour * HOUR, float(value)) for hour, value in enumerate(trace)]
    last: datetime | None = None
    judged: Kept = {}
    for hour, (now, _) in enumerate(points):
        spent = Spent(0, 0.0)
        if last is None or trigger.should_run(now, last, points[max(0, hour - 71) : hour + 1], False, mean).run:
            last, judged, energy = now, {}, 0.0
            counts = rng.multinomial(PUBLISHED_SAMPLES, shares[hour])
            for (task, of), count in zip(graded.items(), counts, strict=True):
                drawn = rng.integers(0, len(of.quality), count)
                quality = of.quality[drawn].mean(0) if count else np.zeros(3)
                energy += float(of.energy_kwh[drawn].sum())
                kept = {level: quality[i] / quality[0] for i, level in enumerate(LEVELS) if i and quality[0] > 0}
                judged[task] = {level: float(share) for level, share in kept.items()}
            spent = Spent(PUBLISHED_SAMPLES, energy)
        yield judged, spent


def ours(
    graded: dict[str, Graded], shares: Floats, trace: Floats, floor: float, rng: np.random.Generator
) -> Iterator[tuple[Kept, Spent]]:
    config = EvaluatorConfig(run_samples=PUBLISHED_SAMPLES, patience_samples=100)
    economy, trigger = config.economy, config.trigger
    the_floor = Floor(floor, FloorKind.RELATIVE)
    estimates = Estimates(lambda cell: (the_floor,), config.alpha, config.drift_alpha)
    cells = {Cell("13b", task, level): (task, i) for task in graded for i, level in enumerate(LEVELS) if i}
    carbon = {
        cell: float(graded[task].energy_kwh[:, i].mean() / graded[task].energy_kwh[:, 0].mean())
        for cell, (task, i) in cells.items()
    }
    waiting: Counter[Cell] = Counter()
    points = [(START + hour * HOUR, float(value)) for hour, value in enumerate(trace)]
    last: datetime | None = None
    serial = 0

    def targets() -> list[Target]:
        return [Target(cell, (the_floor,), "graded", 1, waiting[cell], relative) for cell, relative in carbon.items()]

    for hour, (now, _) in enumerate(points):
        for cell, (task, _level) in cells.items():
            share = shares[hour][list(graded).index(task)]
            waiting[cell] += int(rng.poisson(REQUESTS_PER_HOUR * SAMPLED * share))
        samples, energy = 0, 0.0
        undecided, looked_at = work_waits(targets(), estimates, economy, now, trigger.fresh_seconds)
        decision = trigger.should_run(now, last, points[max(0, hour - 71) : hour + 1], undecided)
        if decision.run and (undecided or looked_at):
            last, tally = now, Tally()
            while (batch := next_batch(targets(), estimates, economy, tally)) is not None:
                cell = batch.target.cell
                task, level = cells[cell]
                of = graded[task]
                for prompt in rng.integers(0, len(of.quality), batch.samples):
                    serial += 1
                    score = PairedScore(
                        cell, f"{serial:07d}", of.quality[prompt, level], of.quality[prompt, 0], "graded", "1", now
                    )
                    estimates.observe(score)
                    tally.take(score)
                    energy += float(of.energy_kwh[prompt, [0, level]].sum())
                tally.drawn[cell] += batch.samples
                waiting[cell] -= batch.samples
                samples += batch.samples
        judged: Kept = {task: {} for task in graded}
        for cell, (task, _level) in cells.items():
            bound = estimates.bound(cell)
            if bound is not None:
                judged[task][cell.directive] = bound.lower
        yield judged, Spent(samples, energy)


def outcome(
    graded: dict[str, Graded],
    shares: Floats,
    trace: Floats,
    floor: float,
    hours: Sequence[tuple[Kept, Spent]],
    *,
    open_only: bool,
) -> dict[str, float]:
    """The measures of one evaluator in one zone."""
    kwh = {task: of.energy_kwh.mean(0) for task, of in graded.items()}
    true = {task: of.quality.mean(0) / of.quality[:, 0].mean() for task, of in graded.items()}
    base = plan = kept_saving = own = below = shortfall = 0.0
    samples = runs = 0
    plans: dict[object, list[tuple[int, float]]] = {}
    for hour, (judged, spent) in enumerate(hours):
        own += spent.energy_kwh * trace[hour]
        samples, runs = samples + spent.samples, runs + (spent.samples > 0)
        for index, task in enumerate(graded):
            requests = REQUESTS_PER_HOUR * shares[hour, index]
            grams = kwh[task] * trace[hour] * requests
            levels = {level: kept for level, kept in judged[task].items() if kept >= floor or not open_only}
            known = (task, *levels.items())
            if known not in plans:
                # Carbon is proportional to energy within an hour, so that the plan lasts until what is open changes.
                candidates = [Candidate("L0", float(kwh[task][0]), 1.0)]
                candidates += [
                    Candidate(level, float(kwh[task][LEVELS.index(level)]), kept) for level, kept in levels.items()
                ]
                plans[known] = [(LEVELS.index(level), share) for level, share in solve(candidates, floor)]
            chosen = plans[known]
            keeps = sum(share * true[task][level] for level, share in chosen)
            saved = grams[0] - sum(share * grams[level] for level, share in chosen)
            base, plan = base + grams[0], plan + grams[0] - saved
            if keeps < floor:
                below += requests
                shortfall += requests * (floor - keeps)
            else:
                kept_saving += saved
    requests = REQUESTS_PER_HOUR * HOURS
    saving = 1 - (plan + own) / base
    return {
        "samples": samples,
        "runs": runs,
        "saving": saving,
        "own_carbon": own / base,
        "below": below / requests,
        "shortfall": shortfall / requests,
        "kept_saving": (kept_saving - own) / base,
    }


def _mean(outcomes: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in outcomes])) for key in outcomes[0]}


def compare(floor: float, seeds: int) -> dict[str, Any]:
    """Both evaluators in all zones, and whether ours is as good."""
    graded, shares = read(), mix()
    plans: dict[str, Any] = {"mixed": {}, "open_only": {}}
    for zone in ZONES:
        trace = intensities(zone)
        hours = {
            name: [list(run(graded, shares, trace, floor, np.random.default_rng(seed))) for seed in range(seeds)]
            for name, run in (("published", published), ("ours", ours))
        }
        for plan, zones in plans.items():
            both = {
                name: _mean([outcome(graded, shares, trace, floor, one, open_only=plan == "open_only") for one in of])
                for name, of in hours.items()
            }
            theirs, mine = both["published"], both["ours"]
            zones[zone] = {
                **both,
                "samples_ratio": mine["samples"] / theirs["samples"],
                "as_good": mine["below"] <= theirs["below"]
                and mine["shortfall"] <= theirs["shortfall"]
                and mine["kept_saving"] >= theirs["kept_saving"],
            }
    true = {task: (of.quality.mean(0) / of.quality[:, 0].mean()).tolist() for task, of in graded.items()}
    return {"floor": floor, "seeds": seeds, "true_share": true, "plans": plans}


def _print(document: dict[str, Any]) -> None:
    keys = ("samples", "runs", "saving", "own_carbon", "below", "shortfall", "kept_saving")
    for plan, zones in document["plans"].items():
        table = Table(
            "zone", "evaluator", *keys, "as good", title=f"floor {document['floor']}, {plan}", title_justify="left"
        )
        for zone, of in zones.items():
            for name in ("published", "ours"):
                cells = (
                    f"{of[name][key]:.0f}" if key in ("samples", "runs") else f"{of[name][key]:.2%}" for key in keys
                )
                table.add_row(
                    zone, name, *cells, f"{of['as_good']}, x {of['samples_ratio']:.3f}" if name == "ours" else ""
                )
        Console(width=130).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--floors", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    given = parser.parse_args(arguments)
    if not DATA.exists():
        print(f"{DATA} is absent; set PITH_DATA_DIR to the data folder", file=sys.stderr)
        return 1
    documents = [compare(floor, given.seeds) for floor in given.floors]
    for document in documents:
        _print(document)
    if given.json:
        whole = {
            "command": " ".join(
                ["python -m tests.bench.evaluator_trigger", *(sys.argv[1:] if arguments is None else arguments)]
            ),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": description(),
            "requests_per_hour": REQUESTS_PER_HOUR,
            "sampled": SAMPLED,
            "floors": documents,
        }
        given.json.write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
