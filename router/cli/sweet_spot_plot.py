"""A workload over the energy of its lengths, drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from scipy.ndimage import gaussian_filter

from common.energy.workload import Workload
from router.cli.energy_model import EnergyModel
from router.cli.failures import ExitCode, LocalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _CURVE, _CAP, _LIMIT = "#222222", "#d1495b", "#e8871e", "#9a8fa5"
_HALO = [withStroke(linewidth=3.2, foreground="#ffffffb0")]
"""By which a line is seen on dark and on light."""
_CELLS = 160
_ENCLOSED = (0.9, 0.5)
"""Of the requests, by the outlines of their density."""


def draw(path: Path, workload: Workload, source: EnergyModel, title: str, caps: Sequence[int]) -> None:
    """Two panels: tokens a joule over both lengths with m* and where the requests are, and a cut at the median input.

    Raises LocalError where no request has both input and output, and where the file cannot be written.
    """
    if not np.any((workload.input_tokens > 0) & (workload.output_tokens > 0)):
        raise LocalError([f"{title}: no request has both input and output tokens: there is nothing to draw"])
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    over, cut = figure.subplots(1, 2, width_ratios=(1.15, 1))
    heading = {"x": 0.01, "ha": "left", "fontsize": 13, "color": _INK, "parse_math": False}
    figure.suptitle(f"{title}: {len(workload):,} requests", **heading)
    _draw_map(figure, over, workload, source, caps)
    _draw_cut(cut, workload, source, caps)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=130)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise LocalError([f"{path} cannot be written: {error.strerror}"], exit_code=ExitCode.OTHER) from None


def _draw_map(figure: Figure, axes: Axes, workload: Workload, source: EnergyModel, caps: Sequence[int]) -> None:
    shown = (workload.input_tokens > 0) & (workload.output_tokens > 0)
    n, m = workload.input_tokens[shown], workload.output_tokens[shown]
    inputs, outputs = _axis(n), _axis(m)
    grid = np.meshgrid(inputs, outputs)
    cells = Workload(grid[0].ravel(), grid[1].ravel(), workload.batch)
    efficiency = (cells.output_tokens / cells.request_joules(source.model)).reshape(grid[0].shape)
    # The colours are for where the requests are: the far corner would take half of them for itself.
    here = Workload(n, m, workload.batch)
    least = min(np.quantile(here.output_tokens / here.request_joules(source.model), 0.05), np.median(efficiency))
    levels = np.geomspace(least, efficiency.max() * 1.0001, 15)
    filled = axes.contourf(*grid, efficiency, levels=levels, cmap="YlGnBu_r", norm=LogNorm(), extend="min")
    ticks = FuncFormatter(lambda tokens, _: f"{float(f'{tokens:.2g}'):,.10g}")
    figure.colorbar(filled, ax=axes, label="output tokens a joule", pad=0.02, format=ticks, ticks=levels[::2])
    best = Workload(inputs, inputs, workload.batch).sweet_spot_tokens(source.model)
    if np.isfinite(best).all():
        if source.bootstrap is not None:
            places = np.append(inputs[::8], inputs[-1])
            sure = [source.bootstrap.sweet_spot_tokens(float(x), workload.batch) for x in places]
            # An end may be infinite, or 0, which a logarithmic axis has no place for.
            lower = np.clip([found.lower for found in sure], outputs[0], outputs[-1])
            upper = np.clip([found.upper for found in sure], outputs[0], outputs[-1])
            axes.fill_between(places, lower, upper, color=_CURVE, alpha=0.25, linewidth=0)
        axes.plot(inputs, best, color=_CURVE, linewidth=2.5)
    _outline(axes, n, m, inputs, outputs)
    for cap in caps:
        axes.axhline(cap, color=_CAP, linewidth=1.5, linestyle="--")
    _logarithmic(axes, "x", inputs)
    _logarithmic(axes, "y", outputs)
    axes.set_xlabel("input tokens n")
    axes.set_ylabel("output tokens m")
    _mark_measured(axes, source)
    handles = [
        Line2D([], [], color=_CURVE, linewidth=2.5, label="sweet spot m*(n)"),
        Line2D([], [], color=_INK, linewidth=1.6, label="half and 90 % of the requests"),
        Line2D([], [], color=_LIMIT, linewidth=1.6, linestyle=":", label="end of what was measured"),
    ]
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower left", ncols=3)


def _mark_measured(axes: Axes, source: EnergyModel) -> None:
    if source.longest_input is not None:
        axes.axvline(source.longest_input, color=_LIMIT, linewidth=1.6, linestyle=":")
    if source.longest_output is not None:
        axes.axhline(source.longest_output, color=_LIMIT, linewidth=1.6, linestyle=":")


def _outline(axes: Axes, n: Any, m: Any, inputs: Any, outputs: Any) -> None:
    """Lines around the densest part of the requests."""
    density, *_ = np.histogram2d(np.log(m), np.log(n), bins=(_edges(outputs), _edges(inputs)))
    density = gaussian_filter(density, 4.0, mode="constant")
    ordered = np.sort(density.ravel())[::-1]
    enclosed = np.cumsum(ordered) / ordered.sum()
    levels = sorted({float(ordered[np.searchsorted(enclosed, share)]) for share in _ENCLOSED})
    axes.contour(inputs, outputs, density, levels=levels, colors=_INK, linewidths=1.6, path_effects=_HALO)


def _draw_cut(axes: Axes, workload: Workload, source: EnergyModel, caps: Sequence[int]) -> None:
    outputs = _axis(workload.output_tokens[workload.output_tokens > 0])
    n = float(np.median(workload.input_tokens))
    line = Workload(np.full(len(outputs), n), outputs, workload.batch)
    each = line.request_joules(source.model) / outputs
    behind = axes.twinx()
    behind.hist(workload.output_tokens, bins=outputs[::4].tolist(), color="#c9d1d6")
    behind.set_yticks([])
    behind.set_ylim(0, behind.get_ylim()[1] * 1.6)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(outputs, each, color=_INK, linewidth=2, label=f"a token after {n:,.0f} input tokens, the median")
    best = source.model.sweet_spot_tokens(n, workload.batch)
    if outputs[0] <= best <= outputs[-1]:
        axes.plot([best], [source.model.joules_per_output_token(n, best, workload.batch)], "o", color=_CURVE, ms=9)
        axes.axvline(best, color=_CURVE, linewidth=1.5, label=f"sweet spot, {best:,.0f} tokens")
    for cap in caps:
        axes.axvline(cap, color=_CAP, linewidth=1.5, linestyle="--", label=f"cap, {cap:,} tokens")
    # Room for the legend above the curve; at the shortest answers it may rise beyond all bounds.
    axes.set_ylim(0, float(np.quantile(each, 0.9)) * 1.5)
    _logarithmic(axes, "x", outputs)
    axes.set_xlabel("output tokens m (grey: the answers)")
    axes.set_ylabel("joules an output token")
    axes.legend(loc="upper left", framealpha=1, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    behind.spines[["top", "right"]].set_visible(False)


def _axis(tokens: Any) -> Any:
    """Lengths from below the least to above the largest, evenly by their logarithm."""
    return np.geomspace(tokens.min() / 1.5, tokens.max() * 1.5, _CELLS)


def _edges(middles: Any) -> Any:
    logs = np.log(middles)
    half = (logs[1] - logs[0]) / 2
    return np.concatenate([logs - half, [logs[-1] + half]])


def _logarithmic(axes: Axes, which: str, span: Any) -> None:
    getattr(axes, f"set_{which}scale")("log", base=2)
    getattr(axes, f"set_{which}lim")(span[0], span[-1])
    getattr(axes, f"{which}axis").set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
