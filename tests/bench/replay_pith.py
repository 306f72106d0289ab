"""What does PITH save on the published measurements, and does it keep what it is asked to?

    OMP_NUM_THREADS=1 python -m tests.bench.replay_pith --json tests/bench/results/replay-pith-DATE.json

SPROUT's dev half of recorded requests, window of 720 hours at hour 800, five zones, the evaluator's carbon charged,
task labels hidden, predictors folded by prompt. The cases:

- window: one floor over the window, at the preference that SPROUT was published with in that zone;
- window_few: the same at 600 requests an hour;
- task: that floor for every task by itself;
- accuracy_98, accuracy_95: every task with references keeps 98 % (95 %) of base accuracy, and the others, which have
  none, as much of base preference.

With --loads the case `window` is measured under other draws of the task mix as well. A run takes about a minute of a
core; what the file has already is not measured again, so that a measurement may be cut off and resumed. Of the shares
that are kept the least is what counts; its standard error is that of the recorded prompts being a sample.

Beside each mean stands the ceiling: what HINDSIGHT saves there, the best share of each task at each level, chosen with
every label and measurement of the whole window at hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from router.replay.demand import published_demand, read_load
from router.replay.outcome import Kept, Outcome
from router.replay.policies.interface import Scope
from router.replay.policies.named import POLICIES
from router.replay.recordings import Quality, RecordedSet
from router.replay.replay import Terms, replay
from router.replay.requests_file import read_requests
from router.replay.trace import read_trace
from tests.bench.machine import description
from tests.router.replay.test_published_table import DATA, HOURS, PUBLISHED, START_HOUR


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked. `floor` None is the zone's published one; `target` and `stretch` are net savings, percent."""

    quality: Quality
    scope: Scope
    floor: float | None
    requests_per_hour: float
    target: float
    stretch: float | None = None


CASES: Final = {
    "window": Case(Quality.PREFERENCE, Scope.WINDOW, None, 2500, 76),
    "task": Case(Quality.PREFERENCE, Scope.TASK, None, 2500, 56, 60),
    "accuracy_98": Case(Quality.ACCURACY, Scope.TASK, 0.98, 2500, 18, 25),
    "accuracy_95": Case(Quality.ACCURACY, Scope.TASK, 0.95, 2500, 28, 38),
    "window_few": Case(Quality.PREFERENCE, Scope.WINDOW, None, 600, 72),
}


def runs(seeds: Sequence[int], loads: Sequence[int]) -> Iterator[tuple[str, str, int, int]]:
    """(case, zone, seed, load seed), a seed after the other."""
    for seed in seeds:
        yield from ((case, zone, seed, 0) for case in CASES for zone in PUBLISHED)
    yield from (("window", zone, seed, load) for load in loads for seed in seeds for zone in PUBLISHED)


def measure(
    recorded: RecordedSet,
    case: str,
    zone: str,
    seed: int,
    load: int,
    start_hour: int,
    policy: str = "pith",
    labels: bool = False,
) -> dict[str, Any]:
    of = CASES[case]
    floor = PUBLISHED[zone]["sprout"][1] / 100 if of.floor is None else of.floor
    trace = read_trace(DATA / "carbon" / f"{zone}_2023_hourly.csv.gz")
    demand = published_demand(read_load(DATA / "pai.csv"), recorded.tasks, HOURS, of.requests_per_hour, load)
    terms = Terms(quality=of.quality, floor=floor, scope=of.scope, seed=seed, labels=labels)
    start = time.perf_counter()
    found = replay(recorded, trace, start_hour, demand, {policy: POLICIES[policy]}, terms)[policy]
    row = {"case": case, "zone": zone, "seed": seed, "load_seed": load, "start_hour": start_hour, "floor": floor}
    return {**row, "seconds": time.perf_counter() - start, **_figures(found, of)}


def _figures(found: Outcome, case: Case) -> dict[str, Any]:
    graded = found.accuracy if case.quality is Quality.ACCURACY else {}
    kept = {task: graded.get(task, of) for task, of in found.task_preference.items()}
    return {
        "requests": found.requests,
        "carbon_saving": found.carbon_saving,
        "carbon_saving_without_evaluator": found.carbon_saving_without_evaluator,
        "preference": found.preference,
        "kept": {task: _kept(of) for task, of in kept.items()},
        "accuracy": {task: of.share for task, of in found.accuracy.items()},
        "directive_mix": dict(found.directive_mix),
        "evaluator_runs": found.evaluator_runs,
        "evaluator_samples": found.evaluator_samples,
    }


def _kept(of: Kept) -> dict[str, float | None]:
    return {"share": of.share, "share_error": of.share_error}


