"""Hours and days in UTC: observations, forecasts and history count by the hour, budgets by the day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
YEAR = timedelta(days=365)


def hour_start(moment: datetime) -> datetime:
    """The first moment of an aware datetime's hour, in UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def day_start(moment: datetime) -> datetime:
    """The first moment of an aware datetime's day, in UTC."""
    return hour_start(moment).replace(hour=0)


def next_day(moment: datetime) -> datetime:
    """The first moment of the day after its day, in UTC."""
    return day_start(moment) + timedelta(days=1)
