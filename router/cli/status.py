"""`pithctl status`: how the router is, in one look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from router.cli.command import Session, command
from router.cli.output import coloured, console, details, print_document, table
from router.cli.units import UNKNOWN, count, grams, joules, percent, rate, span

if TYPE_CHECKING:
    from pith.router.v1.reports_pb2 import IntensityOutlook, ListEnginesResponse, RouterStatus
    from rich.console import RenderableType
    from rich.text import Text

_AGELESS = re.compile(r"constant|.+, mean of \d{4}").fullmatch


def register(app: typer.Typer) -> None:
    command(app, "status")(status)


def status(session: Session) -> None:
    """Shows how the router is. What it served since it started, the grid, budgets, and what it lacks."""
    from pith.router.v1.reports_pb2 import GetStatusRequest, ListEnginesRequest

    from router.cli.document import as_document

    with session.router() as router:
        found = router.call(router.reports.GetStatus, GetStatusRequest())
        if session.as_json:
            print_document(as_document(found))
            return
        engines = router.call(router.reports.ListEngines, ListEnginesRequest()).engines
    out = console()
    out.print(details(_facts(found, engines, session.router_address)))
    for part in (served_table(found), budget_table(found)):
        if part is not None:
            out.print()
            out.print(part)


def grid(found: RouterStatus | RouterStatus.Zone | IntensityOutlook, field: str = "intensity") -> str | Text:
    """The grid's intensity, what it is of, and its age, which a constant or a published annual mean has none of."""
    from router.cli.document import value, word

    at = value(found, field)
    if at is None:
        return coloured("unknown: no provider answers", "red")
    of = ", ".join([f"{word(at, 'kind')} {word(at, 'scope')}", *([at.source] if at.source else [])])
    age = "" if _AGELESS(at.source) else f", {span(at.age_seconds)} old"
    return f"{at.g_per_kwh:.0f} g/kWh in {at.zone or 'an unnamed zone'} ({of}){age}"


def engines_line(engines: Sequence[ListEnginesResponse.Engine]) -> Text:
    """How many are ready, and what the others lack."""
    from rich.text import Text

    from router.cli.document import word

    if not engines:
        return coloured("none known", "red")
    others = [(engine, state) for engine in engines if (state := word(engine, "state")) != "ready"]
    parts = [Text(f"{count(len(engines) - len(others))} ready of {count(len(engines))}")]
    parts += [
        coloured(f"{engine.name} {state}{engine.fault and f': {engine.fault}'}", "red") for engine, state in others
    ]
    return Text("; ").join(parts)


def ledger(found: RouterStatus) -> str | Text:
    """What has not reached the database."""
    if found.ledger_lost:
        return coloured(f"{count(found.ledger_lost)} lost; {count(found.ledger_waiting)} to be written", "red")
    if not found.ledger_waiting and not found.outbox_in_use:
        return "all is written"
    waiting = f"{count(found.ledger_waiting)} to be written"
    return coloured(f"{waiting}, others lie in the outbox file", "yellow") if found.outbox_in_use else waiting


def faults(found: RouterStatus) -> Iterable[str]:
    """What the router lacks, each in a few words."""
    if found.draining:
        yield "it drains: no new requests are taken"
    if found.database_away:
        yield "the database does not answer: decisions rest on what was known before"
    if not found.HasField("intensity"):
        yield "the grid's intensity is unknown"
    if found.intensity_fault:
        yield f"no fresh carbon intensity: {found.intensity_fault}"
    for zone in found.zones:
        if not zone.HasField("intensity"):
            yield f"the intensity of zone {zone.zone} is unknown"
        if zone.fault:
            yield f"no fresh carbon intensity in zone {zone.zone}: {zone.fault}"
    if found.ledger_lost:
        yield f"{count(found.ledger_lost)} records of the ledger are lost"


def served_table(found: RouterStatus, earlier: tuple[RouterStatus, float] | None = None) -> RenderableType | None:
    """By directive and reason, the most first; with an `earlier` status and the seconds since, how fast each grows."""
    from router.cli.document import word

    before = {} if earlier is None else {(s.directive, s.reason): s.requests for s in earlier[0].served}
    total = sum(served.requests for served in found.served)
    rows: list[list[str]] = []
    for served in sorted(found.served, key=lambda served: -served.requests):
        cells = [
            served.directive,
            word(served, "reason").replace("_", " "),
            count(served.requests),
            percent(served.requests / total if total else None),
        ]
        if earlier is not None:
            grown = served.requests - before.get((served.directive, served.reason), 0)
            cells.append(rate(grown / earlier[1]))
        rows.append(cells)
    headings = ("DIRECTIVE", "REASON", "REQUESTS", "SHARE", *(("A SECOND",) if earlier is not None else ()))
    return table(headings, rows, right=headings[2:]) if rows else None


def budget_table(found: RouterStatus) -> RenderableType | None:
    """How much of each policy's carbon budget of the day is spent."""
    from router.cli.document import word

    rows: list[Sequence[str | Text]] = []
    for budget in found.budgets:
        share = budget.grams_spent / budget.grams_per_day if budget.grams_per_day else None
        spent = share is not None and share >= 1
        rows.append(
            (
                budget.policy,
                grams(budget.grams_spent),
                grams(budget.grams_per_day),
                coloured(percent(share), "red" if spent else ""),
                word(budget, "when_spent"),
            )
        )
    headings = ("BUDGET OF POLICY", "SPENT TODAY", "A DAY", "SHARE", "WHEN SPENT")
    return table(headings, rows, right=headings[1:4]) if rows else None


def _facts(
    found: RouterStatus, engines: Sequence[ListEnginesResponse.Engine], address: str
) -> Iterable[tuple[str, str | Text]]:
    from router.cli.document import moment, signal_words

    now = found.now.ToDatetime()
    yield "router", f"{address}, version {found.version or UNKNOWN}"
    up = span((now - found.started_at.ToDatetime()).total_seconds())
    yield "up", f"{up}, since {moment(found, 'started_at')}"
    for fault in faults(found):
        yield "lacks", coloured(fault, "red")
    for engine in engines:
        if engine.model.zone and not engine.zone:
            unknown = f"zone {engine.model.zone} of engine {engine.name} is none of PITH_ROUTER_ZONES"
            yield "lacks", coloured(f"{unknown}: it is charged by the router's own grid", "red")
    yield "engines", engines_line(engines)
    failed = f", {count(found.failed_total)} of them failed" if found.failed_total else ""
    yield "requests", f"{count(found.requests_total)}{failed}; {count(found.in_flight)} in flight"
    yield "output tokens", count(found.output_tokens_total)
    carbon = "unknown CO2e"
    if found.HasField("intensity"):
        carbon = f"{grams(found.carbon_grams_total)} CO2e ({signal_words(found.intensity)})"
    yield "energy", f"{joules(found.energy_joules_total)}, {carbon}, where known"
    yield "grid", grid(found)
    for zone in found.zones:
        there = [engine.name for engine in engines if engine.zone == zone.zone]
        yield f"zone {zone.zone}", f"{', '.join(there) or 'no engine'}: {grid(zone)}"
    if found.HasField("planned_at"):
        ago = span((now - found.planned_at.ToDatetime()).total_seconds())
        yield "planned", f"{ago} ago, at {moment(found, 'planned_at')}"
    else:
        yield "planned", "not yet"
    yield "ledger", ledger(found)
