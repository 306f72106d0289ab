"""`python -m tests.bench.energy_fit`: how well the energy model meets energies that others have measured."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from common.energy.bootstrap import Bootstrap
from common.energy.design import TERMS, design, solve, terms_in_play
from common.energy.fit import Fit, Form, fit
from common.energy.grid import Measurement, read
from common.quality.interval import Interval
from tests.bench import machine
from tests.common.energy.recorded import DEVICES, LEAST_ROWS, ML_ENERGY, MODEL_AND_GPU, TASKS, WILKINS, ml_energy

LEFT_OUT_LIMITS = {"Llama-2-7b": 7.0, "Mistral-7B": 7.0, "falcon-40b": 8.5}
LEAST_GAIN = 3.0
"""Over the linear model."""
GROUP_LIMIT = 4.0
"""Of the median over the groups of ML.ENERGY."""
INPUTS = (64, 512, 2048)


def lengths(seed: int) -> list[dict[str, Any]]:
    """Every grid over lengths, without its first row."""
    found = []
    for path in sorted(WILKINS.glob("*_grid.csv")):
        name = path.name.removesuffix("_a100_grid.csv")
        rows = read(path)
        fits = {form.value: fit(rows, form=form) for form in Form} | {"sweet_spot tied": fit(rows, tied=True)}
        own = fits["sweet_spot"]
        bootstrap = Bootstrap(own, np.random.default_rng(seed))
        gain = fits["linear"].leave_one_out_mape / own.leave_one_out_mape
        limit = LEFT_OUT_LIMITS.get(name)
        found.append(
            {
                "model": name,
                "measurements": len(rows),
                "models": {name: _errors(one) for name, one in fits.items()},
                "coefficients": {term: _interval(bootstrap.coefficient(term)) for term in own.coefficients},
                "sweet_spot_tokens": {n: _interval(bootstrap.sweet_spot_tokens(n)) for n in INPUTS},
                "linear_over_sweet_spot": gain,
                "limit": limit,
                "passed": gain >= LEAST_GAIN and (limit is None or own.leave_one_out_mape <= limit),
            }
        )
    return found


def batches() -> list[dict[str, Any]]:
    """Every way to group ML.ENERGY's runs. What is asked for is the median over all groups of (model, GPU)."""
    return [
        _groups(grouped_by, tasks, ml_energy(keys, tasks, apart=apart), apart=apart)
        for grouped_by, keys in (("model, GPU", MODEL_AND_GPU), ("model, GPU, parallelism", DEVICES))
        for tasks, apart in [*(((task,), True) for task in TASKS), (TASKS, True), (TASKS, False)]
    ]


def _groups(
    grouped_by: str, tasks: Sequence[str], groups: Mapping[Any, Sequence[Measurement]], *, apart: bool
) -> dict[str, Any]:
    fits = [fit(rows) for rows in groups.values()]
    mapes = [one.mape for one in fits]
    return {
        "grouped_by": grouped_by,
        "tasks": list(tasks),
        "tasks_apart": apart,
        "groups": len(fits),
        "measurements": sum(len(rows) for rows in groups.values()),
        "median_mape": statistics.median(mapes),
        "quartiles_of_mape": statistics.quantiles(mapes, n=4)[::2],
        "median_leave_one_out_mape": statistics.median(one.leave_one_out_mape for one in fits),
        "median_mape_without_root": statistics.median(map(_without_root, groups.values())),
        "median_mape_without_batch": statistics.median(_without_batch(rows).mape for rows in groups.values()),
    }


def _without_root(rows: Sequence[Measurement]) -> float:
    """Where energy falls with the batch, but not with its root."""
    terms = terms_in_play(rows, [term for term in TERMS if term != "output_root_joules"])
    matrix = design(rows, terms)
    return float(100 * np.mean(np.abs(matrix @ solve(matrix) - 1)))


def _without_batch(rows: Sequence[Measurement]) -> Fit:
    return fit([Measurement(row.input_tokens, row.output_tokens, row.joules) for row in rows])


def _errors(one: Fit) -> dict[str, float]:
    return {"mape": one.mape, "leave_one_out_mape": one.leave_one_out_mape}


def _interval(found: Interval) -> dict[str, Any]:
    ends = {"value": found.value, "lower": found.lower, "upper": found.upper}
    finite = {name: end if np.isfinite(end) else None for name, end in ends.items()}
    return {**finite, "confidence": found.confidence, "method": found.method}


def _print(result: Mapping[str, Any]) -> None:
    out = Console(width=110)
    table = Table("model", "model of energy", "error", "left out", title="energy_wilkins, % per output token")
    for grid in result["lengths"]:
        for name, errors in grid["models"].items():
            table.add_row(grid["model"], name, f"{errors['mape']:.1f}", f"{errors['leave_one_out_mape']:.1f}")
    table.box = box.SIMPLE_HEAD
    out.print(table)
    headings = ("grouped by", "tasks", "groups", "median error", "left out", "1/B alone", "no batch")
    table = Table(*headings, title="energy_mlenergy_v3, % per output token", box=box.SIMPLE_HEAD)
    for one in result["batches"]:
        tasks = one["tasks"][0] if len(one["tasks"]) == 1 else "all, apart" if one["tasks_apart"] else "all in one"
        names = ("median_mape", "median_leave_one_out_mape", "median_mape_without_root", "median_mape_without_batch")
        figures = [f"{one[name]:.1f}" for name in names]
        table.add_row(one["grouped_by"], tasks, str(one["groups"]), *figures)
    out.print(table)


def main(
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Writes the result.")] = None,
) -> None:
    """Fits every file of the data folder (PITH_DATA_DIR); exit code 1 where a target is missed."""
    for folder in (WILKINS, ML_ENERGY):
        if not folder.exists():
            sys.exit(f"{folder} is absent; set PITH_DATA_DIR to the data folder")
    description = machine.description()
    versions = description["versions"]
    grids, groups = lengths(seed), batches()
    asked = next(g for g in groups if g["grouped_by"] == "model, GPU" and len(g["tasks"]) == 3 and g["tasks_apart"])
    result = {
        "command": f"python -m tests.bench.energy_fit --seed {seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: versions[name] for name in ("python", "numpy")} | {"scipy": version("scipy")},
        "seed": seed,
        "unit": "percent of the energy per output token",
        "loss": "mean of ((estimate - measured) / measured)^2; sweet_spot with coefficients of at least 0",
        "least_rows_of_a_group": LEAST_ROWS,
        "passed": all(grid["passed"] for grid in grids) and asked["median_mape"] <= GROUP_LIMIT,
        "lengths": grids,
        "batches": groups,
    }
    _print(result)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    typer.run(main)
