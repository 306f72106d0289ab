"""Do a judge's preferences rank models by quality, once freed of its liking for length?

    python -m tests.bench.preferences --json tests/bench/results/preferences-DATE.json

What `pithctl evaluate pairs` makes of AlpacaEval's recorded judgements (the dev half: pairs of one instruction's
answers by a model and by the reference model), beside the length-controlled win rates that its authors publish, for
each of their two judges. Which answer a judge was shown first is not recorded, so length alone is corrected.

"Spread" is how far the variants of one model lie apart that was told to be concise, told nothing, or told to be
verbose: standard deviation over mean of their preferences.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from typer.testing import CliRunner

from router.cli.main import app
from tests.bench.machine import description

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "alpaca_eval"
JUDGES = ("weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_gpt4")
ENDINGS = ("_concise", "_verbose")


def evaluated(judge: str) -> dict[str, Any]:
    """The command's own document."""
    with gzip.open(DATA / "preferences.json.gz") as file:
        recorded = json.load(file)["data"][judge]
    rows = [
        {
            "instruction": str(instruction),
            "generator_1": generator_1,
            "generator_2": generator_2,
            "chars_1": chars_1,
            "chars_2": chars_2,
            # 0 is how the record has a tie.
            "preference": preference or 1.5,
        }
        for generator_2, of_generator in recorded.items()
        for instruction, generator_1, chars_1, chars_2, preference in of_generator
        if preference is not None
    ]
    with tempfile.TemporaryDirectory() as folder:
        file_of_pairs = Path(folder) / "pairs.jsonl"
        file_of_pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        done = CliRunner().invoke(app, ["evaluate", "pairs", str(file_of_pairs), "--json"])
    assert done.exit_code == 0, done.output
    return {"pairs": len(rows), **json.loads(done.stdout)}


def length_controlled(judge: str) -> dict[str, float]:
    """Win rates in [0, 1]; those that were published."""
    with (DATA / f"{judge}_leaderboard.csv").open(encoding="utf-8") as lines:
        rates = {row[""]: row["length_controlled_winrate"] for row in csv.DictReader(lines)}
    return {name: float(rate) / 100 for name, rate in rates.items() if rate}


def measure(judge: str) -> dict[str, Any]:
    began = time.monotonic()
    document = evaluated(judge)
    seconds = time.monotonic() - began
    published = length_controlled(judge)
    generators = document["generators"]
    # The reference model is even with itself by definition.
    names = [name for name, one in generators.items() if name in published and one["against"] != name]

    def agreement(which: str) -> float:
        return float(spearmanr([generators[name][which] for name in names], [published[name] for name in names])[0])

    families = {
        name.removesuffix(ending) for name in generators for ending in ENDINGS if name.endswith(ending)
    } & generators.keys()
    spreads = {}
    for family in sorted(families):
        variants = [family, *(family + ending for ending in ENDINGS if family + ending in generators)]
        raw, corrected = ([generators[variant][which] for variant in variants] for which in ("raw", "corrected"))
        relative = [float(np.std(values) / np.mean(values)) for values in (raw, corrected)]
        spreads[family] = {"raw": relative[0], "corrected": relative[1], "ratio": relative[1] / relative[0]}
    return {
        "pairs": document["pairs"],
        "models": len(names),
        "seconds": round(seconds, 1),
        "length_slope": document["judge"]["length_slope"],
        "spearman": {which: agreement(which) for which in ("raw", "corrected")},
        "spread": spreads,
        "mean_spread_ratio": float(np.mean([one["ratio"] for one in spreads.values()])) if spreads else None,
        "generators": {
            name: {**generators[name], "length_controlled": published.get(name)} for name in sorted(generators)
        },
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not DATA.exists():
        sys.exit(f"{DATA} is not there: set PITH_DATA_DIR")
    report: dict[str, Any] = {
        "command": "python -m tests.bench.preferences " + " ".join(arguments),
        "machine": description(),
        "judges": {judge: measure(judge) for judge in JUDGES},
    }
    console = Console(width=120)
    for judge, one in report["judges"].items():
        shown = Table("model", "n", "raw", "corrected", "interval", "length-controlled", title=judge)
        for name, found in one["generators"].items():
            published = found["length_controlled"]
            shown.add_row(
                name,
                str(found["n"]),
                f"{100 * found['raw']:.1f}",
                f"{100 * found['corrected']:.1f}",
                " - ".join(f"{100 * bound:.1f}" for bound in found["interval"]),
                "" if published is None else f"{100 * published:.1f}",
            )
        console.print(shown)
        console.print(f"Spearman raw {one['spearman']['raw']:.3f}, corrected {one['spearman']['corrected']:.3f}")
        for family, spread in one["spread"].items():
            console.print(f"spread of {family}: raw {spread['raw']:.2f}, corrected {spread['corrected']:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
