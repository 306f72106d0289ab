"""`python -m tests.bench.energy_plot GRID.csv CALIBRATION.json PLOT.png`: output tokens a joule over input and output.

The grid and the calibration (`--json`) are what `python -m engine calibrate` has written. One field a batch size: the
cells as measured, and over them the sweet spot m*(n) of the fitted model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from common.energy.calibration import Calibration
from common.energy.grid import GridError, Measurement, read

mpl.use("Agg")


def efficiencies(measured: Sequence[Measurement], batch: float) -> tuple[list[float], list[float], np.ndarray]:
    """Input and output lengths, and the mean output tokens a joule of each pair, [outputs, inputs]; NaN: none."""
    mine = [one for one in measured if one.batch == batch]
    inputs = sorted({one.input_tokens or 0.0 for one in mine})
    outputs = sorted({one.output_tokens for one in mine})
    joules = np.zeros((len(outputs), len(inputs)))
    windows = np.zeros_like(joules)
    for one in mine:
        place = outputs.index(one.output_tokens), inputs.index(one.input_tokens or 0.0)
        joules[place] += one.joules
        windows[place] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return inputs, outputs, np.array(outputs)[:, None] * windows / joules


def draw(measured: Sequence[Measurement], calibration: Calibration, file: Path) -> list[str]:
    """Writes the plot; a line for each batch size on how far its cells are apart."""
    batches = sorted({one.batch for one in measured})
    figure, fields = plt.subplots(1, len(batches), figsize=(5 * len(batches), 4.4), squeeze=False)
    said = []
    for field, batch in zip(fields[0], batches, strict=True):
        inputs, outputs, tokens_per_joule = efficiencies(measured, batch)
        image = field.pcolormesh(inputs, outputs, tokens_per_joule, shading="nearest", cmap="viridis")
        lengths = np.geomspace(inputs[0], inputs[-1], 200)
        spots = [calibration.model.sweet_spot_tokens(length, batch) for length in lengths]
        shown = [outputs[0] <= spot <= outputs[-1] for spot in spots]
        field.plot(lengths, np.where(shown, spots, np.nan), color="crimson", linewidth=2, label="sweet spot m*(n)")
        field.set(
            xscale="log", yscale="log", title=f"batch {batch:g}", xlabel="input tokens n", ylabel="output tokens m"
        )
        for axis, values in ((field.xaxis, inputs), (field.yaxis, outputs)):
            axis.set_ticks(values, [f"{value:g}" for value in values])
            axis.set_ticks([], minor=True)
        if any(shown):
            field.legend(loc="lower right")
        figure.colorbar(image, ax=field, label="output tokens a joule")
        best, worst = np.nanmax(tokens_per_joule), np.nanmin(tokens_per_joule)
        said.append(f"batch {batch:g}: {worst:.4g} to {best:.4g} output tokens a joule, {best / worst:.1f} times")
    figure.suptitle(f"{calibration.device}, {calibration.source}")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    return said


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.energy_plot", description=__doc__)
    for name in ("grid", "calibration", "plot"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    try:
        calibration = Calibration.from_json(options.calibration.read_text(encoding="utf-8"))
        said = draw(read(options.grid), calibration, options.plot)
    except (OSError, GridError, ValueError) as fault:
        print(f"tests.bench.energy_plot: {fault}", file=sys.stderr)
        return 2
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
