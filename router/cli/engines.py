"""`pithctl engines`: the engines, their models and their load, as the router sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from common.model_identity import model_identity
from router.cli.command import Session, command
from router.cli.output import coloured, console, print_document, table
from router.cli.units import UNKNOWN

if TYPE_CHECKING:
    from pith.router.v1.reports_pb2 import ListEnginesResponse
    from rich.console import RenderableType
    from rich.text import Text

_STYLES = {"ready": "green", "draining": "yellow"}


def register(app: typer.Typer) -> None:
    command(app, "engines")(engines)


def engines(session: Session) -> None:
    """Shows the engines: state, model and load."""
    from pith.router.v1.reports_pb2 import ListEnginesRequest

    from router.cli.document import as_document

    with session.router() as router:
        reply = router.call(router.reports.ListEngines, ListEnginesRequest())
    if session.as_json:
        print_document(as_document(reply))
        return
    console().print(engines_table(reply.engines) if reply.engines else "The router knows of no engine.")


def engines_table(engines: Sequence[ListEnginesResponse.Engine]) -> RenderableType:
    """State, model and load of each; columns of zones and of faults where there are any."""
    faulty = any(engine.fault for engine in engines)
    apart = any(engine.zone or engine.model.zone for engine in engines)
    loads = ("RUNNING", "WAITING", "KV FREE", "IN FLIGHT")
    more = (*(("ZONE", "g/kWh") if apart else ()), *(("FAULT",) if faulty else ()))
    rows = [
        (
            *_row(engine),
            *(_grid(engine) if apart else ()),
            *((coloured(engine.fault or "-", "red"),) if faulty else ()),
        )
        for engine in engines
    ]
    return table(("NAME", "ADDRESS", "STATE", "MODEL", *loads, *more), rows, right=(*loads, "g/kWh"))


def _grid(engine: ListEnginesResponse.Engine) -> tuple[str | Text, str]:
    """Its zone, and the intensity in force there."""
    named = engine.model.zone
    zone = engine.zone or (coloured(f"{named}, which the router does not know", "yellow") if named else "-")
    return zone, f"{engine.intensity.g_per_kwh:.0f}" if engine.HasField("intensity") else UNKNOWN


def _row(engine: ListEnginesResponse.Engine) -> tuple[str | Text, ...]:
    from router.cli.document import word

    state = word(engine, "state")
    model, load = engine.model, engine.load
    busy = (UNKNOWN,) * 3
    if engine.HasField("load"):
        busy = (
            f"{load.running}/{load.max_running}",
            f"{load.waiting}/{load.max_waiting}",
            f"{load.kv_blocks_free}/{load.kv_blocks_total}" if load.kv_blocks_total else "-",
        )
    return (
        engine.name,
        engine.address,
        coloured(state, _STYLES.get(state, "red")),
        model_identity(model.model, model.model_digest) if engine.HasField("model") else UNKNOWN,
        *busy,
        str(engine.in_flight),
    )
