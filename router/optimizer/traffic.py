"""Requests that plans decided for: the day's so far, and those to come in each hour left of it, from hourly counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from common.carbon.hours import HOUR, day_start, hour_start, next_day
from router.directives.levels import L0
from router.optimizer.grants import EARLIER_REVISION, Class, Served

Cells = Mapping[tuple[str, str, str, str, int | None], int]
"""Requests by policy, model, task, directive and its revision, which is None where a policy in shadow served none."""

RECENT_HOURS: Final = 72
"""Over which requests to come are told from those that came; the present hour is one of them."""
PACE_REQUESTS: Final = 20
"""Of a day that is slower than those before it, these many requests are taken to have come as on them."""


def served_by_policy(
    counts: Mapping[datetime, Cells], revisions: Mapping[str, int], now: datetime
) -> dict[str, dict[Class, Served]]:
    """By policy, what a day's quality budget goes by.

    Args:
        counts: By hour, those of the day of `now` and as many before as are to tell what is usual.
        revisions: Of directives at present, by name.
    """
    day = day_start(now)
    today: defaultdict[tuple[str, Class], Counter[str]] = defaultdict(Counter)
    by_hour: defaultdict[tuple[str, Class], Counter[datetime]] = defaultdict(Counter)
    for hour, cells in counts.items():
        for (policy, model, task, directive, revision), count in cells.items():
            of = policy, (model, task)
            by_hour[of][hour] += count
            if hour >= day:
                # The bounds of now tell nothing of another wording.
                is_present = directive == L0.name or revision in (None, revisions.get(directive))
                today[of][directive if is_present else EARLIER_REVISION] += count
    found: defaultdict[str, dict[Class, Served]] = defaultdict(dict)
    paces = _paces(by_hour, now)
    for of, requests in by_hour.items():
        policy, name = of
        # Where a class was first seen within the present hour, a few minutes' requests tell no rate.
        first = min(requests)
        hours = max((now - first) / HOUR, 1.0)
        usual = [_usual(requests, first, start) for start in hours_left(now)]
        ahead = [expected * paces[policy] for expected in usual if expected is not None]
        known = len(ahead) == len(usual)
        found[policy][name] = Served(today.get(of, {}), requests.total() / hours, ahead if known else ())
    return found


def hours_left(now: datetime) -> list[datetime]:
    """Of the day, the present one first."""
    hour = hour_start(now)
    return [hour + lead * HOUR for lead in range(round((next_day(now) - hour) / HOUR))]


def _usual(requests: Mapping[datetime, int], first: datetime, hour: datetime) -> float | None:
    """Mean over the days before of the same hour's requests, from the first hour on that had any; None without one."""
    before = (hour - timedelta(days=days) for days in range(1, RECENT_HOURS // 24 + 1))
    counted = [requests.get(start, 0) for start in before if start >= first]
    return sum(counted) / len(counted) if counted else None


def _paces(by_hour: Mapping[tuple[str, Class], Mapping[datetime, int]], now: datetime) -> Mapping[str, float]:
    """Today's requests of each policy so far as a share of the usual, at most 1.

    What is expected and does not come would have been spent. Of a day that is busier than usual as much may be
    expected as usual: the rest is surely seen before it is spent.
    """
    present, since = hour_start(now), day_start(now)
    came: Counter[str] = Counter()
    usual: defaultdict[str, float] = defaultdict(float)
    for (policy, _), requests in by_hour.items():
        first = min(requests)
        for hour in (since + passed * HOUR for passed in range(round((present - since) / HOUR) + 1)):
            if (expected := _usual(requests, first, hour)) is not None:
                came[policy] += requests.get(hour, 0)
                usual[policy] += expected * min((now - hour) / HOUR, 1.0)
    return {policy: min((came[policy] + PACE_REQUESTS) / (usual[policy] + PACE_REQUESTS), 1.0) for policy, _ in by_hour}
