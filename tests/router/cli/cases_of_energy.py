"""Cases of the commands about energy, which run on files alone."""

import csv
import json
from pathlib import Path

from tests.common.energy.planted import SHARING, TRUTH, measured
from tests.router.cli.bench import Bench, case


def grid_file(folder: Path, *, name: str = "grid.csv", shared: bool = False) -> Path:
    """Measurements of a device that is known, after a first row of warm-up."""
    path = folder / name
    rows = measured(SHARING, batches=(1, 4, 16), noise=0.03) if shared else measured(TRUTH, noise=0.03)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input_tokens", "output_tokens", "gpu_energy_j", "batch"])
        writer.writerow([16, 16, 1e5, 1])
        writer.writerows([row.input_tokens, row.output_tokens, row.joules, row.batch] for row in rows)
    return path


def log_file(folder: Path) -> Path:
    """A hundred requests, named as in the Azure traces."""
    path = folder / "log.csv"
    rows = [f"2023-11-16 18:17:03,{100 + 40 * index},{5 + 8 * index}" for index in range(100)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows, ""]))
    return path


@case
def energy_fit(bench: Bench) -> None:
    grid = str(grid_file(bench.folder))
    models = bench.document("energy", "fit", grid)["models"]
    assert models["sweet_spot"]["leave_one_out_mape"] < 5 < models["nm"]["mape"] < models["linear"]["mape"]
    said = bench.text("energy", "fit", grid)
    assert "25 measurements" in said
    assert "The sweet spot m*" in said
    faulty = bench.file("input_tokens,output_tokens\n")
    assert f"{faulty}:1: has no column gpu_energy_j" in bench.run("energy", "fit", faulty, code=2).err


@case
def energy_sweet__spot(bench: Bench) -> None:
    grid, log, plot = grid_file(bench.folder), log_file(bench.folder), bench.folder / "drawn.png"
    asked = ("energy", "sweet-spot", str(log), "--model", str(grid), "--cap", "200")
    found = bench.document(*asked)
    assert (found["requests"], found["changes"][0]["shortened_answers"]) == (100, 75)
    assert "cap 200" in bench.text(*asked, "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    fitted = bench.folder / "fit.json"
    fitted.write_text(json.dumps(bench.document("energy", "fit", str(grid))))
    bench.run("energy", "sweet-spot", str(log), "--model", str(fitted))
    assert "--model" in bench.run("energy", "sweet-spot", str(log), code=2).err
