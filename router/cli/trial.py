"""`pithctl directive trial`: what a directive would do, before it is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.change import set_given
from router.cli.command import Session, command
from router.cli.completion import complete_task
from router.cli.failures import ExitCode, LocalError
from router.cli.output import coloured, console, dim, print_document, printable, table
from router.cli.units import UNKNOWN, count, percent

if TYPE_CHECKING:
    from pith.common.v1.energy_pb2 import Interval
    from pith.evaluator.v1.evaluation_pb2 import TrialProgress, TrialResult

_COLOURS = {"adopt": "green", "more_samples": "yellow", "reject_quality": "red", "reject_saving": "red"}
_SHOWN_CHARACTERS = 600


def register(app: typer.Typer, fields: Mapping[str, Any]) -> None:
    """`fields` are the options of a directive; its text is the command's argument."""
    command(app, "trial", fields={name: option for name, option in fields.items() if name != "text"})(trial)


def trial(
    session: Session,
    given: dict[str, Any],
    task: Annotated[
        str,
        typer.Option("--task", metavar="TASK", help="On whose samples it is tried.", autocompletion=complete_task),
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model is told.")] = "",
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=200, metavar="COUNT", help="How many to draw at random.")
    ] = 30,
    floor: Annotated[
        float, typer.Option("--floor", metavar="SHARE", help="The share of L0's quality that should be kept.")
    ] = 0.95,
    asked_model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="Name, or name@digest.  [default: that with most samples of the task]"
        ),
    ] = "",
) -> None:
    """Tries a directive that need not exist on samples of a task, beside L0. Nothing is kept. Ctrl-C ends it."""
    from pith.evaluator.v1.evaluation_pb2 import TrialDirectiveRequest

    from router.cli.document import as_document

    request = TrialDirectiveRequest(task=task, model=asked_model, samples=samples, floor=floor)
    request.directive.text = text
    set_given(request.directive, given)
    with session.evaluator() as evaluator:
        progress = evaluator.stream(evaluator.evaluation.TrialDirective, request)
        result = _last(progress) if session.as_json else _show_progress(progress)
    if result is None:
        raise LocalError(["the evaluator ended the trial without a result"], exit_code=ExitCode.OTHER)
    if session.as_json:
        print_document(as_document(result))
        return
    _print(result)


def _last(steps: Iterable[TrialProgress]) -> TrialResult | None:
    result = None
    for step in steps:
        result = step.result if step.HasField("result") else None
    return result


def _show_progress(steps: Iterable[TrialProgress]) -> TrialResult | None:
    """A bar on a terminal; returns the result."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = console()
    columns = (TextColumn("trying", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    result = None
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        tried = bar.add_task("trying", total=None)
        for step in steps:
            result = step.result if step.HasField("result") else None
            bar.update(tried, completed=step.samples_done, total=step.samples_planned or None)
    return result


def _print(result: TrialResult) -> None:
    from router.cli.document import word

    out = console()
    left_out = f", {count(result.failed)} left out that could not be answered or graded" if result.failed else ""
    out.print(f"{count(result.samples)} samples answered by {printable(result.model)}{left_out}:")
    headings = ("", "L0", "DIRECTIVE", "SHARE", "INTERVAL", "CONFIDENCE")
    rows = [
        (
            "output tokens",
            f"{result.baseline_output_tokens:.1f}",
            f"{result.output_tokens:.1f}",
            *_interval(result, "token_share"),
        ),
        ("quality", f"{result.baseline_quality:.3f}", f"{result.quality:.3f}", *_interval(result, "quality_share")),
        ("energy", "", "", *_interval(result, "energy_share")),
    ]
    out.print(table(headings, rows, right=headings[1:]))
    out.print()
    recommendation = word(result, "recommendation")
    out.print(coloured(recommendation.replace("_", " "), _COLOURS.get(recommendation, "")), end=": ")
    out.print(printable(result.explanation), soft_wrap=True)
    for pair in result.pairs:
        out.print()
        out.print(dim(f"Sample {pair.sample_id}"))
        for who, quality, answer in (("L0", pair.baseline_quality, pair.baseline), ("it", pair.quality, pair.answer)):
            out.print(coloured(f"{who}, quality {quality:.3f}:", "bold"))
            out.print(_shortened(printable(answer)), soft_wrap=True)


def _interval(result: TrialResult, field: str) -> tuple[str, str, str]:
    if not result.HasField(field):  # type: ignore[arg-type]
        return UNKNOWN, "", ""
    interval: Interval = getattr(result, field)
    return (
        percent(interval.value),
        f"{percent(interval.lower)} - {percent(interval.upper)}",
        percent(interval.confidence),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({count(len(text))} characters)"
