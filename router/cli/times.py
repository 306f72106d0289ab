"""Spans and points of time as people write them on a command line: "90m", "7d", "2026-11-21T08:00", "-24h"."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
# Ten thousand years: what is longer, a datetime cannot hold either.
_MAX_SECONDS = 86_400 * 365 * 10_000


def parse_span(text: str) -> timedelta:
    """A length of time: a number and s, m, h, d or w.

    Raises:
        ValueError: says what is accepted.
    """
    match = _SPAN.fullmatch(text)
    if match is None or float(match[1]) * _SECONDS[match[2]] > _MAX_SECONDS:
        raise ValueError(f"{text!r} is no length of time: a number and s, m, h, d or w, e.g. 90m or 7d")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


def parse_time(text: str, now: Callable[[], datetime]) -> datetime:
    """A point in time: ISO 8601 (UTC where it names no offset), "now", or a span before now such as "-24h".

    `now` is asked only where the text is relative to it.

    Raises:
        ValueError: says what is accepted.
    """
    try:
        if text == "now":
            return now()
        if text.startswith("-"):
            return now() - parse_span(text[1:])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: ISO 8601 (UTC unless it says otherwise), now, or a span before now such as -24h"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
