"""What does the router save on the published measurements, as it decides today, and does it keep what it is asked to?

    OMP_NUM_THREADS=1 python -m tests.bench.replay_router --pith tests/bench/results/replay-pith-DATE.json \
        --json tests/bench/results/replay-router-DATE.json

The cases of `tests.bench.replay_pith`: for `router`, whose floor is one of requests' mean, and `router_strict`,
whose every directive keeps the floor by itself. Tasks are told from the text, or named by the caller. Beside each
stands what PITH saves there, which nobody names tasks for. What the file has already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from router.replay.recordings import RecordedSet
from router.replay.requests_file import read_requests
from tests.bench.machine import description
from tests.bench.replay_pith import CASES, measure, summary
from tests.router.replay.test_published_table import DATA, PUBLISHED, START_HOUR

POLICIES: Final = ("router", "router_strict")
MEASURED: Final = ("window", "task", "accuracy_98", "accuracy_95")

Run = tuple[str, bool, str, str, int]
"""Policy, whether tasks are named, case, zone, seed."""


def run_of(run: Run) -> dict[str, Any]:
    policy, named, case, zone, seed = run
    found = measure(_recorded(), case, zone, seed, 0, START_HOUR, policy, named)
    return {"policy": policy, "tasks_named": named, **found}


@cache
def _recorded() -> RecordedSet:
    return read_requests(DATA / "requests_dev.jsonl.gz")


def lines(rows: Sequence[dict[str, Any]], pith: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As `replay_pith.summary` has them, with what PITH saves of base, percent."""
    found = []
    for named in (False, True):
        for policy in POLICIES:
            own = [row for row in rows if (row["policy"], row["tasks_named"]) == (policy, named)]
            for line in summary(own, {}):
                beside = [one for one in pith if all(one[at] == line[at] for at in ("case", "zone", "load_seed"))]
                kept = {"saving_of_pith": beside[0]["saving"], "kept_by_pith": beside[0]["kept"]} if beside else {}
                line = {at: line[at] for at in line if at not in ("target", "stretch", "ceiling")}
                found.append({"policy": policy, "tasks_named": named, **line, **kept})
    return found


def show(console: Console, found: Sequence[dict[str, Any]]) -> None:
    table = Table(title="The router: net saving, and the least share that is kept, % of base")
    for column in ("policy", "tasks", "case", "zone", "saving", "PITH's", "kept", "of", "floor"):
        table.add_column(column, justify="right" if column in ("saving", "PITH's", "kept", "floor") else "left")
    for line in found:
        error = "" if line["kept_error"] is None else f" ± {line['kept_error']:.1f}"
        table.add_row(
            line["policy"],
            "named" if line["tasks_named"] else "told",
            line["case"],
            line["zone"],
            f"{line['saving']:.1f}",
            f"{line['saving_of_pith']:.1f}" if "saving_of_pith" in line else "",
            f"{line['kept']:.1f}{error}",
            line["kept_of"],
            f"{line['floor']:.1f}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED), help="cases to measure")
    parser.add_argument("--zones", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--tasks", nargs="+", choices=("told", "named"), default=["told", "named"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--pith", type=Path, metavar="FILE", help="results of replay_pith, to stand beside")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where figures are kept and resumed")
    given = parser.parse_args(arguments)
    if not DATA.exists():
        print(f"{DATA} is absent; set PITH_DATA_DIR to the data folder", file=sys.stderr)
        return 1
    rows: list[dict[str, Any]] = json.loads(given.json.read_text())["rows"] if given.json.exists() else []
    pith = json.loads(given.pith.read_text())["summary"] if given.pith else []
    done = {(row["policy"], row["tasks_named"], row["case"], row["zone"], row["seed"]) for row in rows}
    cases = [case for case in CASES if case in given.only]
    wanted = [
        run
        for seed in given.seeds
        for tasks in given.tasks
        for zone in given.zones
        for case in cases
        for policy in given.policies
        if (run := (policy, tasks == "named", case, zone, seed)) not in done
    ]
    told = " ".join(["python -m tests.bench.replay_router", *(sys.argv[1:] if arguments is None else arguments)])
    console = Console(width=130)

    def keep() -> None:
        rows.sort(
            key=lambda row: (
                row["tasks_named"],
                row["policy"],
                list(CASES).index(row["case"]),
                row["zone"],
                row["seed"],
            )
        )
        whole = {
            "command": told,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": description(),
            "summary": lines(rows, pith),
            "rows": rows,
        }
        given.json.write_text(json.dumps(whole, indent=1) + "\n")

    with ProcessPoolExecutor(given.processes) as pool, Progress(console=Console(stderr=True)) as progress:
        running = [pool.submit(run_of, run) for run in wanted]
        for ended in progress.track(as_completed(running), total=len(wanted), description="replaying"):
            rows.append(ended.result())
            keep()
    keep()
    show(console, lines(rows, pith))
    return 0


if __name__ == "__main__":
    sys.exit(main())
