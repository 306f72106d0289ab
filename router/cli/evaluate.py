"""`pithctl evaluate`: judging now."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import pairs
from router.cli.command import Session, command, group_with_default
from router.cli.completion import complete_task
from router.cli.failures import CallError
from router.cli.findings import print_why_unjudged
from router.cli.output import console, dim, print_line, printable
from router.cli.units import count, grams, joules

if TYPE_CHECKING:
    from pith.evaluator.v1.evaluation_pb2 import EvaluationProgress

app = typer.Typer(cls=group_with_default("run"), help="Judges now, or weighs a judge's pairs.")


@app.callback()
def _evaluate() -> None:
    """Judges now, or weighs a judge's pairs. Without a command: run."""


@command(app, "run")
def run(
    session: Session,
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="Default: every task.", autocompletion=complete_task)
    ] = "",
) -> None:
    """Has the evaluator judge now. Whatever the grid says; Ctrl-C leaves it running."""
    from pith.evaluator.v1.evaluation_pb2 import RunEvaluationRequest

    from router.cli.document import as_document, value

    with session.evaluator() as evaluator:
        progress = evaluator.stream(evaluator.evaluation.RunEvaluation, RunEvaluationRequest(task=task))
        if session.as_json:
            for step in progress:
                print_line(as_document(step))
            return
        try:
            last = _show_progress(progress)
        except (KeyboardInterrupt, CallError) as error:
            if isinstance(error, KeyboardInterrupt) or error.error.code.name == "DEADLINE_EXCEEDED":
                message = "The evaluation goes on: evaluate shows its progress again, quality what it found."
                print(message, file=sys.stderr)
            raise
    if last is None:
        console().print("There was nothing to judge.")
        return
    if not last.samples_done:
        console().print(f"No sample{f' of task {printable(task)}' if task else ''} was judged.")
        console().print(dim("None that waits can be, or would decide anything; further requests bring more."))
        print_why_unjudged(session)
        return
    energy = joules(value(last, "energy_joules"))
    carbon = grams(value(last, "carbon_grams"))
    console().print(f"{count(last.samples_done)} samples judged; answers for it took {energy}, {carbon} CO2e.")


def _show_progress(steps: Iterable[EvaluationProgress]) -> EvaluationProgress | None:
    """A bar on a terminal, and a line for each thing that happened; returns the last step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = console()
    columns = (TextColumn("judging", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    last = None
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        judged = bar.add_task("judging", total=None)
        for step in steps:
            last = step
            if step.event:
                out.print(printable(step.event), soft_wrap=True)
            bar.update(judged, completed=step.samples_done, total=step.samples_planned or None)
    return last


pairs.register(app)
