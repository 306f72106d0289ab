"""What quality budgets over a day go by: the day's requests so far, over all routers, and the hours that are left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from common.carbon.accounting import CarbonSettings
from common.carbon.hours import HOUR, day_start, hour_start
from common.carbon.intensity import IntensityProvider
from router.directives.quality_budget import over_the_day
from router.grid_forecast import GridForecast
from router.optimizer.costs import request_grams
from router.optimizer.grants import Day, Hour
from router.optimizer.traffic import RECENT_HOURS, Cells, hours_left, served_by_policy
from router.snapshot import SnapshotKeeper
from router.store.database import Database, StoreUnavailable
from router.store.served import ServedRepository

FRESH_FOR: Final = HOUR
"""How long counts stand while the database is away. After that nobody knows what was spent: no more is."""

log = structlog.get_logger("quality budget")


class QualityDays:
    """Keeps the hours' counts of the last three days in memory, and makes of them what the planner needs.

    The present hour and the one before are read each time; the day's other hours once an hour, and after an outage, as
    routers' outboxes may deliver late. Without a budget over the day nothing is read.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        intensities: IntensityProvider,
        forecast: GridForecast,
        carbon: CarbonSettings,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._intensities = intensities
        self._forecast = forecast
        self._carbon = carbon
        self._counts: dict[datetime, Cells] = {}
        """By hour."""
        self._read_at: datetime | None = None
        """When the database last answered."""
        self._stale = False

    async def read(self, now: datetime) -> Day | None:
        """The rest of the day of `now`; None where no policy has a budget over it, or where the requests so far are not
        known: then each task keeps the floor at any time, which is the safe side."""
        if not (policies := over_the_day(self._keeper.snapshot.policies)):
            return None
        await self._refresh(now)
        if self._read_at is None or now - self._read_at > FRESH_FOR:
            return None
        # Of hundreds of tasks it takes tens of milliseconds, for which no request should wait.
        directives = self._keeper.snapshot.directives.values()
        served = await asyncio.to_thread(
            served_by_policy, self._counts, {directive.name: directive.revision for directive in directives}, now
        )
        return Day(
            await self._ahead(now),
            {policy.name: served[policy.name] for policy in policies if policy.name in served},
            lambda cost, g_per_kwh: request_grams(cost, g_per_kwh, self._carbon),
        )

    async def _refresh(self, now: datetime) -> None:
        """Takes in what all routers have written; never raises for an outage of the database."""
        since = self._unread_since(now)
        try:
            async with self._database.reading() as connection:
                found = await ServedRepository(connection).by_hour(since, hour_start(now) + HOUR)
        except StoreUnavailable as error:
            if not self._stale:
                log.warning("database is down; quality budgets over the day go by what it last said", fault=error.fault)
            self._stale = True
            return
        first = _first_hour(now)
        kept = {hour: counts for hour, counts in self._counts.items() if first <= hour < since}
        self._counts, self._read_at, self._stale = kept | found, now, False

    def _unread_since(self, now: datetime) -> datetime:
        """The first of the hours whose counts may be others than when they were last read."""
        last, hour = self._read_at, hour_start(now)
        if last is None:
            return _first_hour(now)
        if hour_start(last) == hour and not self._stale:
            return hour - HOUR
        return max(_first_hour(now), min(day_start(now), hour_start(last) - HOUR))

    async def _ahead(self, now: datetime) -> Sequence[Hour]:
        hour, *to_come = hours_left(now)
        present = self._intensities.current(now).g_per_kwh
        expected = {start: interval.value for start, interval in await self._forecast.hours(now, len(to_come))}
        return [
            Hour((hour + HOUR - now) / HOUR, present),
            *(Hour(1.0, expected.get(start, present)) for start in to_come),
        ]


def _first_hour(now: datetime) -> datetime:
    return hour_start(now) - timedelta(hours=RECENT_HOURS - 1)
