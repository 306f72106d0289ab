"""What a demo's two days came to: as numbers, as a table, and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from deploy.day import Outcome

LEVELS = ("L0", "L1", "L2")


@dataclass(frozen=True, slots=True)
class Bound:
    """A directive's bound at the end of the day, as the router holds it."""

    task: str
    directive: str
    lower: float
    upper: float
    share: float | None
    samples: int
    open: bool


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What the evaluator did and spent; grams are None where unknown."""

    runs: int
    samples: int
    carbon_grams: float | None
    energy_joules: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """A directive opened or closed, at an hour of day 1 or 2."""

    day: int
    hour: float
    task: str
    directive: str
    opens: bool
    line: str


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Both days."""

    baseline: Sequence[Outcome]
    pith: Sequence[Outcome]
    floors: Mapping[str, float]
    bounds: Sequence[Bound]
    evaluations: Evaluations
    intensity: Sequence[float]
    """g/kWh by hour since the day's start."""
    zone: str
    events: Sequence[Event]
    counterfactual: Mapping[str, Any] | None

    @property
    def tasks(self) -> list[str]:
        return list(self.floors)

    def kept_share(self, task: str) -> float:
        """Accuracy with the policy on, as a share of accuracy with directives off, on the same prompts."""
        return accuracy(of_task(self.pith, task)) / max(accuracy(of_task(self.baseline, task)), 1e-9)

    def below_floor(self) -> list[str]:
        return [task for task, floor in self.floors.items() if self.kept_share(task) < floor]

    @property
    def carbon_saving(self) -> float:
        """Share of the baseline's carbon that was saved, the evaluator's own carbon of both days deducted."""
        spent = total_grams(self.pith) + (self.evaluations.carbon_grams or 0.0)
        return 1.0 - spent / total_grams(self.baseline)


def of_task(outcomes: Iterable[Outcome], task: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.request.task == task]


def accuracy(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.quality for outcome in outcomes) / max(len(outcomes), 1)


def total_grams(outcomes: Iterable[Outcome]) -> float:
    return _known(outcome.carbon_grams for outcome in outcomes)


def total_joules(outcomes: Iterable[Outcome]) -> float:
    return _known(outcome.energy_joules for outcome in outcomes)


def _known(values: Iterable[float | None]) -> float:
    total = 0.0
    for value in values:
        if value is None:
            raise ValueError("a request's energy is unknown, so a sum over requests has no meaning")
        total += value
    return total


def as_json(result: DemoResult) -> dict[str, Any]:
    """The content of report.json; grams and joules are of the whole day, accuracies are shares."""
    return {
        "baseline": _day(result.baseline, result.tasks),
        "pith": _day(result.pith, result.tasks),
        "carbon_saving": result.carbon_saving,
        "carbon_saving_without_evaluation": 1.0 - total_grams(result.pith) / total_grams(result.baseline),
        "energy_source": "MODELLED",
        "zone": result.zone,
        "intensity_g_per_kwh_by_hour": list(result.intensity),
        "floors": dict(result.floors),
        "kept_share": {task: result.kept_share(task) for task in result.tasks},
        "bounds": [
            {
                "task": bound.task,
                "directive": bound.directive,
                "lower": bound.lower,
                "upper": bound.upper,
                "share": bound.share,
                "samples": bound.samples,
                "open": bound.open,
            }
            for bound in result.bounds
        ],
        "directive_mix": {task: mix(of_task(result.pith, task)) for task in result.tasks},
        "evaluations": result.evaluations.runs,
        "evaluation_samples": result.evaluations.samples,
        "evaluation_carbon_grams": result.evaluations.carbon_grams,
        "evaluation_energy_joules": result.evaluations.energy_joules,
        "counterfactual": result.counterfactual,
        "events": [{"day": event.day, "hour": event.hour, "event": event.line} for event in result.events],
        "below_floor": result.below_floor(),
    }


