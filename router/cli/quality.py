"""`pithctl quality`: what directives are known to keep of the quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import typer

from router.cli import quality_plan
from router.cli.command import Session, command, group_with_default
from router.cli.failures import CallError
from router.cli.output import coloured, console, details, dim, print_document, printable, table
from router.cli.units import count, grams, joules, percent

if TYPE_CHECKING:
    from pith.evaluator.v1.evaluation_pb2 import Status
    from pith.router.v1.policies_pb2 import Policy
    from pith.router.v1.reports_pb2 import ListBoundsResponse
    from rich.text import Text

# The evaluator's status is a courtesy here: one that hangs must not hold up the bounds for long.
_STATUS_SECONDS = 3.0


app = typer.Typer(cls=group_with_default("show"), help="What directives keep of the quality.")


@app.callback()
def _quality() -> None:
    """What directives keep of the quality. Without a command: show."""


@command(app, "show")
def show(session: Session) -> None:
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


quality_plan.register(app)
