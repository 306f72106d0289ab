"""`pithctl top`: the router as it works, looked at again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.failures import CallError
from router.cli.output import coloured, console, dim, print_line
from router.cli.status import budget_table, faults, grid, ledger, served_table
from router.cli.units import UNKNOWN, count, grams, rate, span

if TYPE_CHECKING:
    from pith.router.v1.reports_pb2 import ListEnginesResponse, RouterStatus
    from rich.console import RenderableType

    from router.cli.connection import Connection

# A router that hangs must not freeze the picture for long.
_CALL_SECONDS = 3.0
_QUIT = ("q", "Q", "\x03", "\x04")


@dataclass(frozen=True, slots=True)
class Look:
    """What the router said, and when by this machine's monotonic clock."""

    at: float
    status: RouterStatus
    engines: Sequence[ListEnginesResponse.Engine]


@dataclass(frozen=True, slots=True)
class Rates:
    """Between two looks, by the wall clock here; energy and carbon of answers that ended in between, where known."""

    seconds: float
    requests_per_second: float
    failed_per_second: float
    output_tokens_per_second: float
    watts: float
    grams_per_hour: float | None
    """None where the grid is unknown at one of them, or what grams count has changed in between."""


def register(app: typer.Typer) -> None:
    command(app, "top")(top)


def top(
    session: Session,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600, help="Between two looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one picture, with the rates of one interval, and end.")
    ] = False,
) -> None:
    """Shows the router as it works. q or Ctrl-C ends; with --json, each look is a line."""
    if not (once or session.as_json or sys.stdout.isatty()):
        raise typer.BadParameter("needs a terminal to draw on; for a script there are --once and --json")
    patience = min(session.timeout_seconds or _CALL_SECONDS, _CALL_SECONDS)
    with replace(session, timeout_seconds=patience).router() as router:
        if once:
            before = _look(router)
            time.sleep(interval)
            now = _look(router)
            if session.as_json:
                print_line(_document(now, rates(before, now)))
            else:
                console().print(_picture(session.router_address, before, now))
            return
        with suppress(KeyboardInterrupt):
            if session.as_json:
                _print_looks(router, interval)
            else:
                _draw(router, session.router_address, interval)


def rates(before: Look | None, now: Look) -> Rates | None:
    """None where there is nothing to compare with: at the first look, and when the router has started anew."""
    if before is None or before.status.started_at != now.status.started_at or now.at <= before.at:
        return None
    seconds = now.at - before.at
    counters = ("requests_total", "failed_total", "output_tokens_total", "energy_joules_total", "carbon_grams_total")
    grown = [(getattr(now.status, name) - getattr(before.status, name)) / seconds for name in counters]
    requests, failed, tokens, watts, grams_per_second = grown
    signals = [
        (look.status.intensity.kind, look.status.intensity.scope) if look.status.HasField("intensity") else None
        for look in (before, now)
    ]
    comparable = signals[0] is not None and signals[0] == signals[1]
    return Rates(seconds, requests, failed, tokens, watts, 3600 * grams_per_second if comparable else None)


def _look(router: Connection) -> Look:
    """Raises CallError."""
    from pith.router.v1.reports_pb2 import GetStatusRequest, ListEnginesRequest

    status = router.call(router.reports.GetStatus, GetStatusRequest())
    at = time.monotonic()
    return Look(at, status, router.call(router.reports.ListEngines, ListEnginesRequest()).engines)


def _print_looks(router: Connection, interval: float) -> None:
    """A line of JSON a look; one that fails is a line with the error."""
    before = None
    while True:
        try:
            now = _look(router)
        except CallError as failure:
            print_line({"error": failure.document()})
        else:
            print_line(_document(now, rates(before, now)))
            before = now
        time.sleep(interval)


def _draw(router: Connection, address: str, interval: float) -> None:
    from rich.live import Live

    from router.cli.keys import Keys

    before = now = None
    with Keys() as keys, Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            failure = None
            try:
                before, now = now, _look(router)
            except CallError as error:
                failure = error
            live.update(_picture(address, before, now, failure), refresh=True)
            if keys.wait(interval) in _QUIT:
                return


def _document(now: Look, found: Rates | None) -> dict[str, Any]:
    from router.cli.document import as_document

    return {
        "status": as_document(now.status),
        "rates": None if found is None else asdict(found),
        "engines": [as_document(engine) for engine in now.engines],
    }


def _picture(address: str, before: Look | None, now: Look | None, failure: CallError | None = None) -> RenderableType:
    from rich.console import Group

    return Group(*_parts(address, before, now, failure))


def _parts(address: str, before: Look | None, now: Look | None, failure: CallError | None) -> Iterator[RenderableType]:
    from router.cli.engines import engines_table

    if failure is not None:
        yield coloured(failure.summary, "bold red")
        if now is None:
            yield dim(failure.next_step or "")
            return
        yield coloured(f"What follows is {span(time.monotonic() - now.at)} old.", "red")
    if now is None:
        return
    status = now.status
    up = span((status.now.ToDatetime() - status.started_at.ToDatetime()).total_seconds())
    yield coloured(f"Router {address}, version {status.version or UNKNOWN}, up {up}", "bold")
    for fault in faults(status):
        yield coloured(f"Fault: {fault}", "red")
    found = rates(before, now)
    yield _rates_line(status, found)
    yield _labelled("grid    ", grid(status))
    yield _labelled("ledger  ", ledger(status))
    yield ""
    yield engines_table(now.engines) if now.engines else coloured("The router knows of no engine.", "red")
    earlier = (before.status, found.seconds) if before is not None and found is not None else None
    for part in (served_table(status, earlier), budget_table(status)):
        if part is not None:
            yield ""
            yield part


def _labelled(label: str, value: Any) -> RenderableType:
    from rich.text import Text

    return Text(label, style="dim").append_text(value if isinstance(value, Text) else Text(value))


def _rates_line(status: RouterStatus, found: Rates | None) -> RenderableType:
    in_flight = f"{count(status.in_flight)} in flight"
    if found is None:
        return dim(f"{in_flight} · rates come with the next look")
    failed = f" ({rate(found.failed_per_second)} failed)" if found.failed_per_second else ""
    return coloured(
        f"{rate(found.requests_per_second)} requests/s{failed} · {rate(found.output_tokens_per_second)} tokens/s · "
        f"{rate(found.watts)} W · {grams(found.grams_per_hour)} CO2e/h · {in_flight}",
        "red" if found.failed_per_second else "",
    )
