"""`pithctl quality` and `pithctl evaluate`: what directives are known to keep of the quality, and finding out now."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.command import Session, command
from router.cli.completion import complete_task
from router.cli.failures import CallError
from router.cli.findings import print_why_unjudged
from router.cli.output import coloured, console, details, dim, print_document, print_line, printable, table
from router.cli.units import count, grams, joules, percent

if TYPE_CHECKING:
    from pith.evaluator.v1.evaluation_pb2 import EvaluationProgress, Status
    from pith.router.v1.policies_pb2 import Policy
    from pith.router.v1.reports_pb2 import ListBoundsResponse
    from rich.text import Text

# The evaluator's status is a courtesy here: one that hangs must not hold up the bounds for long.
_STATUS_SECONDS = 3.0


def register(app: typer.Typer) -> None:
    command(app, "quality")(quality)
    command(app, "evaluate")(evaluate)


def quality(session: Session) -> None:
    """Shows the quality bounds. Also for which policies they open a directive, and how the evaluator fares."""
    from pith.router.v1.policies_pb2 import ListPoliciesRequest
    from pith.router.v1.reports_pb2 import ListBoundsRequest

    from router.cli.document import as_document

    with session.router() as router:
        bound_pages = router.pages(router.reports.ListBounds, ListBoundsRequest(page_size=500))
        bounds = [bound for page in bound_pages for bound in page.bounds]
        policy_pages = router.pages(router.policies.ListPolicies, ListPoliciesRequest(page_size=500))
        policies = {policy.name: policy for page in policy_pages for policy in page.policies}
    status, failure = _status(session)
    if session.as_json:
        print_document(
            {
                "bounds": [as_document(bound) for bound in bounds],
                "evaluator": None if status is None else as_document(status),
                "evaluator_error": None if failure is None else failure.document(),
            }
        )
        return
    out = console()
    if bounds:
        models = {bound.bound.cell.model for bound in bounds}
        several = len(models) > 1
        if not several:
            out.print(f"Bounds of {printable(models.pop())}:")
        headings: tuple[str, ...] = ("TASK", "DIRECTIVE", "KEEPS", "BOUND", "SAMPLES", "FLOORS", "UPDATED")
        rows = [_bound_row(bound, policies) for bound in bounds]
        if several:
            headings = ("MODEL", *headings)
            rows = [(bound.bound.cell.model, *row) for bound, row in zip(bounds, rows, strict=True)]
        out.print(table(headings, rows, right=("KEEPS", "BOUND", "SAMPLES")))
    else:
        out.print("No directive has been judged yet: every request is served at L0.")
    out.print()
    if status is not None:
        out.print(details(_status_lines(status)))
    elif failure is not None:
        out.print(dim(f"Evaluator: {failure.summary}"))
        if failure.next_step is not None:
            out.print(dim(f"  {failure.next_step}"))


def evaluate(
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
        console().print("No sample was judged.")
        print_why_unjudged(session)
        return
    energy = joules(value(last, "energy_joules"))
    carbon = grams(value(last, "carbon_grams"))
    console().print(f"{count(last.samples_done)} samples judged; answers for it took {energy}, {carbon} CO2e.")


def _status(session: Session) -> tuple[Status | None, CallError | None]:
    from dataclasses import replace

    from pith.evaluator.v1.evaluation_pb2 import GetStatusRequest

    timeout = min(session.timeout_seconds or _STATUS_SECONDS, _STATUS_SECONDS)
    with replace(session, timeout_seconds=timeout).evaluator() as evaluator:
        try:
            return evaluator.call(evaluator.evaluation.GetStatus, GetStatusRequest()), None
        except CallError as failure:
            return None, failure


def _bound_row(listed: ListBoundsResponse.Bound, policies: Mapping[str, Policy]) -> tuple[str | Text, ...]:
    from router.cli.document import moment, value

    bound = listed.bound
    return (
        bound.cell.task or "any",
        bound.cell.directive,
        percent(value(bound, "share")),
        percent(bound.lower),
        count(bound.samples),
        _floors(listed, policies),
        moment(bound, "updated_at"),
    )


def _floors(listed: ListBoundsResponse.Bound, policies: Mapping[str, Policy]) -> Text:
    """The policies that the bound opens the directive for, and closes it for, with their floors."""
    from rich.text import Text

    parts = [("open for ", name, "green") for name in listed.open_for]
    parts += [("closed for ", name, "red") for name in listed.closed_for]
    lines = [coloured(f"{state}{name}{_floor(policies.get(name))}", style) for state, name, style in parts]
    return Text("\n").join(lines) if lines else Text("no policy allows it")


def _floor(policy: Policy | None) -> str:
    from pith.router.v1.policies_pb2 import FLOOR_KIND_ABSOLUTE

    if policy is None:
        return ""
    return f" ({100 * policy.floor:g} %{' absolute' if policy.floor_kind == FLOOR_KIND_ABSOLUTE else ''})"


def _status_lines(status: Status) -> Iterable[tuple[str, str | Text]]:
    from router.cli.document import moment, value

    yield "evaluator", "evaluates now" if status.running else "waits"
    if status.reason:
        yield "why", status.reason
    last = f", the last at {moment(status, 'last_run_at')}" if status.HasField("last_run_at") else ""
    yield "evaluations", f"{count(status.evaluations)}{last}"
    yield "samples scored", count(status.samples_scored)
    energy, carbon = value(status, "energy_joules"), value(status, "carbon_grams")
    nothing = energy is None and carbon is None and not status.answers_generated
    spent = "nothing yet" if nothing else f"{joules(energy)}, {grams(carbon)} CO2e"
    yield "spent", f"{spent}, on evaluations and trials since it started"
    if status.last_fault:
        yield "last fault", coloured(status.last_fault, "red")


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
