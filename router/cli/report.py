"""`pithctl report`: what was spent, what it would have been without directives, and how that is known."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.clock import router_clock, set_time
from router.cli.command import Session, command
from router.cli.completion import complete_tenant
from router.cli.output import console, dim, print_document, printable, table
from router.cli.units import UNKNOWN, count, grams, interval, joules, percent, span

if TYPE_CHECKING:
    from pith.common.v1.energy_pb2 import Signal
    from pith.router.v1.reports_pb2 import Report

_FIGURES = (
    *("requests", "prompt_tokens", "output_tokens", "energy_joules", "operational_grams", "embodied_grams"),
    *("requests_without_energy", "requests_without_embodied", "energy_source", "rated_requests", "mean_rating"),
)


class Dimension(StrEnum):
    """What rows can be told apart by, as the field of a row that says it."""

    TENANT = "tenant"
    TASK = "task"
    DIRECTIVE = "directive"
    MODEL = "model"
    HOUR = "hour"
    DAY = "day"
    POLICY = "policy"
    ENGINE = "engine"
    REASON = "reason"


class SignalChoice(StrEnum):
    """What grams may count: the words of kind and scope."""

    AVERAGE_DIRECT = "average:direct"
    AVERAGE_LIFECYCLE = "average:lifecycle"
    MARGINAL_DIRECT = "marginal:direct"
    MARGINAL_LIFECYCLE = "marginal:lifecycle"


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
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="Default: all.", autocompletion=complete_tenant)
    ] = "",
    signal: Annotated[
        SignalChoice | None,
        typer.Option("--signal", help="Whose grams, where requests were counted under several; default: the newest's."),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the rows as CSV (RFC 4180), in the units of the header.")
    ] = False,
) -> None:
    """Shows tokens, energy, carbon, and what they would have been."""
    from pith.router.v1.reports_pb2 import GetReportRequest

    from router.cli.document import number

    if as_csv and session.as_json:
        raise typer.BadParameter("goes not with --json", param_hint="--csv")
    # In the order given, each once.
    by = list(dict.fromkeys(dimensions or []))
    request = GetReportRequest(tenant=tenant)
    request.dimensions.extend(number(request, "dimensions", dimension) for dimension in by)
    if signal is not None:
        request.signal.kind, request.signal.scope = (
            number(request.signal, half, said) for half, said in zip(("kind", "scope"), signal.split(":"), strict=True)
        )
    with session.router() as router:
        now = router_clock(router)
        set_time(request.start_time, from_time, "--from", now)
        set_time(request.end_time, to_time, "--to", now)
        reply = router.call(router.reports.GetReport, request)
    if session.as_json:
        print_document(_document(reply))
    elif as_csv:
        _print_csv(reply, by)
    else:
        _print(reply, by)


def _print_csv(reply: Report, by: Sequence[Dimension]) -> None:
    """The rows, or the total where nothing tells rows apart; what is unknown is empty."""
    document = _document(reply)
    columns = [*(str(dimension) for dimension in by), *_FIGURES]
    writer = csv.writer(sys.stdout)
    writer.writerow([*columns, "signal"])
    signal = _choice(reply.signal) if reply.HasField("signal") else ""
    for row in document["rows"] if by else [document["total"]]:
        writer.writerow([*("" if row[column] is None else row[column] for column in columns), signal])


def _energy_known(row: Report.Row) -> bool:
    """Whether the row's sums say anything: zero requests cost nothing, requests of unknown energy cost something."""
    return row.requests == 0 or row.requests_without_energy < row.requests


def _embodied_known(row: Report.Row) -> bool:
    """The same of the embodied carbon."""
    return row.requests == 0 or row.requests_without_energy + row.requests_without_embodied < row.requests


def _idle_energy_known(idle: Report.Idle) -> bool:
    return idle.device_seconds == 0 or idle.seconds_without_energy < idle.device_seconds