def mix(outcomes: Sequence[Outcome]) -> dict[str, float]:
    counts = Counter(outcome.directive for outcome in outcomes)
    return {level: counts[level] / max(len(outcomes), 1) for level in sorted({*LEVELS, *counts})}


def _day(outcomes: Sequence[Outcome], tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "requests": len(outcomes),
        "output_tokens": sum(outcome.output_tokens for outcome in outcomes),
        "energy_joules": total_joules(outcomes),
        "carbon_grams": total_grams(outcomes),
        "accuracy": accuracy(outcomes),
        "per_task": {
            task: {
                "requests": len(of_task(outcomes, task)),
                "output_tokens": sum(outcome.output_tokens for outcome in of_task(outcomes, task)),
                "energy_joules": total_joules(of_task(outcomes, task)),
                "carbon_grams": total_grams(of_task(outcomes, task)),
                "accuracy": accuracy(of_task(outcomes, task)),
            }
            for task in tasks
        },
    }


def as_tables(result: DemoResult) -> list[Table]:
    """Off against on, by task and in total: what was spent, and what was kept. Each fits 80 columns."""
    spent = Table(title="What was spent, directives off → policy on", title_justify="left", box=box.SIMPLE_HEAD)
    kept = Table(title="What was kept", title_justify="left", box=box.SIMPLE_HEAD)
    for table, headings in (
        (spent, ("output tokens", "joules", "mg CO2e", "CO2e saved")),
        (kept, ("right answers", "kept", "floor", "open, bound", "served")),
    ):
        table.add_column("task")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
    for task in result.tasks:
        off, on = of_task(result.baseline, task), of_task(result.pith, task)
        spent.add_row(task, *_spent(off, on))
        share = result.kept_share(task)
        # The one that was served most; the JSON has them all.
        served = mix(on)
        opened = [bound for bound in result.bounds if bound.task == task and bound.open]
        best = max(opened, key=lambda bound: served.get(bound.directive, 0.0), default=None)
        kept.add_row(
            task,
            f"{accuracy(off):.1%} → {accuracy(on):.1%}",
            f"[{'red' if share < result.floors[task] else 'green'}]{share:.1%}[/]",
            f"{result.floors[task]:.0%}",
            f"{best.directive} ≥ {best.lower:.3f}" if best else "none",
            _mix_text(on),
        )
    spent.add_section()
    spent.add_row("all", *_spent(result.baseline, result.pith))
    kept.add_section()
    total = f"{accuracy(result.baseline):.1%} → {accuracy(result.pith):.1%}"
    kept.add_row("all", total, "", "", "", _mix_text(result.pith))
    return [spent, kept]


def _spent(off: Sequence[Outcome], on: Sequence[Outcome]) -> tuple[str, ...]:
    def tokens(outcomes: Sequence[Outcome]) -> int:
        return sum(outcome.output_tokens for outcome in outcomes)

    return (
        f"{tokens(off):,} → {tokens(on):,}",
        f"{total_joules(off):.1f} → {total_joules(on):.1f}",
        f"{total_grams(off) * 1e3:.3f} → {total_grams(on) * 1e3:.3f}",
        f"{1 - total_grams(on) / total_grams(off):.1%}",
    )


def _mix_text(outcomes: Sequence[Outcome]) -> str:
    return " ".join(f"{level} {share:.0%}" for level, share in mix(outcomes).items() if share > 0)


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
        f"{result.carbon_saving:.0%} less carbon for the same day of {len(result.pith):,} requests, "
        f"every task above its quality floor"
        if not result.below_floor()
        else f"Below its floor: {', '.join(result.below_floor())}",
        fontsize=15,
        fontweight="bold",
    )
    figure.supxlabel(
        "Demonstration: a tiny model on generated tasks, modelled energy, a stylised grid. "
        "The evaluator's own carbon is deducted from the saving.",
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
