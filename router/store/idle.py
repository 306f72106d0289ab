"""Devices without work in the database: how far each engine's totals are counted, and what was counted by hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, case, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.carbon.intensity import Signal
from common.energy.reading import EnergySource
from router.store.reports import Window
from router.store.signals import is_of
from router.store.tables import idle, idle_counters
from router.store.upsert import insert_new

_KEY = ("instance_id", "hour", "intensity_kind", "intensity_scope")
_SUMS = (
    "device_seconds",
    "seconds_without_energy",
    "energy_joules",
    "building_joules",
    "operational_grams",
    "embodied_grams",
)
_SOURCES = tuple(EnergySource)


@dataclass(frozen=True, slots=True)
class IdleCount:
    """How far the running totals of an engine's process are counted."""

    idle_seconds: float
    idle_joules: float | None
    """None where they were unknown when last counted."""
    updated_at: datetime
    """When the engine said so, on the service's clock."""


@dataclass(frozen=True, slots=True)
class IdleHour:
    """Idle time of one engine within an hour, and what it cost under one signal."""

    hour: datetime
    """Its first moment, UTC."""
    signal: Signal
    device_seconds: float
    seconds_without_energy: float
    """Of the device's, those of which energy is not known: in no sum of energy or operational carbon."""
    energy_joules: float
    energy_source: EnergySource | None
    """None where no energy is known."""
    building_joules: float
    """The energy times the building's PUE."""
    operational_grams: float
    embodied_grams: float


@dataclass(frozen=True, slots=True)
class IdleTotals:
    """Sums over one engine's idle time."""

    engine: str
    device_seconds: float
    seconds_without_energy: float
    energy_joules: float
    energy_source: EnergySource | None
    """The weakest; None where no energy is known."""
    building_joules: float
    operational_grams: float
    embodied_grams: float


def hour_of(moment: datetime) -> datetime:
    """The first moment of its hour (UTC)."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


class IdleRepository:
    """Within one transaction; `count` and `add` within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def count(self, instance_id: str, started_at: datetime) -> IdleCount:
        """How far an engine's totals are counted; nothing of them, since `started_at`, where it is new here. Until the
        transaction ends no other can count on from there."""
        new = {"instance_id": instance_id, "idle_seconds": 0.0, "idle_joules": 0.0, "updated_at": started_at}
        await insert_new(self._connection, idle_counters, [new], ("instance_id",))
        # SQLite has no other writer beside this transaction.
        query = select(idle_counters).where(idle_counters.c.instance_id == instance_id).with_for_update()
        row = (await self._connection.execute(query)).one()
        return IdleCount(row.idle_seconds, row.idle_joules, row.updated_at)

    async def add(self, instance_id: str, engine: str, hours: Sequence[IdleHour], count: IdleCount) -> None:
        """Adds what was idle since `count` was last told, and moves it on to `count`."""
        advanced = update(idle_counters).where(idle_counters.c.instance_id == instance_id)
        await self._connection.execute(advanced.values(**asdict(count)))
        if not hours:
            return
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(idle)
        new = statement.excluded
        weakest = case(
            *(
                (or_(idle.c.energy_source == source.value, new.energy_source == source.value), source.value)
                for source in reversed(_SOURCES)
            )
        )
        statement = statement.on_conflict_do_update(
            index_elements=list(_KEY),
            set_={name: idle.c[name] + new[name] for name in _SUMS} | {"engine": new.engine, "energy_source": weakest},
        )
        rows = [
            {
                "instance_id": instance_id,
                "hour": one.hour,
                "intensity_kind": one.signal.kind.value,
                "intensity_scope": one.signal.scope.value,
                "engine": engine,
                "energy_source": one.energy_source.value if one.energy_source else None,
                **{name: getattr(one, name) for name in _SUMS},
            }
            for one in hours
        ]
        await self._connection.execute(statement, rows)

    async def totals(self, window: Window, signal: Signal) -> tuple[IdleTotals, ...]:
        """Sums by engine, in order of name, over the hours that the window touches: within an hour nobody knows when a
        device was idle. The window's tenant is of no matter: idle time is the product's.

        Args:
            signal: idle time whose grams were counted under another one is left out.
        """
        sums = [func.sum(idle.c[name]).label(name) for name in _SUMS]
        weakest = func.max(
            case(*((idle.c.energy_source == source.value, rank) for rank, source in enumerate(_SOURCES)))
        ).label("weakest")
        query = select(idle.c.engine, *sums, weakest).where(*_within(window, signal)).group_by(idle.c.engine)
        totals = [
            IdleTotals(
                engine=row.engine,
                energy_source=None if row.weakest is None else _SOURCES[row.weakest],
                **{name: getattr(row, name) for name in _SUMS},
            )
            for row in await self._connection.execute(query)
        ]
        return tuple(sorted(totals, key=lambda one: one.engine))


def _within(window: Window, signal: Signal) -> list[ColumnElement[bool]]:
    conditions = [is_of(idle, signal)]
    if window.start is not None:
        conditions.append(idle.c.hour >= hour_of(window.start))
    if window.end is not None:
        conditions.append(idle.c.hour < window.end)
    return conditions
