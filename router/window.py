"""The span of time that a request names by start_time and end_time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pith.router.v1 import policies_pb2, reports_pb2

from common.errors import Violations
from router import convert

_FIRST = datetime(1, 1, 1, tzinfo=UTC)


def read_window(
    faults: Violations, request: reports_pb2.GetReportRequest | policies_pb2.SimulateRequest, now: datetime
) -> tuple[datetime | None, datetime]:
    """Start, None where none is named, and exclusive end, by default now. What is at fault is added to `faults`."""
    start, end = _moment(faults, request, "start_time"), _moment(faults, request, "end_time") or now
    if start is not None:
        faults.require(start < end, "start_time", f"is {start.isoformat()}; must be before {end.isoformat()}")
    return start, end


def before(end: datetime, span: timedelta) -> datetime:
    """`span` before `end`, or the first moment that there is."""
    return end - span if end - _FIRST > span else _FIRST


def _moment(
    faults: Violations, request: reports_pb2.GetReportRequest | policies_pb2.SimulateRequest, field: str
) -> datetime | None:
    if request.HasField(field):  # type: ignore[arg-type]
        try:
            return convert.moment(getattr(request, field))
        except ValueError:
            faults.add(field, "is out of range; must be between the years 1 and 9999")
    return None
