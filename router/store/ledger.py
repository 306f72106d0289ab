"""The ledger in the database: written in batches, and what a router that starts reads of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Double, Row, case, cast, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from common.carbon.hours import day_start
from common.carbon.intensity import Signal
from common.quality.bound import Cell
from router.directives.levels import L0, Directive
from router.ledger import LedgerEntry
from router.optimizer.costs import Mean, Observed
from router.optimizer.pricing import Lengths
from router.store.signals import signal_of
from router.store.spending import SpendingRepository
from router.store.tables import ledger
from router.store.upsert import insert_new

_TAKEN_FOR = timedelta(hours=24)
"""A request id, by contract."""


class LedgerRepository:
    """Within one transaction; `add_many` within `Database.writing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_many(self, entries: Sequence[LedgerEntry]) -> None:
        """Idempotent by (tenant, request_id): the first entry stays, and only it counts as spent."""
        columns = (
            ledger.c.policy,
            ledger.c.engine,
            ledger.c.started_at,
            ledger.c.operational_grams,
            ledger.c.embodied_grams,
            ledger.c.intensity_kind,
            ledger.c.intensity_scope,
        )
        rows = [_row(entry) for entry in entries]
        added = await insert_new(self._connection, ledger, rows, ("tenant", "request_id"), columns)
        if len(added) < len(rows):
            more = await self._of_ids_used_again(rows)
            added = [*added, *await insert_new(self._connection, ledger, more, ("tenant", "request_id"), columns)]
        await SpendingRepository(self._connection).add(_grams(added))

    async def _of_ids_used_again(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Those whose id stands for another request, with an id that says so: of another day, as an id is taken for 24
        hours, or answered by an engine of ours where the other was the caller's own."""
        key = tuple_(ledger.c.tenant, ledger.c.request_id)
        query = select(ledger.c.tenant, ledger.c.request_id, ledger.c.started_at, ledger.c.engine)
        found = await self._connection.execute(query.where(key.in_([(r["tenant"], r["request_id"]) for r in rows])))
        first = {(row.tenant, row.request_id): row for row in found}
        again = []
        for row in rows:
            other = first.get((row["tenant"], row["request_id"]))
            if other is None:
                continue
            if abs(row["started_at"] - other.started_at) >= _TAKEN_FOR or (row["engine"] == "") != (other.engine == ""):
                again.append({**row, "request_id": f"{row['request_id']}@{row['started_at'].isoformat()}"})
        return again

    async def recent(self, since: datetime, limit: int) -> tuple[tuple[str, str], ...]:
        """(tenant, request_id) of at most `limit` requests that started at `since` or later, newest first."""
        query = (
            select(ledger.c.tenant, ledger.c.request_id)
            .where(ledger.c.started_at >= since)
            .order_by(ledger.c.started_at.desc())
            .limit(limit)
        )
        return tuple((row.tenant, row.request_id) for row in await self._connection.execute(query))

    async def contains(self, tenant: str, request_id: str) -> bool:
        query = select(ledger.c.tenant).where(ledger.c.tenant == tenant, ledger.c.request_id == request_id)
        return (await self._connection.execute(query)).first() is not None

    async def mean_costs(
        self, directives: Mapping[str, Directive], since: datetime | None = None
    ) -> dict[Cell, Observed]:
        """What is known of requests by cell, of the directives' present revisions: lengths, energy and device time.

        Without evaluation: an engine that judges at a quiet hour shares each step among fewer, so the same request
        costs more there than in traffic, and a directive would look dearer than it is. What callers told of engines of
        their own counts only for cells that no engine of ours has answered.
        """
        callers_own = (ledger.c.engine == "").label("callers_own")
        # Squares of what whole numbers of 63 bits can hold need more; PostgreSQL's mean of them is a Decimal besides.
        prompt, cached, output = (
            cast(column, Double) for column in (ledger.c.prompt_tokens, ledger.c.cached_tokens, ledger.c.output_tokens)
        )
        # As `Lengths.of`. No prompt has 0 tokens: that stands for lengths that were not told, and null is in no mean.
        n = case((prompt > 0, prompt))
        c = case((cached < prompt, cached), else_=prompt)
        m = case((prompt > 0, output))
        busy_seconds = case((ledger.c.busy_seconds > 0, ledger.c.busy_seconds))
        query = (
            select(
                callers_own,
                ledger.c.model,
                ledger.c.task,
                ledger.c.directive,
                ledger.c.directive_revision,
                func.count(n).label("requests"),
                func.avg(n - c).label("input_tokens"),
                func.avg(n * n - c * c).label("input_squared"),
                func.avg(m).label("output_tokens"),
                func.avg(m * m).label("output_squared"),
                func.avg(n * m).label("pairs"),
                func.avg(ledger.c.energy_joules).label("energy_joules"),
                func.count(ledger.c.energy_joules).label("with_energy"),
                func.avg(busy_seconds).label("busy_seconds"),
                func.count(busy_seconds).label("with_busy_seconds"),
            )
            .where(
                ledger.c.evaluation_sample_id == "",
                or_(ledger.c.energy_joules.is_not(None), ledger.c.prompt_tokens > 0),
            )
            .group_by(callers_own, ledger.c.model, ledger.c.task, ledger.c.directive, ledger.c.directive_revision)
        )
        if since is not None:
            query = query.where(ledger.c.started_at >= since)
        costs = {}
        for row in sorted(await self._connection.execute(query), key=lambda row: not row.callers_own):
            directive = L0 if row.directive == L0.name else directives.get(row.directive)
            if directive is not None and row.directive_revision == directive.revision:
                costs[Cell(row.model, row.task, row.directive)] = _observed(row)
        return costs

    async def answer_times(
        self, directives: Mapping[str, Directive], since: datetime, limit: int
    ) -> Sequence[tuple[Cell, float]]:
        """(cell, seconds) of the newest `limit` requests that started at `since` or later, oldest first: of the
        directives' present revisions, without evaluation, what was not answered to its end, and callers' own
        engines."""
        query = (
            select(ledger.c.model, ledger.c.task, ledger.c.directive, ledger.c.directive_revision, ledger.c.seconds)
            .where(
                ledger.c.started_at >= since,
                ledger.c.evaluation_sample_id == "",
                ledger.c.finish_reason != "ABORTED",
                ledger.c.engine != "",
            )
            .order_by(ledger.c.started_at.desc())
            .limit(limit)
        )
        times = []
        for row in await self._connection.execute(query):
            directive = L0 if row.directive == L0.name else directives.get(row.directive)
            if directive is not None and row.directive_revision == directive.revision:
                times.append((Cell(row.model, row.task, row.directive), row.seconds))
        return times[::-1]


def _observed(row: Row[Any]) -> Observed:
    lengths = None
    if row.requests:
        lengths = Lengths(row.input_tokens, row.input_squared, row.output_tokens, row.output_squared, row.pairs)
    return Observed(
        lengths,
        row.requests,
        Mean(row.energy_joules or 0.0, row.with_energy),
        Mean(row.busy_seconds or 0.0, row.with_busy_seconds),
    )


def _grams(added: Iterable[Row[Any]]) -> Mapping[tuple[str, datetime, Signal], float]:
    """By policy, day and signal, of the rows whose carbon is known; as `router.spending.grams_of` has it."""
    grams: defaultdict[tuple[str, datetime, Signal], float] = defaultdict(float)
    for row in added:
        if row.policy and row.engine and row.operational_grams is not None and row.intensity_kind is not None:
            key = row.policy, day_start(row.started_at), signal_of(row)
            grams[key] += row.operational_grams + (row.embodied_grams or 0.0)
    return grams


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
        "pue": entry.pue,
        "engine": entry.engine,
        "seed": "" if entry.seed is None else str(entry.seed),
        "finish_reason": entry.finish_reason,
        "started_at": entry.started_at,
        "started_hour": entry.started_at.replace(minute=0, second=0, microsecond=0),
        "seconds": entry.seconds,
    }
