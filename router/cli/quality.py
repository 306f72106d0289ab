"""`pithctl quality`: what directives are known to keep of the quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import typer

from router.cli import quality_agreement, quality_history, quality_plan
from router.cli.command import Session, command, group_with_default
from router.cli.failures import CallError
from router.cli.floors import clears, opening_floor
from router.cli.output import coloured, console, details, dim, print_document, printable, table
from router.cli.units import at_least, count, grams, joules, percent

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
        compared = any(bound.bound.HasField("raw") for bound in bounds)
        raw = ("RAW",) if compared else ()
        headings: tuple[str, ...] = ("TASK", "DIRECTIVE", "KEEPS", *raw, "BOUND", "SAMPLES", "FLOORS", "UPDATED")
        rows = [_bound_row(bound, policies, with_raw=compared) for bound in bounds]
        if any(bound.bound.cell.tenant for bound in bounds):
            headings = ("TENANT", *headings)
            rows = [(bound.bound.cell.tenant or "all", *row) for bound, row in zip(bounds, rows, strict=True)]
        if several:
            headings = ("MODEL", *headings)
            rows = [(bound.bound.cell.model, *row) for bound, row in zip(bounds, rows, strict=True)]
        out.print(table(headings, rows, right=("KEEPS", "RAW", "BOUND", "SAMPLES")))
        out.print(dim("KEEPS: estimated share of L0's quality. BOUND: at least so much, with 95 % certainty unless"))
        out.print(dim("PITH_EVALUATOR_ALPHA says otherwise, however often one looks."))
        if compared:
            out.print(dim("RAW: as the judge preferred; KEEPS and BOUND are then at equal length and balanced order."))
            out.print(dim("Such a bound is asymptotic, and 0 before 200 comparisons; the others hold at any time."))
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


def _bound_row(
    listed: ListBoundsResponse.Bound, policies: Mapping[str, Policy], *, with_raw: bool
) -> tuple[str | Text, ...]:
    from router.cli.document import moment, value

    bound = listed.bound
    raw = percent(value(bound.raw, "share")) if bound.HasField("raw") else ""
    return (
        bound.cell.task or "any",
        bound.cell.directive,
        percent(value(bound, "share")),
        *((raw,) if with_raw else ()),
        at_least(bound.lower),
        count(bound.samples),
        _floors(listed, policies),
        moment(bound, "updated_at"),
    )


def _floors(listed: ListBoundsResponse.Bound, policies: Mapping[str, Policy]) -> Text:
    """The policies that the bound opens the directive for, and closes it for, with their floors."""
    from rich.text import Text

    parts = [("open for ", name, "green") for name in listed.open_for]
    parts += [("closed for ", name, "red") for name in listed.closed_for]
    lines = [
        coloured(f"{state}{name}{_floor(policies.get(name))}{_why_in_spite(listed, policies.get(name))}", style)
        for state, name, style in parts
    ]
    if lines:
        return Text("\n").join(lines)
    return Text("as for all tenants" if listed.bound.cell.tenant else "it decides for no policy")


def _why_in_spite(listed: ListBoundsResponse.Bound, policy: Policy | None) -> str:
    """Words for a directive that is closed although its bound clears the floor."""
    if policy is None or policy.name not in listed.closed_for or not clears(listed.bound, policy):
        return ""
    return ": its scores no longer count"


def _floor(policy: Policy | None) -> str:
    from pith.router.v1.policies_pb2 import FLOOR_KIND_ABSOLUTE

    if policy is None:
        return ""
    return f" ({100 * opening_floor(policy):g} %{' absolute' if policy.floor_kind == FLOOR_KIND_ABSOLUTE else ''})"


def _status_lines(status: Status) -> Iterable[tuple[str, str | Text]]:
    from router.cli.document import moment, value

    version = f", version {status.version}" if status.version else ""
    yield "evaluator", f"{'evaluates now' if status.running else 'waits'}{version}"
    if status.reason:
        yield "last look", status.reason
    last = f", the last at {moment(status, 'last_run_at')}" if status.HasField("last_run_at") else ""
    yield "evaluations", f"{count(status.evaluations)}{last}"
    yield "samples scored", count(status.samples_scored)
    energy, carbon = value(status, "energy_joules"), value(status, "carbon_grams")
    nothing = energy is None and carbon is None and not status.answers_generated
    spent = "nothing yet" if nothing else f"{joules(energy)}, {grams(carbon)} CO2e"
    yield "spent", f"{spent}, on evaluations and trials since it started, calls of a judge apart"
    if status.last_fault:
        yield "last fault", coloured(status.last_fault, "red")


quality_agreement.register(app)
quality_plan.register(app)
quality_history.register(app)
