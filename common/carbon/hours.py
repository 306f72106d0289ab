"""The grid's hours: observations, forecasts and history count by the hour, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
YEAR = timedelta(days=365)


def hour_start(moment: datetime) -> datetime:
    """The first moment of an aware datetime's hour, in UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
