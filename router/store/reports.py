"""The ledger as sums: what was spent by any dimensions. No sum adds grams of two signals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from common.carbon.accounting import JOULES_PER_KWH
from common.carbon.intensity import Signal
from common.energy.reading import EnergySource
from router.store.columns import UtcDateTime
from router.store.signals import is_of, signal_of
from router.store.tables import idle, ledger, ratings

SERVING = ledger.c.evaluation_sample_id == ""
EVALUATION = ledger.c.evaluation_sample_id != ""
_SOURCES = tuple(EnergySource)
# Callers that report no time on a device leave 0 s, which is none only where no energy was used either.
EMBODIED_KNOWN = and_(ledger.c.embodied_grams.is_not(None), or_(ledger.c.busy_seconds > 0, ledger.c.energy_joules == 0))
# Rows from before the PUE was kept tell it by their grams, unless the grid emitted nothing.
_BUILDING_JOULES = case(
    (ledger.c.pue.is_not(None), ledger.c.energy_joules * ledger.c.pue),
    (ledger.c.intensity_g_per_kwh > 0, ledger.c.operational_grams / ledger.c.intensity_g_per_kwh * JOULES_PER_KWH),
    else_=ledger.c.energy_joules,
)


class _DayOf(FunctionElement[datetime]):
    """The first moment of a time's day, UTC, whatever the session's time zone."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(_DayOf, "sqlite")
def _day_of_sqlite(element: _DayOf, compiler: SQLCompiler, **options: Any) -> str:
    # Times are kept as text, in UTC: so is this one.
    return f"strftime('%Y-%m-%d 00:00:00.000000', {compiler.process(element.clauses, **options)})"


@compiles(_DayOf, "postgresql")
def _day_of_postgresql(element: _DayOf, compiler: SQLCompiler, **options: Any) -> str:
    return f"date_trunc('day', {compiler.process(element.clauses, **options)}, 'UTC')"


@dataclass(frozen=True, slots=True)
class Window:
    """Requests that started in [start, end), of one tenant or, where it is empty, of all."""

    start: datetime | None = None
    end: datetime | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over requests; energy and carbon over those whose carbon is known, under one signal."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    energy_joules: float
    building_joules: float
    """The energy times the building's PUE."""
    operational_grams: float
    embodied_grams: float
    requests_without_energy: int
    """In no sum of energy or carbon."""
    output_tokens_without_energy: int
    """Theirs, which are in `output_tokens`."""
    requests_without_embodied: int
    """Of those whose energy is known; they add nothing to `embodied_grams`."""
    energy_source: EnergySource | None
    """The weakest; None where no energy is known."""
    rated_requests: int
    mean_rating: float | None
    """None where nobody rated."""

    @property
    def grams(self) -> float:
        return self.operational_grams + self.embodied_grams


@dataclass(frozen=True, slots=True)
class OtherSignal:
    """What the sums under one signal leave out, as its grams count something else."""

    signal: Signal
    requests: int
    evaluation_requests: int
    """Of these, what evaluators asked for."""
    energy_joules: float


DIMENSIONS: Mapping[str, ColumnElement[Any]] = {
    "tenant": ledger.c.tenant,
    "task": ledger.c.task,
    "directive": ledger.c.directive,
    "model": ledger.c.model,
    "hour": ledger.c.started_hour,
    "day": _DayOf(ledger.c.started_hour),
    "policy": ledger.c.policy,
    "engine": ledger.c.engine,
    "reason": ledger.c.reason,
}
"""What totals may be told apart by."""


