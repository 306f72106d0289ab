"""The forecast of the grid's carbon intensity, made off the event loop and once for each state of the history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from common.carbon.forecast import MOST_FORECAST_HOURS, MOST_HISTORY_HOURS, forecast
from common.carbon.hours import hour_start
from common.carbon.intensity import IntensityProvider
from common.quality.interval import Interval

CONFIDENCE = 0.8

_Key = tuple[datetime, tuple[datetime, float], int]


class GridForecast:
    """Keeps the last forecast until another hour begins or the history has grown."""

    def __init__(self, intensities: IntensityProvider) -> None:
        self._intensities = intensities
        self._key: _Key | None = None
        self._kept: Sequence[tuple[datetime, Interval]] = ()
        self._lock = asyncio.Lock()

    async def hours(self, now: datetime, count: int) -> Sequence[tuple[datetime, Interval]]:
        """(start, gCO2eq/kWh) of the `count` hours, at most 48, after that of `now`; none where too little is known."""
        history = self._intensities.history(now, MOST_HISTORY_HOURS)
        if not history:
            return ()
        key = (hour_start(now), history[-1], len(history))
        async with self._lock:
            if key != self._key:
                kept = await asyncio.to_thread(forecast, history, now, MOST_FORECAST_HOURS, CONFIDENCE)
                self._kept, self._key = kept, key
            return self._kept[:count]
