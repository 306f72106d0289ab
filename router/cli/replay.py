"""`pithctl replay`: recorded requests under other policies, hour by hour. Runs here; no router is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.command import Session, command
from router.cli.energy_model import needs_analysis
from router.cli.failures import LocalError
from router.cli.output import console, print_document
from router.cli.replay_result import document, print_result

if TYPE_CHECKING:
    from router.replay.trace import Trace

MOST_HOURS = 366 * 24
MOST_REQUESTS_PER_HOUR = 1e6

NOTES = (
    "Every request is a draw from the recorded prompts, which recur.",
    "Energies are as they were recorded, whatever the load; carbon counts a PUE of 1 and a GPU's embodied carbon, as "
    "the published evaluation does.",
)


class QualityChoice(StrEnum):
    """What a floor is a share of."""

    PREFERENCE = "preference"
    ACCURACY = "accuracy"


class ScopeChoice(StrEnum):
    """What a floor holds for."""

    WINDOW = "window"
    TASK = "task"


def register(app: typer.Typer) -> None:
    command(app, "replay")(replay)


def replay(
    session: Session,
    requests: Annotated[
        Path,
        typer.Option(
            "--requests",
            metavar="FILE",
            help="Requests answered at several levels, .jsonl (.gz): task, prompt, judge_choice, reference, variants "
            "{L0: {energy_joules, seconds, answer}, ...}; or rows of the ledger, .csv or .jsonl (.gz).",
        ),
    ],
    carbon: Annotated[
        Path, typer.Option("--carbon", metavar="FILE", help="Hourly intensity, .csv (.gz): datetime..., gCO2eq/kWh.")
    ],
    policies: Annotated[
        str, typer.Option("--policy", metavar="NAME[,NAME...]", help="What to compare; all are named by a wrong name.")
    ],
    load: Annotated[
        Path | None,
        typer.Option(
            "--load",
            metavar="FILE",
            help="Hourly counts, .csv (.gz): job_name. Shape of the load, and mix of the tasks.  [default: the same "
            "every hour, in the mix of the recorded requests]",
        ),
    ] = None,
    requests_per_hour: Annotated[
        float, typer.Option("--requests-per-hour", min=1, max=MOST_REQUESTS_PER_HOUR, metavar="NUMBER", help="Mean.")
    ] = 2500.0,
    load_seed: Annotated[
        int,
        typer.Option("--load-seed", min=0, max=2**32 - 1, metavar="NUMBER", help="Of the tasks' place in the load."),
    ] = 0,
    start_hour: Annotated[
        int, typer.Option("--start-hour", min=0, metavar="HOUR", help="Of the carbon file, from 0.")
    ] = 0,
    hours: Annotated[
        int, typer.Option("--hours", min=1, max=MOST_HOURS, metavar="NUMBER", help="Of the window.")
    ] = 720,
    quality: Annotated[
        QualityChoice, typer.Option("--quality", help="What the floor is a share of.")
    ] = QualityChoice.PREFERENCE,
    floor: Annotated[
        float, typer.Option("--floor", min=0, max=1, metavar="SHARE", help="Of L0's quality, that must be kept.")
    ] = 0.95,
    floor_scope: Annotated[
        ScopeChoice, typer.Option("--floor-scope", help="Over the whole window, or over it for every task.")
    ] = ScopeChoice.WINDOW,
    xi: Annotated[
        float,
        typer.Option(
            "--xi", min=0, max=1, metavar="SHARE", help="Of preference, that static, sprout and oracle may lose."
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, metavar="NUMBER", help="Of all draws.")] = 0,
    labels: Annotated[bool, typer.Option("--labels", help="Show requests' tasks to pith and the router too.")] = False,
    carbon_column: Annotated[
        str | None, typer.Option("--carbon-column", metavar="NAME", help="[default: the one that ends in (direct)]")
    ] = None,
    carbon_year: Annotated[
        Path | None,
        typer.Option(
            "--carbon-year",
            metavar="FILE",
            help="{zone: {min, max, mean}} of the year, .json, for static, sprout and oracle.  [default: year_*.json "
            "beside the carbon file, else the carbon file's own]",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """Replays recorded requests under policies.

    Hour by hour; carbon and quality are those of the answers on record. base serves L0, co2_opt what emits least;
    static, sprout and oracle are as published (SPROUT, EMNLP 2024); hindsight knows everything beforehand, which no
    policy can. pith is Pith's research policy; router is what the live router decides under a policy whose quality
    budget holds the floor, router_strict where every directive keeps it by itself. These three know the past alone.
    """
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter("must end in .png, .svg or .pdf", param_hint="--plot")
    names = list(dict.fromkeys(name.strip() for name in policies.split(",")))
    with needs_analysis():
        from router.diagnosis.lines import LogError
        from router.replay.demand import constant_demand, published_demand, read_load
        from router.replay.policies.interface import Scope
        from router.replay.policies.named import POLICIES, check_known
        from router.replay.recordings import Quality
        from router.replay.replay import Terms
        from router.replay.replay import replay as run
        from router.replay.requests_file import read_requests
        from router.replay.trace import read_trace

        if unknown := [name for name in names if name not in POLICIES]:
            raise typer.BadParameter(f"{unknown[0]!r} must be one of {', '.join(POLICIES)}", param_hint="--policy")
        if plot is not None:
            import matplotlib.figure  # noqa: F401  (its absence is told before minutes of work, not after)
        try:
            counts = None if load is None else read_load(load)
            trace = read_trace(carbon, carbon_column, carbon_year)
            recorded = read_requests(requests)
            if start_hour + hours > len(trace):
                raise LocalError(
                    [f"--hours: {carbon} has {len(trace):,} hours, too few for {hours:,} from hour {start_hour:,} on"]
                )
            demand = (
                constant_demand(recorded, hours, requests_per_hour)
                if counts is None
                else published_demand(counts, recorded.tasks, hours, requests_per_hour, load_seed)
            )
            for name in names:
                check_known(name, recorded, Quality(quality))
            terms = Terms(Quality(quality), floor, Scope(floor_scope), xi, seed, labels)
            with _progress(len(names) * hours) as progress:
                chosen = {name: POLICIES[name] for name in names}
                found = run(recorded, trace, start_hour, demand, chosen, terms, progress=progress)
        except LogError as error:
            raise LocalError(error.faults) from None
        except ValueError as error:
            raise LocalError([str(error)]) from None
        if plot is not None:
            from router.cli.replay_plot import draw

            draw(plot, found, trace.g_per_kwh[start_hour : start_hour + hours], f"{carbon.name}, hour {start_hour:,}")
    notes = [*recorded.notes, *_year_note(trace, names), *NOTES]
    if session.as_json:
        setting = {
            "requests_file": str(requests),
            "prompts": len(recorded),
            "tasks": list(recorded.tasks),
            "carbon_file": str(carbon),
            "carbon_column": trace.column,
            "load_file": None if load is None else str(load),
            "load_seed": load_seed,
            "start_hour": start_hour,
            "hours": hours,
            "requests": int(demand.requests.sum()),
            "quality": quality.value,
            "floor": floor,
            "floor_scope": floor_scope.value,
            "xi": xi,
            "seed": seed,
            "labels": labels,
        }
        policies_found = {name: document(outcome) for name, outcome in found.items()}
        ending = {"notes": notes, "plot": None if plot is None else str(plot)}
        print_document({**setting, "policies": policies_found, **ending})
    else:
        print_result(requests, recorded, found, notes, plot)


@contextmanager
def _progress(hours: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on stderr, where that is a terminal, over the hours of all policies."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out = console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=hours)

        def advance(name: str, done: int) -> None:
            bar.update(task, description=name, advance=1)

        yield advance


def _year_note(trace: Trace, names: Sequence[str]) -> list[str]:
    from router.replay.policies.named import PUBLISHED

    year, knowing = trace.year, [name for name in names if name in PUBLISHED]
    told = f"the year's {year.least:g} to {year.most:g} g/kWh beforehand, by {year.source}."
    return [f"{', '.join(knowing)}: what is known includes {told}"] if knowing else []