def _document(reply: Report) -> dict[str, Any]:
    """The report, with null for sums over requests of which none has a known energy, or embodied carbon."""
    from router.cli.document import as_document

    document = as_document(reply)
    shown = [*document["rows"], document["total"], document["evaluation"]]
    for row, found in zip(shown, [*reply.rows, reply.total, reply.evaluation], strict=True):
        if row is None:
            continue
        if not _energy_known(found):
            row.update(energy_joules=None, operational_grams=None, energy_source=None)
        if not _embodied_known(found):
            row.update(embodied_grams=None)
    for shown_idle, idle in zip(document["idle"], reply.idle, strict=True):
        if not _idle_energy_known(idle):
            shown_idle.update(energy_joules=None, operational_grams=None)
    return document


def _print(reply: Report, by: Sequence[Dimension]) -> None:
    rated = reply.total.rated_requests > 0
    rows = [(*(_dimension(row, dimension) for dimension in by), *_figures(row, rated)) for row in reply.rows]
    # Without dimensions the label needs a column all the same.
    labels: list[str] = list(by) or [""]
    blanks = ("",) * (len(labels) - 1)
    footer = [("total", *blanks, *_figures(reply.total, rated))]
    if reply.evaluation.requests:
        footer.append(("evaluation", *blanks, *_figures(reply.evaluation, rated)))
    footer += [(f"idle {idle.engine}", *blanks, *_idle_figures(idle, rated)) for idle in reply.idle]
    right = ("REQUESTS", "PROMPT", "OUTPUT", "ENERGY", "CO2e", "EMBODIED", "RATING")
    figures = (*right[:-1], "SOURCE", *(right[-1:] if rated else ()))
    headings = (*(label.upper() for label in labels), *figures)
    out = console()
    out.print(table(headings, rows if by else [], right=right, footer=footer))
    out.print()
    for line in _signal_lines(reply):
        out.print(dim(line))
    for label, row in (("", reply.total), (" for evaluation", reply.evaluation)):
        if row.requests_without_energy:
            missing = f"{count(row.requests_without_energy)} of {count(row.requests)} requests{label}"
            out.print(dim(f"The energy of {missing} is unknown; they are in no sum of energy or CO2e."))
        if row.requests_without_embodied:
            missing = f"{count(row.requests_without_embodied)} of {count(row.requests)} requests{label}"
            out.print(dim(f"The embodied carbon of {missing} is unknown; their CO2e is that of their energy alone."))
    if reply.HasField("sci"):
        out.print(_rate(reply.sci))
        out.print(dim(_rate_by_parts(reply.sci)))
    if not reply.HasField("counterfactual"):
        out.print("Without directives: unknown, too few requests were held back to say.")
        return
    found = reply.counterfactual
    if not found.held_back_requests and not found.uncovered_requests:
        cost = ", less what the evaluation cost" if reply.evaluation.requests else ""
        out.print(f"Without directives: the same{cost}, as no request was served under one.")
        return
    method = f"; {found.carbon_grams.method}" if found.carbon_grams.method else ""
    of = " of the requests covered" if found.uncovered_requests else ""
    evaluation = (
        "what the evaluation cost deducted"
        if reply.HasField("evaluation")
        else "without what the evaluation cost, which no tenant is charged"
    )
    out.print(f"Without directives{of}: {interval(found.carbon_grams, grams, ' CO2e')}")
    out.print(f"Saved{of}: {interval(found.saving, percent)}, {evaluation}")
    if found.uncovered_requests:
        out.print(f"Not covered: {_uncovered(found)}; too few of their like were held back to say.")
    out.print(dim(f"From {count(found.held_back_requests)} requests held back at random{method}."))


def _choice(signal: Signal) -> str:
    """As `--signal` takes it."""
    from router.cli.document import word

    return f"{word(signal, 'kind')}:{word(signal, 'scope')}"


