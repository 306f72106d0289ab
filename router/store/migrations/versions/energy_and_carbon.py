"""The building's overhead with each request; devices without work; what budgets have spent by signal.

Revision ID: 0003
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("ledger") as ledger:
        ledger.add_column(sa.Column("pue", sa.Double()))
    # It follows from the grams, but where energy or intensity was 0, or nothing that a device could have.
    op.execute(
        "UPDATE ledger SET pue = operational_grams * 3.6e6 / (energy_joules * intensity_g_per_kwh) "
        "WHERE energy_joules BETWEEN 1e-9 AND 1e15 AND intensity_g_per_kwh BETWEEN 1e-6 AND 1e6 "
        "AND operational_grams <= 1e15"
    )
    _spent_by_signal()
    op.create_table(
        "idle_counters",
        sa.Column("instance_id", Text(), nullable=False),
        sa.Column("idle_seconds", sa.Double(), nullable=False),
        sa.Column("idle_joules", sa.Double()),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_idle_counters")),
    )
    op.create_table(
        "idle",
        sa.Column("instance_id", Text(), nullable=False),
        sa.Column("hour", UtcDateTime(), nullable=False),
        sa.Column("intensity_kind", Text(), nullable=False),
        sa.Column("intensity_scope", Text(), nullable=False),
        sa.Column("engine", Text(), nullable=False),
        sa.Column("device_seconds", sa.Double(), nullable=False),
        sa.Column("seconds_without_energy", sa.Double(), nullable=False),
        sa.Column("energy_joules", sa.Double(), nullable=False),
        sa.Column("energy_source", Text()),
        sa.Column("building_joules", sa.Double(), nullable=False),
        sa.Column("operational_grams", sa.Double(), nullable=False),
        sa.Column("embodied_grams", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", "hour", "intensity_kind", "intensity_scope", name=op.f("pk_idle")),
    )
    op.create_index(op.f("ix_idle_hour"), "idle", ["hour"])


def downgrade() -> None:
    op.drop_table("idle")
    op.drop_table("idle_counters")
    _spent_without_signal()
    with op.batch_alter_table("ledger") as ledger:
        ledger.drop_column("pue")


_DAYS: dict[str, sa.types.TypeEngine[Any]] = {"policy": Text(), "day": UtcDateTime()}
_DAYS_BY_SIGNAL = {**_DAYS, "intensity_kind": Text(), "intensity_scope": Text()}


def _spent_by_signal() -> None:
    """A router had one signal: the newest request's stands for all that was spent."""
    connection = op.get_bind()
    signal = connection.execute(
        sa.text(
            "SELECT intensity_kind, intensity_scope FROM ledger "
            "WHERE intensity_kind IS NOT NULL AND intensity_scope IS NOT NULL ORDER BY started_at DESC LIMIT 1"
        )
    ).first()
    rows = connection.execute(sa.select(_spent(_DAYS))).mappings().all()
    _make_spent(_DAYS_BY_SIGNAL)
    if signal is not None and rows:
        of = {"intensity_kind": signal.intensity_kind, "intensity_scope": signal.intensity_scope}
        connection.execute(sa.insert(_spent(_DAYS_BY_SIGNAL)), [{**row, **of} for row in rows])


def _spent_without_signal() -> None:
    """Grams under several signals are not added: the most of a day is what is kept."""
    connection, spent = op.get_bind(), _spent(_DAYS_BY_SIGNAL)
    most = sa.select(spent.c.policy, spent.c.day, sa.func.max(spent.c.grams).label("grams"))
    rows = connection.execute(most.group_by(spent.c.policy, spent.c.day)).mappings().all()
    _make_spent(_DAYS)
    if rows:
        connection.execute(sa.insert(_spent(_DAYS)), [dict(row) for row in rows])


def _spent(key: Mapping[str, sa.types.TypeEngine[Any]]) -> sa.TableClause:
    return sa.table("spent", *(sa.column(name, kind) for name, kind in key.items()), sa.column("grams", sa.Double()))


def _make_spent(key: Mapping[str, sa.types.TypeEngine[Any]]) -> None:
    op.drop_table("spent")
    op.create_table(
        "spent",
        *(sa.Column(name, kind, nullable=False) for name, kind in key.items()),
        sa.Column("grams", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_spent")),
    )
