"""Prompts that an admin has labelled with their tasks.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text, UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_revisions",
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("reason", Text(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("updated_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_task_revisions")),
    )
    op.create_table(
        "task_examples",
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task", Text(), nullable=False),
        sa.Column("text", Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_task_examples")),
    )


def downgrade() -> None:
    op.drop_table("task_examples")
    op.drop_table("task_revisions")
