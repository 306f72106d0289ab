"""What a bound rests on and why it was withdrawn; bounds a tenant; lengths of prompts; revisions of graders; people's
reviews.

Revision ID: 0005
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_PAGE = 1_000
_WITHOUT_TENANT = "ix_bounds_model_task_directive_id"
_WITH_TENANT = "ix_bounds_model_task_directive_tenant_id"


def upgrade() -> None:
    with op.batch_alter_table("bounds") as bounds:
        bounds.add_column(sa.Column("tenant", Text(), server_default="", nullable=False))
        bounds.add_column(sa.Column("method", Text(), server_default="BETTING", nullable=False))
        bounds.add_column(sa.Column("absolute_upper", sa.Double()))
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
        bounds.drop_index(_WITHOUT_TENANT)
        bounds.create_index(_WITH_TENANT, ["model", "task", "directive", "tenant", "id"])
    with op.batch_alter_table("samples") as samples:
        samples.add_column(sa.Column("prompt_characters", sa.BigInteger()))
    _count_characters(op.get_bind())
    for table in ("scores", "bounds"):
        # Graders had one revision, and did not say so.
        op.execute(
            f"UPDATE {table} SET judge = judge || '@1' WHERE substr(judge, 1, 7) = 'grader:' AND judge NOT LIKE '%@%'"
        )
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
    for table in ("bounds", "scores"):
        # Those of a later revision stay those of another judge.
        op.execute(
            f"UPDATE {table} SET judge = substr(judge, 1, length(judge) - 2) "
            "WHERE substr(judge, 1, 7) = 'grader:' AND judge LIKE '%@1'"
        )
    with op.batch_alter_table("samples") as samples:
        samples.drop_column("prompt_characters")
    # A bound of one tenant would pass for one of all.
    op.execute("DELETE FROM bounds WHERE tenant <> ''")
    with op.batch_alter_table("bounds") as bounds:
        bounds.drop_index(_WITH_TENANT)
        bounds.create_index(_WITHOUT_TENANT, ["model", "task", "directive", "id"])
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
            "absolute_upper",
            "method",
            "tenant",
        ):
            bounds.drop_column(name)


def _count_characters(connection: sa.Connection) -> None:
    """Of the text that is still there; how much was erased is not known."""
    samples = sa.table(
        "samples",
        sa.column("sample_id", Text()),
        sa.column("turns", sa.JSON()),
        sa.column("erased_at", UtcDateTime()),
        sa.column("prompt_characters", sa.BigInteger()),
    )
    given = (
        sa.update(samples).where(samples.c.sample_id == sa.bindparam("of")).values(prompt_characters=sa.bindparam("n"))
    )
    last = ""
    while True:
        query = (
            sa.select(samples.c.sample_id, samples.c.turns)
            .where(samples.c.sample_id > last, samples.c.erased_at.is_(None))
            .order_by(samples.c.sample_id)
            .limit(_PAGE)
        )
        page = connection.execute(query).all()
        if not page:
            return
        connection.execute(given, [{"of": row.sample_id, "n": _characters(row.turns)} for row in page])
        last = page[-1].sample_id


def _characters(turns: Any) -> int | None:
    """None of what are no turns: an odd row must not stop a migration."""
    try:
        return sum(len(content) for _role, content in turns)
    except (TypeError, ValueError):
        return None
