"""Policies whose floor is held by the mean over requests.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("policies") as policies:
        policies.add_column(sa.Column("directive_floor", sa.Double()))
        policies.add_column(sa.Column("quality_budget_scope", Text()))


def downgrade() -> None:
    # Every directive then keeps the floor by itself, which is the safe side.
    with op.batch_alter_table("policies") as policies:
        for column in ("quality_budget_scope", "directive_floor"):
            policies.drop_column(column)