class ReportRepository:
    """Within one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def newest_signal(self, window: Window, task: str = "") -> Signal | None:
        """What was counted last: by requests or, where none of them has carbon, by evaluation, or by idle devices. None
        where nothing in the window has carbon.

        Args:
            task: Unless empty, only requests of this task are looked at.
        """
        counted = ledger.c.intensity_kind.is_not(None)
        requests = select(ledger.c.intensity_kind, ledger.c.intensity_scope).where(*within(window), counted).limit(1)
        # In the order of the key too: two routers may disagree at the same moment, two reports must not.
        requests = requests.order_by(ledger.c.started_at.desc(), ledger.c.intensity_kind, ledger.c.intensity_scope)
        if task:
            return await self._signal(requests.where(SERVING, ledger.c.task == task))
        found = await self._signal(requests.where(SERVING))
        if found is None and not window.tenant:
            found = await self._signal(requests.where(EVALUATION))
        if found is None and not window.tenant:
            idle_time = select(idle.c.intensity_kind, idle.c.intensity_scope).where(*_hours_within(window)).limit(1)
            found = await self._signal(
                idle_time.order_by(idle.c.hour.desc(), idle.c.intensity_kind, idle.c.intensity_scope)
            )
        return found

    async def totals(
        self,
        window: Window,
        signal: Signal | None,
        dimensions: Collection[str] = (),
        *,
        evaluation: bool = False,
    ) -> tuple[tuple[Mapping[str, Any], Totals], ...]:
        """(values of `dimensions`, sums) for each combination that occurs, in order of the values.

        Args:
            signal: Requests whose carbon was counted under another one are left out; those whose carbon is unknown are
                counted as such. None: only these.
            dimensions: names of `DIMENSIONS`; without any there is one row, whatever the window holds.
            evaluation: the answers that evaluators asked for, instead of those that tenants did.
        """
        columns = [DIMENSIONS[name].label(name) for name in dimensions]
        of_known = known(signal)
        rated = and_(ratings.c.tenant == ledger.c.tenant, ratings.c.request_id == ledger.c.request_id)
        query = (
            select(
                *columns,
                func.count().label("requests"),
                func.sum(ledger.c.prompt_tokens).label("prompt_tokens"),
                func.sum(ledger.c.output_tokens).label("output_tokens"),
                func.sum(case((of_known, ledger.c.energy_joules))).label("energy_joules"),
                func.sum(case((of_known, _BUILDING_JOULES))).label("building_joules"),
                func.sum(case((of_known, ledger.c.operational_grams))).label("operational_grams"),
                func.sum(case((and_(of_known, EMBODIED_KNOWN), ledger.c.embodied_grams))).label("embodied_grams"),
                func.count(case((of_known, 1))).label("with_energy"),
                func.sum(case((of_known, ledger.c.output_tokens))).label("output_tokens_with_energy"),
                func.count(case((and_(of_known, not_(EMBODIED_KNOWN)), 1))).label("without_embodied"),
                func.max(
                    case(
                        *(
                            (and_(of_known, ledger.c.energy_source == source.value), rank)
                            for rank, source in enumerate(_SOURCES)
                        )
                    )
                ).label("weakest"),
                func.count(ratings.c.rating).label("rated"),
                func.avg(ratings.c.rating).label("rating"),
            )
            .select_from(ledger.outerjoin(ratings, rated))
            .where(*within(window), of_no_other(signal), EVALUATION if evaluation else SERVING)
        )
        rows = (await self._connection.execute(query.group_by(*columns))).all()
        keyed = [({name: getattr(row, name) for name in dimensions}, _totals(row)) for row in rows]
        return tuple(sorted(keyed, key=lambda pair: tuple(pair[0].values())))

    async def other_signals(
        self, window: Window, signal: Signal | None, task: str = "", *, evaluation: bool
    ) -> tuple[OtherSignal, ...]:
        """What `totals` under the signal leaves out, the most requests first.

        Args:
            task: Unless empty, only requests of this task.
            evaluation: those that evaluators asked for as well.
        """
        conditions = [*within(window), *([ledger.c.task == task] if task else []), *([] if evaluation else [SERVING])]
        kind, scope = ledger.c.intensity_kind, ledger.c.intensity_scope
        query = (
            select(
                kind,
                scope,
                func.count().label("requests"),
                func.count(case((EVALUATION, 1))).label("evaluation_requests"),
                func.sum(ledger.c.energy_joules).label("energy_joules"),
            )
            .where(*conditions, not_(of_no_other(signal)))
            .group_by(kind, scope)
        )
        rows = await self._connection.execute(query)
        others = [
            OtherSignal(signal_of(row), row.requests, row.evaluation_requests, row.energy_joules or 0.0) for row in rows
        ]
        return tuple(sorted(others, key=lambda other: (-other.requests, str(other.signal))))

    async def _signal(self, query: Select[Any]) -> Signal | None:
        row = (await self._connection.execute(query)).first()
        return None if row is None else signal_of(row)


def of_no_other(signal: Signal | None) -> ColumnElement[bool]:
    """That a row of the ledger may be in sums under the signal: its grams are, or it has none."""
    return or_(is_of(ledger, signal), ledger.c.intensity_kind.is_(None))


def within(window: Window) -> list[ColumnElement[bool]]:
    """That a row of the ledger is of the window."""
    conditions = []
    if window.start is not None:
        conditions.append(ledger.c.started_at >= window.start)
    if window.end is not None:
        conditions.append(ledger.c.started_at < window.end)
    if window.tenant:
        conditions.append(ledger.c.tenant == window.tenant)
    return conditions


def known(signal: Signal | None) -> ColumnElement[bool]:
    """That a row's energy and carbon are known, the grams under the signal."""
    return and_(is_of(ledger, signal), ledger.c.energy_joules.is_not(None), ledger.c.operational_grams.is_not(None))


def _hours_within(window: Window) -> list[ColumnElement[bool]]:
    """That a row of the idle time is of an hour that the window touches."""
    conditions = []
    if window.start is not None:
        conditions.append(idle.c.hour >= window.start.astimezone(UTC).replace(minute=0, second=0, microsecond=0))
    if window.end is not None:
        conditions.append(idle.c.hour < window.end)
    return conditions


def _totals(row: Any) -> Totals:
    return Totals(
        requests=row.requests,
        prompt_tokens=int(row.prompt_tokens or 0),
        output_tokens=int(row.output_tokens or 0),
        energy_joules=row.energy_joules or 0.0,
        building_joules=row.building_joules or 0.0,
        operational_grams=row.operational_grams or 0.0,
        embodied_grams=row.embodied_grams or 0.0,
        requests_without_energy=row.requests - row.with_energy,
        output_tokens_without_energy=int(row.output_tokens or 0) - int(row.output_tokens_with_energy or 0),
        requests_without_embodied=row.without_embodied,
        energy_source=None if row.weakest is None else _SOURCES[row.weakest],
        rated_requests=row.rated,
        mean_rating=row.rating,
    )
