"""Devices without work, charged to the product: what engines report of their idle time, by hour, in the database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from common.carbon.accounting import CarbonSettings, embodied_grams, operational_grams
from common.carbon.intensity import IntensityProvider
from common.clock import Clock
from common.limits import MAX_ID_CHARACTERS
from router.fleet.totals import EngineTotals
from router.store.database import Database, StoreUnavailable
from router.store.idle import IdleCount, IdleHour, IdleRepository, hour_of

PERIOD_SECONDS = 15.0
"""Wall time between two writings."""
LONGEST_SPREAD = timedelta(hours=48)
"""Idle time is spread over the hours in which nobody counted it: over the last of them, where they are more."""
HOUR = timedelta(hours=1)

# What an engine cannot have done. It is told from what it does by a wide margin: an engine that is refused is counted
# in full by its next report that is within bounds.
MAX_SECONDS = 10 * 365 * 86400.0
SLACK_SECONDS = 60.0
"""By which reports of one engine may reach routers late."""
MAX_WATTS = 20e3
SLACK_JOULES = 20e3
"""A counter of energy may lag behind a step."""

log = structlog.get_logger("idle")


@dataclass(frozen=True, slots=True)
class _Report:
    engine: str
    totals: EngineTotals
    at: datetime
    """On the service's clock."""
    wall_seconds: float
    started_at: datetime
    """The process, by what it told first: a simulated clock may run far ahead of it since."""
    intensities: IntensityProvider
    """Of the zone that it stands in."""


