"""What a judge that compares was shown and said, beside the score.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("scores") as scores:
        scores.add_column(sa.Column("characters", sa.BigInteger()))
        scores.add_column(sa.Column("baseline_characters", sa.BigInteger()))
        scores.add_column(sa.Column("shown_first", sa.Double()))
        scores.add_column(sa.Column("shown_second", sa.Double()))


def downgrade() -> None:
    with op.batch_alter_table("scores") as scores:
        for name in ("shown_second", "shown_first", "baseline_characters", "characters"):
            scores.drop_column(name)
