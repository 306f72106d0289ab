"""Keeps the plan up to date: on a timer, and whenever directives, policies, bounds or engines' prices have changed."""

from __future__ import annotations

import asyncio

import structlog

from common.carbon.accounting import CarbonSettings, embodied_grams, operational_grams
from common.carbon.intensity import IntensityProvider
from common.clock import Clock
from router.optimizer.costs import Cost, CostBook
from router.optimizer.latency import LatencyBook
from router.optimizer.problem import make_plan
from router.snapshot import SnapshotKeeper

log = structlog.get_logger("planner")


class Planner:
    """Plans in a thread, so that solving holds up no request, and puts each plan in force as it is made.

    A plan that cannot be made leaves the last one in force. That is safe: whatever has closed since is filtered out
    when a request is decided, and its share falls to L0.

    Args:
        interval_seconds: On the service's clock.
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
    ) -> None:
        self._keeper = keeper
        self._costs = costs
        self._intensities = intensities
        self._carbon = carbon
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._latencies = latencies
        self._planning = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def grams(self, cost: Cost) -> float:
        """Carbon of a request of that cost at the present intensity."""
        return self._grams(cost, self._intensities.current(self._clock.now()).g_per_kwh)

    async def replan(self) -> None:
        """Makes a plan from what is known now; it is in force on return. Never raises."""
        async with self._planning:
            snapshot, now = self._keeper.snapshot, self._clock.now()
            try:
                g_per_kwh = self._intensities.current(now).g_per_kwh
                plan = await asyncio.to_thread(
                    make_plan,
                    snapshot,
                    self._costs,
                    lambda cost: self._grams(cost, g_per_kwh),
                    now,
                    g_per_kwh,
                    self._latencies,
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

    async def _on_timer(self) -> None:
        while True:
            await self._clock.sleep(self._interval_seconds)
            await self.replan()

    async def _on_request(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self.replan()

    def _grams(self, cost: Cost, g_per_kwh: float) -> float:
        carbon = self._carbon
        return operational_grams(cost.energy_joules, g_per_kwh, carbon.pue) + embodied_grams(
            cost.busy_seconds, carbon.embodied_grams_total, carbon.lifetime_seconds
        )
