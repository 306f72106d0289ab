"""The ledger in the database: written in batches, read as sums."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common.energy.reading import EnergySource
from common.quality.estimates import Cell
from router.counterfactual import Stratum
from router.directives.decide import Reason
from router.directives.levels import L0, Directive
from router.ledger import LedgerEntry
from router.optimizer.costs import Cost
from router.store.tables import ledger
from router.store.upsert import insert_new

_SOURCES = tuple(EnergySource)


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
    energy_source: EnergySource | None
    """The weakest; None where no energy is known."""

    @property
    def grams(self) -> float:
        return self.operational_grams + self.embodied_grams


DIMENSIONS = {
    "tenant": ledger.c.tenant,
    "task": ledger.c.task,
    "directive": ledger.c.directive,
    "model": ledger.c.model,
    "hour": ledger.c.started_hour,
}
"""What totals may be told apart by."""


class LedgerRepository:
    """Within one transaction; `add_many` within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_many(self, entries: Sequence[LedgerEntry]) -> None:
        """Idempotent by (tenant, request_id): the first entry stays."""
        await insert_new(self._connection, ledger, [_row(entry) for entry in entries], ("tenant", "request_id"))

    async def recent(self, since: datetime, limit: int) -> tuple[tuple[str, str], ...]:
        """(tenant, request_id) of at most `limit` requests that started at `since` or later, newest first."""
        query = (
            select(ledger.c.tenant, ledger.c.request_id)
            .where(ledger.c.started_at >= since)
            .order_by(ledger.c.started_at.desc())
            .limit(limit)
        )
        return tuple((row.tenant, row.request_id) for row in await self._connection.execute(query))

    async def mean_costs(self, directives: Mapping[str, Directive], since: datetime | None = None) -> dict[Cell, Cost]:
        """What requests with known energy cost by cell, of the directives' present revisions.

        Without evaluation: an engine that judges at a quiet hour shares each step among fewer, so the same request
        costs more there than in traffic, and a directive would look dearer than it is.
        """
        query = (
            select(
                ledger.c.model,
                ledger.c.task,
                ledger.c.directive,
                ledger.c.directive_revision,
                func.avg(ledger.c.energy_joules).label("energy_joules"),
                func.avg(ledger.c.busy_seconds).label("busy_seconds"),
                func.avg(ledger.c.output_tokens).label("output_tokens"),
                func.count().label("requests"),
            )
            .where(ledger.c.energy_joules.is_not(None), _evaluation(False))
            .group_by(ledger.c.model, ledger.c.task, ledger.c.directive, ledger.c.directive_revision)
        )
        if since is not None:
            query = query.where(ledger.c.started_at >= since)
        costs = {}
        for row in await self._connection.execute(query):
            directive = L0 if row.directive == L0.name else directives.get(row.directive)
            if directive is not None and row.directive_revision == directive.revision:
                # PostgreSQL's mean of whole numbers is a Decimal.
                costs[Cell(row.model, row.task, row.directive)] = Cost(
                    row.energy_joules, row.busy_seconds, float(row.output_tokens), row.requests
                )
        return costs

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
        query = select(
            *columns,
            func.count().label("requests"),
            func.sum(ledger.c.prompt_tokens).label("prompt_tokens"),
            func.sum(ledger.c.output_tokens).label("output_tokens"),
            func.sum(ledger.c.energy_joules).label("energy_joules"),
            func.sum(case((known, ledger.c.operational_grams))).label("operational_grams"),
            func.sum(case((known, ledger.c.embodied_grams))).label("embodied_grams"),
            func.count(ledger.c.energy_joules).label("with_energy"),
            func.max(
                case(*((ledger.c.energy_source == source.value, rank) for rank, source in enumerate(_SOURCES)))
            ).label("weakest"),
        ).where(*_within(window), _evaluation(evaluation))
        rows = (await self._connection.execute(query.group_by(*columns))).all()
        keyed = [({name: getattr(row, name) for name in dimensions}, _totals(row)) for row in rows]
        return tuple(sorted(keyed, key=lambda pair: tuple(pair[0].values())))

    async def strata(self, window: Window) -> tuple[Stratum, ...]:
        """What the counterfactual is estimated from, by (model, task, policy): of requests whose energy is known."""
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
                func.count(case((steered, 1))).label("steered"),
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
                *_within(window),
                _evaluation(False),
                ledger.c.eligible,
                and_(joules > 0, ledger.c.operational_grams.is_not(None)),
            )
            .group_by(ledger.c.model, ledger.c.task, ledger.c.policy)
        )
        rows = (await self._connection.execute(query)).all()
        return tuple(sorted((_stratum(row) for row in rows), key=lambda stratum: (stratum.model, stratum.task)))


def _within(window: Window) -> list[ColumnElement[bool]]:
    conditions = []
    if window.start is not None:
        conditions.append(ledger.c.started_at >= window.start)
    if window.end is not None:
        conditions.append(ledger.c.started_at < window.end)
    if window.tenant:
        conditions.append(ledger.c.tenant == window.tenant)
    return conditions


def _evaluation(evaluation: bool) -> ColumnElement[bool]:
    return ledger.c.evaluation_sample_id != "" if evaluation else ledger.c.evaluation_sample_id == ""


def _totals(row: Any) -> Totals:
    return Totals(
        requests=row.requests,
        prompt_tokens=int(row.prompt_tokens or 0),
        output_tokens=int(row.output_tokens or 0),
        energy_joules=row.energy_joules or 0.0,
        operational_grams=row.operational_grams or 0.0,
        embodied_grams=row.embodied_grams or 0.0,
        requests_without_energy=row.requests - row.with_energy,
        energy_source=None if row.weakest is None else _SOURCES[row.weakest],
    )


def _stratum(row: Row[Any]) -> Stratum:
    return Stratum(
        model=row.model,
        task=row.task,
        steered_requests=row.steered,
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


def _row(entry: LedgerEntry) -> dict[str, Any]:
    energy, intensity = entry.energy, entry.intensity
    return {
        "tenant": entry.tenant,
        "request_id": entry.request_id,
        "task": entry.task,
        "model": entry.model,
        "directive": entry.directive,
        "directive_revision": entry.directive_revision,
        "reason": entry.reason,
        "planned": entry.planned,
        "policy": entry.policy,
        "policy_revision": entry.policy_revision,
        "eligible": entry.eligible,
        "evaluation_sample_id": entry.evaluation_sample_id,
        "prompt_tokens": entry.prompt_tokens,
        "cached_tokens": entry.cached_tokens,
        "output_tokens": entry.output_tokens,
        "energy_joules": energy.joules if energy else None,
        "energy_source": energy.source.value if energy else None,
        "busy_seconds": entry.busy_seconds,
        "operational_grams": entry.operational_grams,
        "embodied_grams": entry.embodied_grams,
        "intensity_g_per_kwh": intensity.g_per_kwh if intensity else None,
        "intensity_zone": intensity.zone if intensity else None,
        "intensity_kind": intensity.kind.value if intensity else None,
        "intensity_scope": intensity.scope.value if intensity else None,
        "intensity_observed_at": intensity.observed_at if intensity else None,
        "intensity_source": intensity.source if intensity else None,
        "engine": entry.engine,
        "seed": str(entry.seed),
        "finish_reason": entry.finish_reason,
        "started_at": entry.started_at,
        "started_hour": entry.started_at.replace(minute=0, second=0, microsecond=0),
        "seconds": entry.seconds,
    }