Ceilings = dict[str, float]
"""Percent, by case, zone and load seed as `ceiling_of` has them."""


def ceiling_of(case: str, zone: str, load: int) -> str:
    return f"{case} {zone} {load}"


def summary(rows: Sequence[dict[str, Any]], ceilings: Ceilings) -> list[dict[str, Any]]:
    """Means over seeds, percent, by case, load and zone."""
    found = []
    for case, of in CASES.items():
        for load, zone in dict.fromkeys((row["load_seed"], row["zone"]) for row in rows if row["case"] == case):
            own = [row for row in rows if (row["case"], row["load_seed"], row["zone"]) == (case, load, zone)]
            line = {
                "case": case,
                "load_seed": load,
                "zone": zone,
                "seeds": len(own),
                "saving": _mean(own, "carbon_saving"),
                "saving_without_evaluator": _mean(own, "carbon_saving_without_evaluator"),
                "ceiling": ceilings.get(ceiling_of(case, zone, load)),
                "target": of.target,
                "stretch": of.stretch,
                "floor": 100 * own[0]["floor"],
            }
            if of.scope is Scope.WINDOW:
                line |= {"kept": _mean(own, "preference"), "kept_of": "window", "kept_error": None}
            else:
                shares = {
                    task: float(100 * np.mean([row["kept"][task]["share"] for row in own])) for task in own[0]["kept"]
                }
                least = min(shares, key=lambda task: shares[task])
                error = own[0]["kept"][least]["share_error"]
                line |= {
                    "kept": shares[least],
                    "kept_of": least,
                    "kept_error": None if error is None else 100 * error,
                    "kept_by_task": shares,
                }
            found.append(line)
    return found


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(100 * np.mean([row[name] for row in rows]))


def show(console: Console, lines: Sequence[dict[str, Any]]) -> None:
    table = Table(title="PITH: net saving, and the least share that is kept, % of base")
    for column in ("case", "load", "zone", "seeds", "saving", "ceiling", "target (stretch)", "kept", "of", "floor"):
        table.add_column(column, justify="left" if column in ("case", "zone", "of") else "right")
    for line in lines:
        stretch = "" if line["stretch"] is None else f" ({line['stretch']:g})"
        error = "" if line["kept_error"] is None else f" ± {line['kept_error']:.1f}"
        table.add_row(
            line["case"],
            str(line["load_seed"]),
            line["zone"],
            str(line["seeds"]),
            f"{line['saving']:.1f}",
            "" if line["ceiling"] is None else f"{line['ceiling']:.1f}",
            f"{line['target']:g}{stretch}",
            f"{line['kept']:.1f}{error}",
            line["kept_of"],
            f"{line['floor']:g}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--loads", type=int, nargs="*", default=[], help="load seeds beside 0 for the case window")
    parser.add_argument("--start-hour", type=int, default=START_HOUR)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where figures are kept and resumed")
    given = parser.parse_args(arguments)
    if not DATA.exists():
        print(f"{DATA} is absent; set PITH_DATA_DIR to the data folder", file=sys.stderr)
        return 1
    before = json.loads(given.json.read_text()) if given.json.exists() else {}
    rows: list[dict[str, Any]] = before.get("rows", [])
    ceilings: Ceilings = before.get("ceilings", {})
    done = {(row["case"], row["zone"], row["seed"], row["load_seed"]) for row in rows}
    wanted = [run for run in runs(given.seeds, given.loads) if run not in done and run[0] in given.only]
    recorded = read_requests(DATA / "requests_dev.jsonl.gz")
    console = Console(width=130)

    def keep() -> None:
        whole = {
            "command": " ".join(
                ["python -m tests.bench.replay_pith", *(sys.argv[1:] if arguments is None else arguments)]
            ),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": description(),
            "summary": summary(rows, ceilings),
            "ceilings": ceilings,
            "rows": rows,
        }
        given.json.write_text(json.dumps(whole, indent=1) + "\n")

    with Progress(console=Console(stderr=True)) as progress:
        for run in progress.track(wanted, description="replaying"):
            rows.append(measure(recorded, *run, given.start_hour))
            keep()
        of = dict.fromkeys((row["case"], row["zone"], row["load_seed"]) for row in rows)
        unknown = [one for one in of if ceiling_of(*one) not in ceilings]
        for case, zone, load in progress.track(unknown, description="ceilings"):
            found = measure(recorded, case, zone, 0, load, given.start_hour, "hindsight")
            ceilings[ceiling_of(case, zone, load)] = 100 * found["carbon_saving"]
            keep()
    show(console, summary(rows, ceilings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
