"""Keeps what decisions depend on in memory, and up to date with the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from common.clock import Clock
from router.directives.bounds import Snapshot
from router.directives.levels import L0, SEEDED
from router.directives.policy import Policy
from router.optimizer.plan import Plan
from router.store.database import Database, StoreUnavailable, change_counter
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.quality import QualityRepository
from router.store.revisions import Action

POLL_SECONDS = 1.0
"""Wall time; a directive that was closed at one router is out of force at the others within 5 s."""

DEFAULT_POLICY = Policy(name="default", directives=tuple(directive.name for directive in SEEDED))
"""Decides and records for everybody, and serves L0, until an admin turns it on."""

SEEDER = "pith"
"""As who the seed is written."""

log = structlog.get_logger("snapshot")


async def seed(database: Database, clock: Clock) -> None:
    """Gives a new database the published directives and the default policy; one that was changed is left alone."""
    async with database.changing() as connection:
        directives, policies = DirectiveRepository(connection), PolicyRepository(connection)
        # Rows of deleted ones stay, so this tells a new database from one that was cleared on purpose.
        if await policies.last_revision(DEFAULT_POLICY.name):
            return
        now = clock.now()
        for directive in SEEDED:
            stamped = replace(directive, updated_at=now, updated_by=SEEDER)
            await directives.add(stamped, Action.CREATE, "shipped with Pith")
        policy = replace(DEFAULT_POLICY, updated_at=now, updated_by=SEEDER)
        await policies.add(policy, Action.CREATE, "shipped with Pith")


class SnapshotKeeper:
    """The current `Snapshot`. While the database is down, the last one stays in force and `stale` is true.

    Args:
        poll_seconds: Wall time between two looks at the change counter.
    """

    def __init__(self, database: Database, clock: Clock, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._lock = asyncio.Lock()
        self._counter: int | None = None
        self._told: int | None = None
        self._listeners: list[Callable[[], Awaitable[None]]] = []
        self._polling: asyncio.Task[None] | None = None
        self.snapshot = Snapshot({L0.name: L0}, (), {}, Plan({}, clock.now()))
        self.stale = False
        """The database did not answer when it was last asked."""

    def subscribe(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Has `listener` awaited after directives, policies or bounds have changed; not after a new plan.

        Who calls `refresh` after a change waits for it too: the planner, so that what a bound opens is in the plan.
        """
        self._listeners.append(listener)

    async def start(self) -> None:
        """Loads, then polls until `close`. Raises StoreUnavailable where there is nothing to begin with."""
        await self._load()
        self._polling = asyncio.create_task(self._poll(), name="snapshot")

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait({self._polling})

    async def refresh(self) -> None:
        """Takes in what has changed in the database, if anything; never raises for its outage."""
        try:
            await self._load()
        except StoreUnavailable as error:
            if not self.stale:
                log.warning("database is down; the last snapshot stays in force", fault=error.fault)
            self.stale = True

    def put_plan(self, plan: Plan) -> None:
        self.snapshot = replace(self.snapshot, plan=plan)

    async def _load(self) -> None:
        # One at a time, so that an older state never replaces a newer one.
        async with self._lock:
            async with self._database.reading() as connection:
                counter = await change_counter(connection)
                if changed := counter != self._counter:
                    directives = await DirectiveRepository(connection).all()
                    policies = await PolicyRepository(connection).all()
                    bounds = await QualityRepository(connection).in_force()
            if self.stale:
                self.stale = False
                log.info("database is back")
            if changed:
                self.snapshot = Snapshot(
                    directives={directive.name: directive for directive in (L0, *directives)},
                    policies=policies,
                    bounds={bound.cell: bound for bound in bounds},
                    plan=self.snapshot.plan,
                )
                self._counter = counter
        # Apart from the counter: who is telling them may be cancelled with its call, or one of them may fail. Then the
        # next look tells them.
        if self._told == counter:
            return
        for listener in self._listeners:
            await listener()
        self._told = counter

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.refresh()
            except Exception:
                # Whatever it was: without polling, a directive closed elsewhere would stay open here for good.
                log.exception("snapshot could not be refreshed")
