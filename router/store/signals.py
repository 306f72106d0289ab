"""What the grams of a row count: sums of carbon are always of one signal."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table, and_, false

from common.carbon.intensity import Scope, Signal, SignalKind


def signal_of(row: Any) -> Signal:
    """Of a row whose carbon is known."""
    return Signal(SignalKind(row.intensity_kind), Scope(row.intensity_scope))


def is_of(table: Table, signal: Signal | None) -> ColumnElement[bool]:
    """That the carbon of a row is known and counted under the signal; of no row where that is None."""
    if signal is None:
        return false()
    kind, scope = table.c.intensity_kind, table.c.intensity_scope
    return and_(kind == signal.kind.value, scope == signal.scope.value)
