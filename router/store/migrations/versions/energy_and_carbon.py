"""The building's overhead with each request; devices without work.

Revision ID: 0003
"""

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
    with op.batch_alter_table("ledger") as ledger:
        ledger.drop_column("pue")
