"""What a demo's two days came to: as numbers, and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rich import box
from rich.table import Table

from common.quality.interval import Interval
from deploy.day import Outcome
from deploy.saving import paired_saving

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


@dataclass(frozen=True)
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

    @cached_property
    def carbon_saving(self) -> Interval:
        """Share of the baseline's carbon that was saved, the evaluator's own carbon of both days deducted."""
        return saving(self.baseline, self.pith, self.evaluations.carbon_grams or 0.0)


def of_task(outcomes: Iterable[Outcome], task: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.request.task == task]


def accuracy(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.quality for outcome in outcomes) / max(len(outcomes), 1)


def total_grams(outcomes: Iterable[Outcome]) -> float:
    return _known(outcome.carbon_grams for outcome in outcomes)


def saving(baseline: Iterable[Outcome], pith: Iterable[Outcome], spent_grams: float = 0.0) -> Interval:
    """Share of the baseline's carbon that was saved, of the same requests on both days, and how sure that is."""
    off, on = (_all_known(outcome.carbon_grams for outcome in outcomes) for outcomes in (baseline, pith))
    return paired_saving(off, on, spent_grams)


def percentages(found: Interval) -> str:
    """E.g. "50% (48 to 52)"."""
    return f"{found.value:.0%} ({100 * found.lower:.0f} to {100 * found.upper:.0f})"


def total_joules(outcomes: Iterable[Outcome]) -> float:
    return _known(outcome.energy_joules for outcome in outcomes)


def _known(values: Iterable[float | None]) -> float:
    return sum(_all_known(values))


def _all_known(values: Iterable[float | None]) -> list[float]:
    known: list[float] = []
    for value in values:
        if value is None:
            raise ValueError("a request's energy is unknown, so a sum over requests has no meaning")
        known.append(value)
    return known


def as_json(result: DemoResult) -> dict[str, Any]:
    """The content of report.json; grams and joules are of the whole day, accuracies are shares."""
    return {
        "baseline": _day(result.baseline, result.tasks),
        "pith": _day(result.pith, result.tasks),
        "carbon_saving": asdict(result.carbon_saving),
        "carbon_saving_without_evaluation": asdict(saving(result.baseline, result.pith)),
        "carbon_saving_by_task": {
            task: asdict(saving(of_task(result.baseline, task), of_task(result.pith, task))) for task in result.tasks
        },
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
        (spent, ("output tokens", "joules", "mg CO2e", "saved (95 % interval)")),
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
        f"{total_joules(off):,.0f} → {total_joules(on):,.0f}",
        f"{total_grams(off) * 1e3:,.2f} → {total_grams(on) * 1e3:,.2f}",
        percentages(saving(off, on)),
    )


def _mix_text(outcomes: Sequence[Outcome]) -> str:
    return " ".join(f"{level} {share:.0%}" for level, share in mix(outcomes).items() if share > 0)
