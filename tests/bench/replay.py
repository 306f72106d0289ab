"""Do the published policies, replayed on the published measurements, come out where they were published?

    python -m tests.bench.replay --json tests/bench/results/replay-DATE.json

SPROUT's dev half of recorded requests, window of 720 hours at hour 800, xi = 0.1, five zones, load seed 0, means over
seeds. Published: savings and preferences of the whole set, the evaluator's carbon left out. `hindsight` stands beside
them at each zone's published preference of SPROUT: what choosing by task and hour could save at most.

Seconds are of one policy over the window, on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from router.replay.demand import published_demand, read_load
from router.replay.outcome import Outcome
from router.replay.policies.named import POLICIES
from router.replay.recordings import RecordedSet
from router.replay.replay import Terms, replay
from router.replay.requests_file import read_requests
from router.replay.trace import read_trace
from tests.bench.machine import description
from tests.router.replay.test_published_table import DATA, HOURS, PUBLISHED, RUNS, START_HOUR

POINTS = {"co2_opt": 1.0, "static": 6.0, "sprout": 9.0, "oracle": 1.0}
"""By which a saving may be off its published one in any zone."""
SPROUT_POINTS = 4.0
"""By which SPROUT's may be off in the mean over zones."""


def measure(recorded: RecordedSet, zone: str, name: str, seed: int, requests_per_hour: float) -> dict[str, Any]:
    trace = read_trace(DATA / "carbon" / f"{zone}_2023_hourly.csv.gz")
    demand = published_demand(read_load(DATA / "pai.csv"), recorded.tasks, HOURS, requests_per_hour, 0)
    terms = Terms(seed=seed, floor=PUBLISHED[zone]["sprout"][1] / 100)
    start = time.perf_counter()
    found = replay(recorded, trace, START_HOUR, demand, {name: POLICIES[name]}, terms)[name]
    return {"zone": zone, "policy": name, "seed": seed, "seconds": time.perf_counter() - start, **_figures(found)}


def _figures(found: Outcome) -> dict[str, Any]:
    return {
        "requests": found.requests,
        "carbon_grams": found.carbon_grams,
        "carbon_saving": found.carbon_saving,
        "carbon_saving_without_evaluator": found.carbon_saving_without_evaluator,
        "preference": found.preference,
        "accuracy_share": {task: kept.share for task, kept in found.accuracy.items()},
        "directive_mix": dict(found.directive_mix),
        "evaluator_runs": found.evaluator_runs,
        "evaluator_samples": found.evaluator_samples,
    }


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds beside what was published, percent."""
    compared = []
    for zone, of in PUBLISHED.items():
        for name in dict.fromkeys(row["policy"] for row in rows):
            own = [row for row in rows if (row["zone"], row["policy"]) == (zone, name)]
            saving, preference = of.get(name, (None, None))
            without = 100 * np.array([row["carbon_saving_without_evaluator"] for row in own])
            compared.append(
                {
                    "zone": zone,
                    "policy": name,
                    "saving": float(without.mean()),
                    "saving_deviation": float(without.std(ddof=1)) if len(own) > 1 else None,
                    "saving_with_evaluator": float(100 * np.mean([row["carbon_saving"] for row in own])),
                    "published_saving": saving,
                    "preference": float(100 * np.mean([row["preference"] for row in own])),
                    "published_preference": preference,
                    "evaluator_runs": sorted({row["evaluator_runs"] for row in own}),
                    "seconds": float(np.median([row["seconds"] for row in own])),
                }
            )
    return compared


def targets(compared: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """What makes the replay believed."""
    off = {
        name: [abs(row["saving"] - row["published_saving"]) for row in compared if row["policy"] == name]
        for name in POINTS
    }
    met = {
        f"{name} within {points:g} points in every zone": max(off[name]) <= points for name, points in POINTS.items()
    }
    met[f"sprout within {SPROUT_POINTS:g} points in the mean"] = float(np.mean(off["sprout"])) <= SPROUT_POINTS
    met["evaluator runs as published"] = all(
        row["evaluator_runs"] == [RUNS[row["zone"]]] for row in compared if row["policy"] == "sprout"
    )
    return met


def show(console: Console, compared: Sequence[dict[str, Any]], met: dict[str, bool]) -> None:
    table = Table(title="Saving and preference, % of base; published in brackets")
    for column in ("zone", "policy", "saving", "with evaluator", "preference", "runs", "s"):
        table.add_column(column, justify="left" if column in ("zone", "policy") else "right")
    for row in compared:
        published = row["published_saving"] is not None
        table.add_row(
            row["zone"],
            row["policy"],
            f"{row['saving']:.1f}" + (f" ({row['published_saving']:.1f})" if published else ""),
            f"{row['saving_with_evaluator']:.1f}",
            f"{row['preference']:.1f}" + (f" ({row['published_preference']:.1f})" if published else ""),
            ", ".join(map(str, row["evaluator_runs"])),
            f"{row['seconds']:.1f}",
        )
    console.print(table)
    for target, reached in met.items():
        console.print(f"{'met   ' if reached else 'MISSED'} {target}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests-per-hour", type=float, default=2500.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    given = parser.parse_args(arguments)
    if not DATA.exists():
        print(f"{DATA} is absent; set PITH_DATA_DIR to the data folder", file=sys.stderr)
        return 1
    names = ("co2_opt", "static", "sprout", "oracle", "hindsight")
    jobs = [(zone, name, seed) for zone in PUBLISHED for name in names for seed in range(given.seeds)]
    recorded = read_requests(DATA / "requests_dev.jsonl.gz")
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("replaying", total=len(jobs))
        for zone, name, seed in jobs:
            rows.append(measure(recorded, zone, name, seed, given.requests_per_hour))
            progress.update(task, advance=1)
    compared = compare(rows)
    met = targets(compared)
    show(Console(), compared, met)
    if given.json:
        document = {
            "command": " ".join(["python -m tests.bench.replay", *(sys.argv[1:] if arguments is None else arguments)]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": description(),
            "requests_per_hour": given.requests_per_hour,
            "seeds": given.seeds,
            "targets_met": met,
            "compared": compared,
            "rows": rows,
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
