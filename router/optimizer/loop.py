"""Keeps the plan up to date: on a timer, and whenever directives, policies, bounds, or engines and their prices have
changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Protocol

import structlog

from common.carbon.accounting import CarbonSettings
from common.carbon.hours import HOUR, hour_start
from common.carbon.intensity import IntensityProvider
from common.clock import Clock
from router.directives.quality_budget import over_the_day
from router.optimizer.costs import Cost, CostBook, request_grams
from router.optimizer.grants import Day
from router.optimizer.latency import LatencyBook
from router.optimizer.problem import make_plan
from router.snapshot import SnapshotKeeper

log = structlog.get_logger("planner")


class Days(Protocol):
    """What quality budgets over a day go by."""

    async def read(self, now: datetime) -> Day | None:
        """None where no policy has one, or where too little is known."""
        ...


class Fleet(Protocol):
    """What plans go by of the engines."""

    def accepting(self) -> Collection[str]:
        """ "name@digest" of the models that some engine accepts requests for."""
        ...

    def g_per_kwh(self) -> Mapping[str, float]:
        """Of the cleanest grid that a model's engines stand in, by "name@digest", where that is not the default's."""
        ...


class Planner:
    """Plans in a thread, so that solving holds up no request, and puts each plan in force as it is made.

    A plan that cannot be made leaves the last one in force. That is safe: whatever has closed since is filtered out
    when a request is decided, and its share falls to L0. What a quality budget over the day grants ends with the hour,
    so where a policy has one, each hour begins with a plan.

    Args:
        interval_seconds: On the service's clock.
        days: None: such budgets are kept by each task at any time.
        fleet: None: callers have engines of their own alone, in the default's grid.
    """

    def __init__(
        self,
        keeper: SnapshotKeeper,
        costs: CostBook,
        intensities: IntensityProvider,
        carbon: CarbonSettings,
        clock: Clock,
        interval_seconds: float,
        latencies: LatencyBook | None = None,
        days: Days | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self._keeper = keeper
        self._costs = costs
        self._intensities = intensities
        self._carbon = carbon
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._latencies = latencies
        self._days = days
        self._fleet = fleet
        self._tried_at = clock.now()
        self._planning = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def grams(self, cost: Cost) -> float:
        """Carbon of a request of that cost at the present intensity of its model's grid."""
        return self._pricing(self._intensities.current(self._clock.now()).g_per_kwh)(cost)

    def _pricing(self, default_g_per_kwh: float) -> Callable[[Cost], float]:
        of_model = self._fleet.g_per_kwh() if self._fleet is not None else {}
        return lambda cost: request_grams(cost, of_model.get(cost.model, default_g_per_kwh), self._carbon)

    async def replan(self) -> None:
        """Makes a plan from what is known now; it is in force on return. Never raises."""
        async with self._planning:
            now = self._tried_at = self._clock.now()
            day = await self._day(now)
            snapshot = self._keeper.snapshot
            try:
                g_per_kwh = self._intensities.current(now).g_per_kwh
                plan = await asyncio.to_thread(
                    make_plan,
                    snapshot,
                    self._costs,
                    self._pricing(g_per_kwh),
                    now,
                    g_per_kwh,
                    self._latencies,
                    day,
                    self._fleet.accepting() if self._fleet is not None else (),
                )
            except Exception:
                log.exception("no plan could be made; the last one stays", made_at=snapshot.plan.made_at)
                return
            self._keeper.put_plan(plan)
            log.debug("planned", entries=len(plan.entries), g_per_kwh=g_per_kwh)

    def replan_soon(self) -> None:
        """Has the background plan anew, once for all calls until it does."""
        self._wanted.set()

    def start(self) -> None:
        """Begins to plan on the timer, and where `replan_soon` asks for it."""
        self._tasks = [
            asyncio.create_task(self._on_timer(), name="planner"),
            asyncio.create_task(self._on_request(), name="planner, on request"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _day(self, now: datetime) -> Day | None:
        try:
            return None if self._days is None else await self._days.read(now)
        except Exception:
            log.exception("quality budgets over the day are kept by each task at any time")
            return None

    async def _on_timer(self) -> None:
        while True:
            left_seconds = self._interval_seconds
            while left_seconds > 0 and not self._grants_ended():
                now = self._clock.now()
                wait_seconds = min(left_seconds, (hour_start(now) + HOUR - now).total_seconds())
                await self._clock.sleep(wait_seconds)
                left_seconds -= wait_seconds
            await self.replan()

    def _grants_ended(self) -> bool:
        """Whether a budget is over the day, and no plan was tried in the present hour yet."""
        tried_in, present = hour_start(self._tried_at), hour_start(self._clock.now())
        return tried_in != present and bool(over_the_day(self._keeper.snapshot.policies))

    async def _on_request(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self.replan()
