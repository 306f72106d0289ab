"""The ledger as sums: what was spent by any dimensions, and what the counterfactual is estimated from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from common.energy.reading import EnergySource
from router.counterfactual import Stratum
from router.directives.decide import Reason
from router.directives.levels import L0
from router.store.columns import UtcDateTime
from router.store.tables import ledger, ratings

SERVING = ledger.c.evaluation_sample_id == ""
EVALUATION = ledger.c.evaluation_sample_id != ""
_SOURCES = tuple(EnergySource)
# Callers that report no time on a device leave 0 s, which is none only where no energy was used either.
_EMBODIED_KNOWN = and_(
    ledger.c.embodied_grams.is_not(None), or_(ledger.c.busy_seconds > 0, ledger.c.energy_joules == 0)
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
    """Sums over requests; energy and carbon over those whose energy is known."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    energy_joules: float
    operational_grams: float
    embodied_grams: float
    requests_without_energy: int
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

    async def totals(
        self, window: Window, dimensions: Collection[str] = (), *, evaluation: bool = False
    ) -> tuple[tuple[Mapping[str, Any], Totals], ...]:
        """(values of `dimensions`, sums) for each combination that occurs, in order of the values.

        Args:
            dimensions: names of `DIMENSIONS`; without any there is one row, whatever the window holds.
            evaluation: the answers that evaluators asked for, instead of those that tenants did.
        """
        columns = [DIMENSIONS[name].label(name) for name in dimensions]
        known = ledger.c.energy_joules.is_not(None)
        rated = and_(ratings.c.tenant == ledger.c.tenant, ratings.c.request_id == ledger.c.request_id)
        query = (
            select(
                *columns,
                func.count().label("requests"),
                func.sum(ledger.c.prompt_tokens).label("prompt_tokens"),
                func.sum(ledger.c.output_tokens).label("output_tokens"),
                func.sum(ledger.c.energy_joules).label("energy_joules"),
                func.sum(case((known, ledger.c.operational_grams))).label("operational_grams"),
                func.sum(case((and_(known, _EMBODIED_KNOWN), ledger.c.embodied_grams))).label("embodied_grams"),
                func.count(case((and_(known, not_(_EMBODIED_KNOWN)), 1))).label("without_embodied"),
                func.count(ledger.c.energy_joules).label("with_energy"),
                func.max(
                    case(*((ledger.c.energy_source == source.value, rank) for rank, source in enumerate(_SOURCES)))
                ).label("weakest"),
                func.count(ratings.c.rating).label("rated"),
                func.avg(ratings.c.rating).label("rating"),
            )
            .select_from(ledger.outerjoin(ratings, rated))
            .where(*within(window), EVALUATION if evaluation else SERVING)
        )
        rows = (await self._connection.execute(query.group_by(*columns))).all()
        keyed = [({name: getattr(row, name) for name in dimensions}, _totals(row)) for row in rows]
        return tuple(sorted(keyed, key=lambda pair: tuple(pair[0].values())))

    async def strata(self, window: Window) -> tuple[Stratum, ...]:
        """What the counterfactual is estimated from, by (model, task, policy) and whether embodied carbon is known: of
        requests whose energy is known."""
        # Also those that were not eligible: a spent budget steers without a draw of the hold-back.
        steered = ledger.c.directive != L0.name
        held_back = ledger.c.reason == Reason.HOLDBACK.value
        joules, embodied = ledger.c.energy_joules, func.coalesce(ledger.c.embodied_grams, 0.0)
        factor = ledger.c.operational_grams / joules

        def total(of: ColumnElement[bool], value: ColumnElement[Any]) -> ColumnElement[Any]:
            return func.sum(case((of, value), else_=0.0))

        # Policies hold back different shares: pooled, those held back would be no random sample of those steered.
        query = (
            select(
                ledger.c.model,
                ledger.c.task,
                ledger.c.policy,
                func.count(case((steered, 1))).label("steered"),
                func.count(case((and_(steered, not_(ledger.c.eligible)), 1))).label("budget_steered"),
                total(steered, ledger.c.operational_grams + embodied).label("steered_grams"),
                total(steered, factor).label("factors"),
                total(steered, factor * factor).label("factors_squared"),
                func.count(case((held_back, 1))).label("held_back"),
                total(held_back, joules).label("joules"),
                total(held_back, joules * joules).label("joules_squared"),
                total(held_back, embodied).label("embodied"),
                total(held_back, embodied * embodied).label("embodied_squared"),
                total(held_back, joules * embodied).label("joules_embodied"),
            )
            .where(
                *within(window),
                SERVING,
                or_(ledger.c.eligible, steered),
                and_(joules > 0, ledger.c.operational_grams.is_not(None)),
            )
            # Pooled, embodied carbon that one request does not know would be made up from what another does.
            .group_by(ledger.c.model, ledger.c.task, ledger.c.policy, case((_EMBODIED_KNOWN, 1), else_=0))
        )
        rows = (await self._connection.execute(query)).all()
        strata = map(_stratum, rows)
        return tuple(sorted(strata, key=lambda stratum: (stratum.model, stratum.task, stratum.policy)))


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


def _totals(row: Any) -> Totals:
    return Totals(
        requests=row.requests,
        prompt_tokens=int(row.prompt_tokens or 0),
        output_tokens=int(row.output_tokens or 0),
        energy_joules=row.energy_joules or 0.0,
        operational_grams=row.operational_grams or 0.0,
        embodied_grams=row.embodied_grams or 0.0,
        requests_without_energy=row.requests - row.with_energy,
        requests_without_embodied=row.without_embodied,
        energy_source=None if row.weakest is None else _SOURCES[row.weakest],
        rated_requests=row.rated,
        mean_rating=row.rating,
    )


def _stratum(row: Row[Any]) -> Stratum:
    return Stratum(
        model=row.model,
        task=row.task,
        policy=row.policy,
        steered_requests=row.steered,
        budget_steered_requests=row.budget_steered,
        steered_grams=row.steered_grams,
        grams_per_joule_sum=row.factors,
        grams_per_joule_square_sum=row.factors_squared,
        held_back_requests=row.held_back,
        joules_sum=row.joules,
        joules_square_sum=row.joules_squared,
        embodied_grams_sum=row.embodied,
        embodied_grams_square_sum=row.embodied_squared,
        joules_embodied_grams_sum=row.joules_embodied,
    )
