"""A policy against recorded requests: what the code that decides would have made of each. Nothing is generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from router.directives.bounds import Snapshot
from router.directives.policy import Policy
from router.optimizer.costs import Cost, CostBook
from router.optimizer.latency import LatencyBook
from router.optimizer.problem import make_plan
from router.replay.simulation import Simulated, Simulation
from router.store.database import Database
from router.store.replay import ReplayRepository
from router.store.reports import ReportRepository, Window

MOST_REQUESTS = 200_000
"""The newest that one simulation looks at."""
DEFAULT_SPAN = timedelta(days=7)
COSTS_FROM = timedelta(days=7)
"""How far back from now costs are looked for, where the window does not begin before that."""


class Simulator:
    """Has policies decide for recorded requests, one simulation at a time: each takes seconds of a core.

    Args:
        book, latencies: What the planner knows of requests' costs and answer times.
        grams: Carbon of a request at the present intensity; None where that is unknown.
        most_requests: The newest so many of the policy's tenant and task are looked at.
    """

    def __init__(
        self,
        database: Database,
        book: CostBook,
        grams: Callable[[Cost], float | None],
        latencies: LatencyBook | None = None,
        most_requests: int = MOST_REQUESTS,
    ) -> None:
        self._database = database
        self._book = book
        self._grams = grams
        self._latencies = latencies
        self._most_requests = most_requests
        self._at_work = asyncio.Lock()

    async def simulate(
        self, candidate: Policy, start: datetime, end: datetime, snapshot: Snapshot, now: datetime
    ) -> Simulated:
        """What `candidate` would have made of requests that started in [start, end), by what is known now.

        Args:
            candidate: In place of the snapshot's policy of its name, where there is one.
        """
        policies = (candidate, *(policy for policy in snapshot.policies if policy.name != candidate.name))
        alone = replace(snapshot, policies=(candidate,))
        async with self._at_work:
            models = {directive.model for directive in snapshot.directives.values()}
            plan = await asyncio.to_thread(
                make_plan, alone, self._book, self._price, now, None, self._latencies, accepting=models
            )
            async with self._database.reading() as connection:
                replay = ReplayRepository(connection)
                costs = await replay.cell_costs(Window(min(start, now - COSTS_FROM)))
                simulation = Simulation(candidate, policies, replace(alone, plan=plan), costs, self._book, now)
                window, task = Window(start, end, candidate.tenant), candidate.task
                reports = ReportRepository(connection)
                signal = await reports.newest_signal(window, task)
                others = await reports.other_signals(window, signal, task, evaluation=False)
                since = await replay.newest(window, task, self._most_requests, signal)
                async for chunk in replay.recorded(replace(window, start=since or start), task, signal):
                    await asyncio.to_thread(simulation.add, chunk)
        simulated = simulation.result()
        more = [
            f"{other.requests:,} requests whose carbon was counted as {other.signal} are left out: that of the newest "
            f"is counted as {signal}, and the two are never added"
            for other in others
        ]
        if since is not None:
            more.append(f"only the newest {self._most_requests:,} requests were looked at, since {since.isoformat()}")
        return replace(simulated, assumptions=(*simulated.assumptions, *more))

    def _price(self, cost: Cost) -> float:
        # Carbon only orders the directives: without an intensity, energy does as well.
        grams = self._grams(cost)
        return cost.energy_joules if grams is None else grams
