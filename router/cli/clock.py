"""The router's time, which may be a simulated one: what spans such as "-24h" count from."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from router.cli.times import parse_time

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from router.cli.connection import Connection


def router_clock(router: Connection) -> Callable[[], datetime]:
    """Asks for the time once, and only if somebody wants to know."""
    asked: list[datetime] = []

    def now() -> datetime:
        from pith.router.v1.reports_pb2 import GetStatusRequest

        if not asked:
            asked.append(router.call(router.reports.GetStatus, GetStatusRequest()).now.ToDatetime(tzinfo=UTC))
        return asked[0]

    return now


def set_time(timestamp: Timestamp, text: str | None, option: str, now: Callable[[], datetime]) -> None:
    """Sets it to what an option says; None leaves it absent. Raises BadParameter."""
    if text is None:
        return
    try:
        timestamp.FromDatetime(parse_time(text, now))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
