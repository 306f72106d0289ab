"""Directives that name the model that answers.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("directives") as directives:
        directives.add_column(sa.Column("model", Text(), server_default="", nullable=False))
    # The default was for the rows that were there.
    with op.batch_alter_table("directives") as directives:
        directives.alter_column("model", server_default=None)


def downgrade() -> None:
    # What was told of another model's answers says nothing of those that the model asked for will give.
    for table in ("bounds", "reviews", "scores", "answers"):
        op.execute(f"DELETE FROM {table} WHERE directive IN (SELECT name FROM directives WHERE model <> '')")
    with op.batch_alter_table("directives") as directives:
        directives.drop_column("model")
