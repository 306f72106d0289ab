"""The picture of a replay: the grid's intensity, what each policy served in it, and what that saved by then."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from router.cli.failures import ExitCode, LocalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from router.replay.outcome import Outcome
    from router.replay.recordings import Floats

_INK = "#22313a"
_SERVED = ("#c9d1d6", "#7fb7be", "#1b7f8c", "#d1603d", "#e3a587", "#8a8d3b")
_LINES = ("#1b7f8c", "#d1603d", "#6b5b95", "#8a8d3b", "#3b6ea8", "#b0486e", "#22313a")
_SMOOTH_HOURS = 6
"""Over which the mix is a mean: where hours have few requests, their shares flicker."""


def draw(path: Path, found: Mapping[str, Outcome], g_per_kwh: Floats, title: str) -> None:
    """Writes it whole or not at all. Raises LocalError where it cannot be written.

    Args:
        g_per_kwh: [hours].
    """
    panels = len(found)
    figure = Figure(figsize=(11, 4.6 + 1.15 * panels), layout="constrained")
    axes = figure.subplots(panels + 2, 1, sharex=True, height_ratios=[1.3, *[0.9] * panels, 2.2])
    days = np.arange(len(g_per_kwh)) / 24
    requests = sum(outcome.requests for outcome in found.values()) // panels
    heading = f"{title}: {requests:,} requests in {len(g_per_kwh):,} hours"
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, color=_INK, parse_math=False)
    axes[0].plot(days, g_per_kwh, color=_INK, linewidth=1)
    axes[0].set_ylabel("g/kWh")
    axes[0].set_ylim(bottom=0)
    names = list(dict.fromkeys(name for outcome in found.values() for name in outcome.directive_mix))
    for panel, (policy, outcome) in zip(axes[1:-1], found.items(), strict=True):
        _mix(panel, policy, outcome, days, names)
    _savings(axes[-1], found, days)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0)
    handles, labels = axes[1].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    for panel in axes[2:-1]:
        by_label |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    legend = figure.legend(
        by_label.values(), by_label.keys(), frameon=False, loc="outside upper right", ncols=len(by_label), fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=130)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise LocalError([f"{path} cannot be written: {error.strerror}"], exit_code=ExitCode.OTHER) from None


def _mix(axes: Axes, policy: str, outcome: Outcome, days: Floats, names: list[str]) -> None:
    counts = np.array([hour.actions for hour in outcome.hours], dtype=float)  # [hours, actions]
    window = np.ones(min(_SMOOTH_HOURS, len(counts)))
    smooth = np.stack([np.convolve(column, window, mode="same") for column in counts.T])
    shares = 100 * smooth / smooth.sum(axis=0)
    actions = list(outcome.directive_mix)
    colours = [_SERVED[names.index(action) % len(_SERVED)] for action in actions]
    axes.stackplot(days, shares, labels=actions, colors=colours, linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel(f"{policy}, %", parse_math=False)


def _savings(axes: Axes, found: Mapping[str, Outcome], days: Floats) -> None:
    ends = []
    for place, (policy, outcome) in enumerate(found.items()):
        base = np.cumsum([hour.base_grams for hour in outcome.hours])
        saved = 100 * (1 - np.cumsum([hour.grams for hour in outcome.hours]) / base)
        colour = _LINES[place % len(_LINES)]
        axes.plot(days, saved, color=colour, linewidth=1.6)
        ends.append((float(saved[-1]), policy, colour))
    low = min(0.0, min(end for end, _, _ in ends))
    axes.set_ylim(low - 5, 100)
    axes.set_ylabel("% of CO2e saved\nby then, in all")
    axes.set_xlabel("days")
    axes.grid(axis="y", color="#e6eaec")
    axes.set_axisbelow(True)
    # Names beside the lines' ends, pushed apart where they would lie on one another.
    height = low - 10.0
    for end, policy, colour in sorted(ends):
        height = max(end, height + 6.5)
        axes.annotate(
            f"{policy} {end:.1f} %",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            parse_math=False,
            annotation_clip=False,
        )
