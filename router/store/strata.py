"""The ledger as the counterfactual reads it: sums over steered and held-back requests."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common.carbon.intensity import Signal
from router.counterfactual import Stratum
from router.directives.decide import Reason
from router.directives.levels import L0
from router.store.reports import EMBODIED_KNOWN, SERVING, Window, known, within
from router.store.tables import ledger


class StratumRepository:
    """Within one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def all(self, window: Window, signal: Signal | None) -> tuple[Stratum, ...]:
        """By (model, task, policy) and whether embodied carbon is known: of requests whose carbon is known and counted
        under the signal, without evaluation."""
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
                total(held_back, joules * joules * joules).label("joules_cubed"),
                total(held_back, embodied).label("embodied"),
                total(held_back, embodied * embodied).label("embodied_squared"),
                total(held_back, joules * embodied).label("joules_embodied"),
            )
            .where(
                *within(window),
                SERVING,
                or_(ledger.c.eligible, steered),
                and_(joules > 0, known(signal)),
            )
            # Pooled, embodied carbon that one request does not know would be made up from what another does.
            .group_by(ledger.c.model, ledger.c.task, ledger.c.policy, case((EMBODIED_KNOWN, 1), else_=0))
        )
        rows = (await self._connection.execute(query)).all()
        strata = map(_stratum, rows)
        return tuple(sorted(strata, key=lambda stratum: (stratum.model, stratum.task, stratum.policy)))


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
        joules_cube_sum=row.joules_cubed,
        embodied_grams_sum=row.embodied,
        embodied_grams_square_sum=row.embodied_squared,
        joules_embodied_grams_sum=row.joules_embodied,
    )
