"""Policies' budgets and objectives, native directives, ratings, tokens, tenants' limits and erasures.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("directives") as directives:
        directives.add_column(sa.Column("template_variables", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("directives") as directives:
        directives.alter_column("template_variables", server_default=None)
    with op.batch_alter_table("policies") as policies:
        policies.add_column(sa.Column("latency_seconds", sa.Double()))
        policies.add_column(sa.Column("latency_share", sa.Double()))
        policies.add_column(sa.Column("carbon_grams_per_day", sa.Double()))
        policies.add_column(sa.Column("when_carbon_spent", Text()))
        # What was served as it came before goes on to be: those who opt out. The rest is as a new policy has it.
        every = '["code", "explicit_length", "opt_out", "structured_output", "tools"]'
        policies.add_column(sa.Column("leave_alone", sa.JSON(), nullable=False, server_default=every))
    with op.batch_alter_table("policies") as policies:
        policies.alter_column("leave_alone", server_default=None)
    with op.batch_alter_table("samples") as samples:
        samples.add_column(sa.Column("erased_at", UtcDateTime()))
    op.create_table(
        "spent",
        sa.Column("policy", Text(), nullable=False),
        sa.Column("day", UtcDateTime(), nullable=False),
        sa.Column("grams", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("policy", "day", name=op.f("pk_spent")),
    )
    op.create_table(
        "ratings",
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("request_id", Text(), nullable=False),
        sa.Column("rating", sa.Double(), nullable=False),
        sa.Column("comment", Text(), nullable=False),
        sa.Column("rated_at", UtcDateTime(), nullable=False),
        sa.Column("rated_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "request_id", name=op.f("pk_ratings")),
    )
    op.create_table(
        "erasures",
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("before", UtcDateTime(), nullable=False),
        sa.Column("erased_at", UtcDateTime(), nullable=False),
        sa.Column("erased_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_erasures")),
    )
    op.create_table(
        "tokens",
        sa.Column("name", Text(), nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.Column("role", Text(), nullable=False),
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("created_by", Text(), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("revoked_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tokens")),
        sa.UniqueConstraint("sha256", name=op.f("uq_tokens_sha256")),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=False),
        sa.Column("concurrent_requests", sa.Integer(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("updated_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tenants")),
    )
    op.create_table(
        "seals",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_seals")),
    )


def downgrade() -> None:
    for table in ("seals", "tenants", "tokens", "erasures", "ratings", "spent"):
        op.drop_table(table)
    with op.batch_alter_table("samples") as samples:
        samples.drop_column("erased_at")
    with op.batch_alter_table("policies") as policies:
        for column in ("leave_alone", "when_carbon_spent", "carbon_grams_per_day", "latency_share", "latency_seconds"):
            policies.drop_column(column)
    with op.batch_alter_table("directives") as directives:
        directives.drop_column("template_variables")
