"""`pithctl report`: what was spent, what it would have been without directives, and how that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.output import console, dim, print_document, table
from router.cli.times import parse_time
from router.cli.units import UNKNOWN, count, grams, joules, percent

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from pith.common.v1.energy_pb2 import Interval
    from pith.router.v1.reports_pb2 import Report

    from router.cli.connection import Connection


class Dimension(StrEnum):
    """What rows can be told apart by, as the field of a row that says it."""

    TENANT = "tenant"
    TASK = "task"
    DIRECTIVE = "directive"
    MODEL = "model"
    HOUR = "hour"


def register(app: typer.Typer) -> None:
    command(app, "report")(report)


def report(
    session: Session,
    dimensions: Annotated[
        list[Dimension] | None,
        typer.Option("--by", help="What rows are told apart by; repeatable."),
    ] = None,
    from_time: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="ISO 8601, or a span before now such as -24h; default: all."),
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="As --from, exclusive; default: now.")
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", metavar="TENANT", help="Default: all.")] = "",
) -> None:
    """Shows tokens, energy and carbon, and what they would have been without directives."""
    from pith.router.v1.reports_pb2 import GetReportRequest

    from router.cli.document import number

    # In the order given, each once.
    by = list(dict.fromkeys(dimensions or []))
    request = GetReportRequest(tenant=tenant)
    request.dimensions.extend(number(request, "dimensions", dimension) for dimension in by)
    with session.router() as router:
        now = _clock_of(router)
        for field, option, text in (("start_time", "--from", from_time), ("end_time", "--to", to_time)):
            if text is not None:
                _set_time(getattr(request, field), text, option, now)
        reply = router.call(router.reports.GetReport, request)
    if session.as_json:
        print_document(_document(reply))
    else:
        _print(reply, by)


def _clock_of(router: Connection) -> Callable[[], datetime]:
    """The router's time, which may be a simulated one; asked for once, and only if somebody wants to know."""
    asked: list[datetime] = []

    def now() -> datetime:
        from pith.router.v1.feedback_pb2 import GetEvaluationPlanRequest

        if not asked:
            plan = router.call(router.feedback.GetEvaluationPlan, GetEvaluationPlanRequest())
            asked.append(plan.now.ToDatetime(tzinfo=UTC))
        return asked[0]

    return now


def _set_time(timestamp: Timestamp, text: str, option: str, now: Callable[[], datetime]) -> None:
    try:
        timestamp.FromDatetime(parse_time(text, now))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _energy_known(row: Report.Row) -> bool:
    """Whether the row's sums say anything: zero requests cost nothing, requests of unknown energy cost something."""
    return row.requests == 0 or row.requests_without_energy < row.requests


def _document(reply: Report) -> dict[str, Any]:
    """The report, with null for sums over requests of which none has a known energy."""
    from router.cli.document import as_document

    document = as_document(reply)
    shown = [*document["rows"], document["total"], document["evaluation"]]
    for row, found in zip(shown, [*reply.rows, reply.total, reply.evaluation], strict=True):
        if row is not None and not _energy_known(found):
            row.update(energy_joules=None, operational_grams=None, embodied_grams=None, energy_source=None)
    return document


def _print(reply: Report, by: Sequence[Dimension]) -> None:
    rows = [(*(_dimension(row, dimension) for dimension in by), *_figures(row)) for row in reply.rows]
    # Without dimensions the label needs a column all the same.
    labels: list[str] = list(by) or [""]
    blanks = ("",) * (len(labels) - 1)
    footer = [("total", *blanks, *_figures(reply.total))]
    if reply.evaluation.requests:
        footer.append(("evaluation", *blanks, *_figures(reply.evaluation)))
    figures = ("REQUESTS", "PROMPT", "OUTPUT", "ENERGY", "CO2e", "EMBODIED", "SOURCE")
    headings = (*(label.upper() for label in labels), *figures)
    out = console()
    out.print(table(headings, rows if by else [], right=figures[:-1], footer=footer))
    out.print()
    for label, row in (("", reply.total), (" for evaluation", reply.evaluation)):
        if row.requests_without_energy:
            missing = f"{count(row.requests_without_energy)} of {count(row.requests)} requests{label}"
            out.print(dim(f"The energy of {missing} is unknown; they are in no sum of energy or CO2e."))
    if not reply.HasField("counterfactual"):
        out.print("Without directives: unknown, too few requests were held back to say.")
        return
    found = reply.counterfactual
    method = f"; {found.carbon_grams.method}" if found.carbon_grams.method else ""
    out.print(f"Without directives: {_interval(found.carbon_grams, grams, ' CO2e')}")
    out.print(f"Saved: {_interval(found.saving, percent)}, what the evaluation cost deducted")
    out.print(dim(f"From {count(found.held_back_requests)} requests held back at random{method}."))


def _dimension(row: Report.Row, dimension: Dimension) -> str:
    from router.cli.document import moment

    if dimension == Dimension.HOUR:
        return moment(row, "hour").replace(":00Z", "Z")
    return str(getattr(row, dimension)) or "-"


def _figures(row: Report.Row) -> tuple[str, ...]:
    from router.cli.document import word

    tokens = (count(row.requests), count(row.prompt_tokens), count(row.output_tokens))
    if not _energy_known(row):
        return (*tokens, UNKNOWN, UNKNOWN, UNKNOWN, "-")
    source = word(row, "energy_source")
    partly = f", {count(row.requests_without_energy)} without" if row.requests_without_energy else ""
    carbon = row.operational_grams + row.embodied_grams
    return (*tokens, joules(row.energy_joules), grams(carbon), grams(row.embodied_grams), source + partly)


def _interval(interval: Interval, amount: Callable[[float], str], of: str = "") -> str:
    sure = f"{100 * interval.confidence:g} % interval" if interval.confidence else "interval"
    return f"{amount(interval.value)}{of} ({sure} {amount(interval.lower)} to {amount(interval.upper)})"
