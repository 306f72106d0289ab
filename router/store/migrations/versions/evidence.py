"""What a bound rests on and why it was withdrawn; bounds a tenant; people's reviews.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("bounds") as bounds:
        bounds.add_column(sa.Column("tenant", Text(), server_default="", nullable=False))
        bounds.add_column(sa.Column("method", Text(), server_default="BETTING", nullable=False))
        bounds.add_column(sa.Column("raw_lower", sa.Double()))
        bounds.add_column(sa.Column("raw_upper", sa.Double()))
        bounds.add_column(sa.Column("raw_share", sa.Double()))
        bounds.add_column(sa.Column("since", UtcDateTime()))
        bounds.add_column(sa.Column("position", sa.BigInteger()))
        bounds.add_column(sa.Column("reason", Text()))
        bounds.add_column(sa.Column("floor", sa.Double()))
        bounds.add_column(sa.Column("floor_kind", Text()))
        bounds.add_column(sa.Column("code_revision", Text(), server_default="", nullable=False))
    # The defaults were for the rows that were there.
    with op.batch_alter_table("bounds") as bounds:
        for name in ("tenant", "method", "code_revision"):
            bounds.alter_column(name, server_default=None)
    op.create_table(
        "reviews",
        sa.Column("review_id", Text(), nullable=False),
        sa.Column("sample_id", Text(), nullable=False),
        sa.Column("directive", Text(), nullable=False),
        sa.Column("directive_revision", sa.Integer(), nullable=False),
        sa.Column("rater", Text(), nullable=False),
        sa.Column("shown_first", sa.Boolean(), nullable=False),
        sa.Column("drawn_at", UtcDateTime(), nullable=False),
        sa.Column("preference", sa.Double()),
        sa.Column("reviewed_at", UtcDateTime()),
        sa.ForeignKeyConstraint(
            ["sample_id"], ["samples.sample_id"], name=op.f("fk_reviews_sample_id_samples"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("review_id", name=op.f("pk_reviews")),
        sa.UniqueConstraint(
            "sample_id",
            "directive",
            "directive_revision",
            "rater",
            name=op.f("uq_reviews_sample_id_directive_directive_revision_rater"),
        ),
    )


def downgrade() -> None:
    op.drop_table("reviews")
    # A bound of one tenant would pass for one of all.
    op.execute("DELETE FROM bounds WHERE tenant <> ''")
    with op.batch_alter_table("bounds") as bounds:
        for name in (
            "code_revision",
            "floor_kind",
            "floor",
            "reason",
            "position",
            "since",
            "raw_share",
            "raw_upper",
            "raw_lower",
            "method",
            "tenant",
        ):
            bounds.drop_column(name)