class IdleKeeper:
    """Writes down what engines' totals of idle time and energy have grown by. Every router does: how far an engine is
    counted is in the database, so that each second of it is counted once, whoever writes it. An engine's totals go on
    from its start: what a database or a router that was away has missed, the next report holds.

    What is lost is the time between the last report of an engine and its end.

    Engines idle in wall time, whatever the service's clock: under a scaled one the joules and device seconds of a
    simulated day are those that the simulation took.

    Args:
        clock: The service's, by whose hours carbon is counted.
        wall: Wall time.
        grid: Intensities of an engine's zone, by the engine's name.
        carbon: Of building and device, as for requests.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        wall: Clock,
        grid: Callable[[str], IntensityProvider],
        carbon: CarbonSettings,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wall = wall
        self._grid = grid
        self._carbon = carbon
        self._last: dict[str, _Report] = {}
        """By engine."""
        self._unwritten: dict[str, _Report] = {}
        """By the engine's instance, of which there are several once it has started anew."""
        self._warned: dict[str, str] = {}
        """Instance by engine."""
        self._database_away = False
        self._task: asyncio.Task[None] | None = None

    def heard(self, engine: str, totals: EngineTotals) -> None:
        """An engine has reported. Nonsense is left out, with one warning: it has told nothing."""
        now, wall_seconds = self._clock.now(), self._wall.monotonic()
        last = self._last.get(engine)
        if last is not None and last.totals.instance_id != totals.instance_id:
            last = None
        if fault := _fault(totals, wall_seconds, last):
            self._refuse(engine, totals, fault)
            return
        lived = timedelta(seconds=totals.busy_seconds + totals.idle_seconds)
        started_at = last.started_at if last else now - min(lived, LONGEST_SPREAD)
        report = _Report(engine, totals, now, wall_seconds, started_at, self._grid(engine))
        self._last[engine] = self._unwritten[totals.instance_id] = report

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="idle")

    async def close(self) -> None:
        """Writes what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            await self.write()

    async def write(self) -> None:
        """Counts what engines have last reported, each in a transaction; never raises for an outage of the database."""
        for instance_id, report in sorted(self._unwritten.items()):
            try:
                await self._count(report)
            except StoreUnavailable as error:
                if not self._database_away:
                    log.warning("database is down; idle time is counted once it is back", fault=error.fault)
                self._database_away = True
                return
            except Exception:
                # Whatever it was: other engines are counted, and this one another time.
                log.exception("idle time could not be counted", engine=report.engine)
                continue
            self._database_away = False
            if self._unwritten.get(instance_id) is report:
                del self._unwritten[instance_id]

    async def _count(self, report: _Report) -> None:
        totals = report.totals
        async with self._database.writing() as connection:
            idle = IdleRepository(connection)
            count = await idle.count(totals.instance_id, report.started_at)
            seconds = totals.idle_seconds - count.idle_seconds
            if seconds < -SLACK_SECONDS:
                self._refuse(report.engine, totals, f"its idle time is {-seconds:.1f} s less than it was")
                return
            # Another router has heard from the engine since.
            if seconds <= 0:
                return
            joules = None
            if totals.idle_joules is not None and count.idle_joules is not None:
                joules = totals.idle_joules - count.idle_joules
                if joules < 0:
                    self._refuse(report.engine, totals, f"its idle energy is {-joules} J less than it was")
                    return
            hours = tuple(self._hours(report, seconds, joules, count.updated_at))
            now_counted = IdleCount(totals.idle_seconds, totals.idle_joules, report.at)
            await idle.add(totals.instance_id, report.engine, hours, now_counted)

    def _hours(self, report: _Report, seconds: float, joules: float | None, since: datetime) -> Iterator[IdleHour]:
        """Spread evenly from `since` to the report, as nobody knows when in it the device was idle. An hour whose
        intensity is not known is charged at the present one."""
        until, intensities, carbon = report.at, report.intensities, self._carbon
        present = intensities.current(until)
        shares = hourly_shares(max(since, until - LONGEST_SPREAD), until)
        known: dict[datetime, float] = {}
        if past_hours := (hour_of(until) - shares[0][0]) // HOUR:
            known = {hour_of(hour): value for hour, value in intensities.history(until, past_hours + 1)}
        known[hour_of(until)] = present.g_per_kwh
        for hour, share in shares:
            energy_joules = (joules or 0.0) * share
            g_per_kwh = known.get(hour, present.g_per_kwh)
            yield IdleHour(
                hour=hour,
                signal=present.signal,
                device_seconds=seconds * share,
                seconds_without_energy=seconds * share if joules is None else 0.0,
                energy_joules=energy_joules,
                energy_source=None if joules is None else report.totals.idle_source,
                building_joules=energy_joules * carbon.pue,
                operational_grams=operational_grams(energy_joules, g_per_kwh, carbon.pue),
                embodied_grams=embodied_grams(seconds * share, carbon.embodied_grams_total, carbon.lifetime_seconds),
            )

    def _refuse(self, engine: str, totals: EngineTotals, fault: str) -> None:
        instance_id = totals.instance_id[:MAX_ID_CHARACTERS]
        if self._warned.get(engine) != instance_id:
            self._warned[engine] = instance_id
            log.warning("an engine's idle time is not counted", engine=engine, fault=fault)

    async def _run(self) -> None:
        while True:
            await self._wall.sleep(PERIOD_SECONDS)
            await self.write()


def hourly_shares(since: datetime, until: datetime) -> list[tuple[datetime, float]]:
    """(first moment of an hour, its share of the span), oldest first; all in the last hour where the span is empty."""
    span = until - since
    if span <= timedelta():
        return [(hour_of(until), 1.0)]
    shares = []
    hour = hour_of(since)
    while hour < until:
        shares.append((hour, (min(hour + HOUR, until) - max(hour, since)) / span))
        hour += HOUR
    return shares


def _fault(totals: EngineTotals, wall_seconds: float, last: _Report | None) -> str:
    """What is wrong with totals, given the report before of the same process; empty where nothing is."""
    if len(totals.instance_id) > MAX_ID_CHARACTERS:
        return f"its instance_id has {len(totals.instance_id)} characters; at most {MAX_ID_CHARACTERS}"
    for name, value in (("busy", totals.busy_seconds), ("idle", totals.idle_seconds)):
        if not 0 <= value <= MAX_SECONDS:
            return f"it was {name} for {value} s; from 0 to {MAX_SECONDS:g}"
    joules = totals.idle_joules
    if joules is not None and not (joules >= 0 and math.isfinite(joules)):
        return f"its idle energy is {joules} J; finite, and at least 0"
    seconds = totals.idle_seconds
    if last is not None:
        elapsed_seconds = wall_seconds - last.wall_seconds
        seconds -= last.totals.idle_seconds
        if not 0 <= seconds <= elapsed_seconds + SLACK_SECONDS:
            return f"its idle time went on by {seconds:.1f} s within {elapsed_seconds:.1f} s"
        before = last.totals.idle_joules
        joules = None if joules is None or before is None else joules - before
    if joules is not None and not 0 <= joules <= seconds * MAX_WATTS + SLACK_JOULES:
        return f"its idle energy went on by {joules} J within {seconds:.1f} idle seconds"
    return ""
