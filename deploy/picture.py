"""What a demo's two days came to, as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.day import Outcome
from deploy.report import LEVELS, DemoResult, accuracy, mix, of_task, percentages


def draw(result: DemoResult, path: Path) -> None:
    """The picture: carbon through the day, quality against its floor, and what was served."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    off_colour, on_colour, grid_colour = "#9aa5b1", "#2f7d4f", "#e0a43a"
    figure = plt.figure(figsize=(12, 8.2), layout="constrained")
    axes = figure.subplot_mosaic([["carbon", "carbon"], ["quality", "mix"]], height_ratios=[1.15, 1])

    carbon = axes["carbon"]
    hours = range(24)
    for outcomes, colour, offset, label in (
        (result.baseline, off_colour, -0.2, "directives off"),
        (result.pith, on_colour, 0.2, "policy on"),
    ):
        carbon.bar([h + 0.5 + offset for h in hours], _milligrams_by_hour(outcomes), 0.4, color=colour, label=label)
    carbon.set_xlim(0, 24)
    carbon.set_ylim(0, max(_milligrams_by_hour(result.baseline)) * 1.3)  # room for the legend
    carbon.set_xticks(range(0, 25, 2))
    carbon.set_xlabel("hour of the simulated day (UTC)")
    carbon.set_ylabel("mg CO2e an hour, served answers")
    grid = carbon.twinx()
    grid.step([*hours, 24], [*result.intensity, result.intensity[-1]], where="post", color=grid_colour, lw=2)
    grid.set_ylim(0, max(result.intensity) * 1.6)
    grid.set_ylabel(f"grid intensity, g CO2e/kWh ({result.zone})", color=grid_colour)
    carbon.legend(loc="upper left", frameon=False, ncols=2)

    quality = axes["quality"]
    rows = range(len(result.tasks))
    for outcomes, colour, offset in ((result.baseline, off_colour, -0.2), (result.pith, on_colour, 0.2)):
        heights = [100 * accuracy(of_task(outcomes, task)) for task in result.tasks]
        bars = quality.bar([row + offset for row in rows], heights, 0.4, color=colour)
        quality.bar_label(bars, fmt="%.1f", fontsize=8)
    for row, task in enumerate(result.tasks):
        least = 100 * result.floors[task] * accuracy(of_task(result.baseline, task))
        quality.hlines(least, row - 0.45, row + 0.45, color="#b23b3b", lw=2)
    quality.plot([], [], color="#b23b3b", lw=2, label="least that the policy allows")
    quality.set_xticks(list(rows), result.tasks)
    quality.set_ylim(0, 118)
    quality.set_ylabel("right answers, %")
    quality.set_title("Quality kept", loc="left", fontsize=11)
    quality.legend(loc="upper right", frameon=False, fontsize=9)

    served = axes["mix"]
    left = [0.0] * len(result.tasks)
    shades = {"L0": "#c9d1d9", "L1": "#7fb891", "L2": "#2f7d4f"}
    names = {"L0": "no directive", "L1": "briefly", "L2": "very briefly"}
    for level in LEVELS:
        shares = [100 * mix(of_task(result.pith, task)).get(level, 0.0) for task in result.tasks]
        served.barh(list(rows), shares, left=left, color=shades[level], label=f"{level}: {names[level]}")
        left = [a + b for a, b in zip(left, shares, strict=True)]
    served.set_yticks(list(rows), result.tasks)
    served.invert_yaxis()
    served.set_xlim(0, 100)
    served.set_xlabel("share of requests with the policy on, %")
    served.set_title("What was served", loc="left", fontsize=11, pad=28)
    served.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)

    for frame in (carbon, grid, quality, served):
        frame.spines[["top"]].set_visible(False)
    for frame in (quality, served):
        frame.spines[["right"]].set_visible(False)
    figure.suptitle(
        f"{percentages(result.carbon_saving)} less carbon for the same day of {len(result.pith):,} requests, "
        f"every task above its quality floor"
        if not result.below_floor()
        else f"Below its floor: {', '.join(result.below_floor())}",
        fontsize=15,
        fontweight="bold",
    )
    figure.supxlabel(
        "Demonstration: a tiny model on generated tasks, modelled energy, a stylised grid. "
        "In brackets: 95 % interval, bootstrap over requests. The evaluator's own carbon is deducted.",
        fontsize=9,
        color="#555",
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _milligrams_by_hour(outcomes: Iterable[Outcome]) -> list[float]:
    hours = [0.0] * 24
    for outcome in outcomes:
        hours[int(outcome.request.second // 3600)] += (outcome.carbon_grams or 0.0) * 1e3
    return hours