def _signal_lines(reply: Report) -> Iterator[str]:
    """What CO2e is here, and what is left out for being something else."""
    from router.cli.document import signal_words

    if reply.HasField("signal"):
        yield f"CO2e is by {signal_words(reply.signal)} intensity."
    for other in reply.other_signals:
        of_tenants = count(other.requests - other.evaluation_requests)
        judged = f" and {count(other.evaluation_requests)} for evaluation" if other.evaluation_requests else ""
        requests = f"{of_tenants} requests{judged} under {signal_words(other.signal)}"
        yield f"{requests} ({joules(other.energy_joules)}) are left out: --signal {_choice(other.signal)}"


def _rate(found: Report.Sci) -> str:
    from router.cli.document import value

    per_thousand = grams(value(found, "grams_per_thousand_output_tokens"))
    return f"SCI: {grams(found.grams_per_request)} CO2e a request, {per_thousand} a thousand output tokens"


def _rate_by_parts(found: Report.Sci) -> str:
    from common.carbon.accounting import JOULES_PER_KWH

    energy, making = joules(JOULES_PER_KWH * found.energy_kwh), grams(found.embodied_grams)
    of = f"(E {energy} x I {found.intensity_g_per_kwh:.3g} g/kWh + M {making}) per R {count(found.requests)} requests"
    return f"{of}, by ISO/IEC 21031; {found.boundary}."


def _uncovered(found: Report.Counterfactual) -> str:
    """How many requests under directives the estimate leaves out, and where the most of them are."""
    parts = [
        f"{count(part.requests)} of policy {printable(part.policy)}, task {printable(part.task) or '-'}"
        for part in found.uncovered
    ]
    more = found.uncovered_requests - sum(part.requests for part in found.uncovered)
    listed = "; ".join([*parts, *([f"{count(more)} of others"] if more else [])])
    return f"{count(found.uncovered_requests)} requests under directives ({listed})"


def _dimension(row: Report.Row, dimension: Dimension) -> str:
    from router.cli.document import moment

    if dimension == Dimension.HOUR:
        return moment(row, "hour").replace(":00Z", "Z")
    if dimension == Dimension.DAY:
        return moment(row, "day").partition(" ")[0]
    if dimension == Dimension.REASON:
        return row.reason.replace("_", " ") or "-"
    return str(getattr(row, dimension)) or "-"


def _figures(row: Report.Row, rated: bool) -> tuple[str, ...]:
    from router.cli.document import word

    tokens = (count(row.requests), count(row.prompt_tokens), count(row.output_tokens))
    ratings = (f"{row.mean_rating:.2f} ({count(row.rated_requests)})" if row.rated_requests else "-",) if rated else ()
    if not _energy_known(row):
        return (*tokens, UNKNOWN, UNKNOWN, UNKNOWN, "-", *ratings)
    source = word(row, "energy_source")
    partly = f", {count(row.requests_without_energy)} without" if row.requests_without_energy else ""
    carbon = row.operational_grams + row.embodied_grams
    embodied = grams(row.embodied_grams) if _embodied_known(row) else UNKNOWN
    if row.requests_without_embodied and _embodied_known(row):
        embodied += f", {count(row.requests_without_embodied)} without"
    return (*tokens, joules(row.energy_joules), grams(carbon), embodied, source + partly, *ratings)


def _idle_figures(idle: Report.Idle, rated: bool) -> tuple[str, ...]:
    from router.cli.document import word

    rating = ("",) if rated else ()
    embodied = grams(idle.embodied_grams)
    if not _idle_energy_known(idle):
        return ("", "", "", UNKNOWN, UNKNOWN, embodied, "-", *rating)
    carbon = grams(idle.operational_grams + idle.embodied_grams)
    partly = f", {span(idle.seconds_without_energy)} without" if idle.seconds_without_energy else ""
    return ("", "", "", joules(idle.energy_joules), carbon, embodied, word(idle, "energy_source") + partly, *rating)
