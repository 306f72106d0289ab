"""The picture of a diagnosis: what every task and directive would save, and what share of the energy it is about."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from router.cli.failures import ExitCode, LocalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from router.diagnosis.diagnose import Diagnosis, Saving

_INK = "#22313a"
_GREY = "#c9d1d6"
_COLOURS = ("#1b7f8c", "#d1603d", "#6b5b95", "#8a8d3b")
_MOST_TASKS = 20


def draw(path: Path, found: Diagnosis, title: str) -> None:
    """Writes it whole or not at all. Raises LocalError where it cannot be written."""
    tasks = found.tasks[:_MOST_TASKS]
    rows: list[tuple[str, float, tuple[Saving, ...]]] = [
        (f"{task.task or '(no task)'}\n{task.output_tokens:,.0f} tokens", task.energy_share, task.savings)
        for task in tasks
    ]
    if len(found.tasks) > 1:
        rows.append(("all", 1.0, found.savings))
    figure = Figure(figsize=(10, 1.8 + 0.62 * len(rows)), layout="constrained")
    weight, saved = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.4))
    figure.suptitle(
        f"{title}: {found.requests:,} requests", x=0.01, ha="left", fontsize=13, color=_INK, parse_math=False
    )
    places = list(range(len(rows)))
    weight.barh(places, [100 * share for _, share, _ in rows], color=_GREY, height=0.6)
    weight.set_yticks(places, [name for name, _, _ in rows], parse_math=False)
    weight.set_xlabel("% of the log's energy")
    weight.invert_yaxis()
    names = [saving.directive for saving in found.savings]
    for number, name in enumerate(names):
        shift = 0.36 * (number - (len(names) - 1) / 2) / max(1, len(names) - 1)
        _mark(saved, [savings[number] for _, _, savings in rows], shift, name, _COLOURS[number % len(_COLOURS)])
    saved.axvline(0, color=_INK, linewidth=1)
    saved.set_xlabel("% of its energy that a directive saves, with 95 % intervals")
    saved.grid(axis="x", color="#e6eaec")
    saved.set_axisbelow(True)
    saved.set_xlim(right=100)
    for axes in (weight, saved):
        axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(frameon=False, loc="outside upper right", ncols=len(names), fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=130)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise LocalError([f"{path} cannot be written: {error.strerror}"], exit_code=ExitCode.OTHER) from None


def _mark(axes: Axes, savings: list[Saving], shift: float, name: str, colour: str) -> None:
    known = [(place + shift, saving.share) for place, saving in enumerate(savings) if saving.share]
    middles = [100 * share.value for _, share in known]
    sides = (
        [100 * max(0.0, share.value - share.lower) for _, share in known],
        [100 * max(0.0, share.upper - share.value) for _, share in known],
    )
    axes.errorbar(
        middles, [place for place, _ in known], xerr=sides, fmt="o", color=colour, capsize=3, markersize=5, label=name
    )
