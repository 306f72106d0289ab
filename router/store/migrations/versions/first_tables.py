"""The first tables.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

from router.store.columns import Text, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    counted = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "bounds",
        sa.Column("id", counted, nullable=False),
        sa.Column("model", Text(), nullable=False),
        sa.Column("task", Text(), nullable=False),
        sa.Column("directive", Text(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("lower", sa.Double(), nullable=False),
        sa.Column("upper", sa.Double(), nullable=False),
        sa.Column("share", sa.Double()),
        sa.Column("absolute_lower", sa.Double(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("judge", Text(), nullable=False),
        sa.Column("revision", Text(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("reported_by", Text(), nullable=False),
        sa.Column("reported_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bounds")),
    )
    op.create_index(op.f("ix_bounds_model_task_directive_id"), "bounds", ["model", "task", "directive", "id"])
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
    )
    op.create_table(
        "directives",
        sa.Column("name", Text(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", Text(), nullable=False),
        sa.Column("reason", Text(), nullable=False),
        sa.Column("text", Text(), nullable=False),
        sa.Column("placement", Text(), nullable=False),
        sa.Column("max_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.JSON(), nullable=False),
        sa.Column("suppressed_words", sa.JSON(), nullable=False),
        sa.Column("history_messages", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("updated_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "revision", name=op.f("pk_directives")),
    )
    op.create_table(
        "ledger",
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("request_id", Text(), nullable=False),
        sa.Column("task", Text(), nullable=False),
        sa.Column("model", Text(), nullable=False),
        sa.Column("directive", Text(), nullable=False),
        sa.Column("directive_revision", sa.Integer(), nullable=False),
        sa.Column("reason", Text(), nullable=False),
        sa.Column("planned", Text(), nullable=False),
        sa.Column("policy", Text(), nullable=False),
        sa.Column("policy_revision", sa.Integer(), nullable=False),
        sa.Column("eligible", sa.Boolean(), nullable=False),
        sa.Column("evaluation_sample_id", Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("energy_joules", sa.Double()),
        sa.Column("energy_source", Text()),
        sa.Column("busy_seconds", sa.Double(), nullable=False),
        sa.Column("operational_grams", sa.Double()),
        sa.Column("embodied_grams", sa.Double()),
        sa.Column("intensity_g_per_kwh", sa.Double()),
        sa.Column("intensity_zone", Text()),
        sa.Column("intensity_kind", Text()),
        sa.Column("intensity_scope", Text()),
        sa.Column("intensity_observed_at", UtcDateTime()),
        sa.Column("intensity_source", Text()),
        sa.Column("engine", Text(), nullable=False),
        sa.Column("seed", Text(), nullable=False),
        sa.Column("finish_reason", Text(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("started_hour", UtcDateTime(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "request_id", name=op.f("pk_ledger")),
    )
    op.create_index(op.f("ix_ledger_started_at"), "ledger", ["started_at"])
    op.create_table(
        "policies",
        sa.Column("name", Text(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", Text(), nullable=False),
        sa.Column("reason", Text(), nullable=False),
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("task", Text(), nullable=False),
        sa.Column("mode", Text(), nullable=False),
        sa.Column("traffic_share", sa.Double(), nullable=False),
        sa.Column("floor", sa.Double(), nullable=False),
        sa.Column("floor_kind", Text(), nullable=False),
        sa.Column("directives", sa.JSON(), nullable=False),
        sa.Column("holdback_share", sa.Double(), nullable=False),
        sa.Column("sample_share", sa.Double(), nullable=False),
        sa.Column("grader", Text(), nullable=False),
        sa.Column("bound_max_age_seconds", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("updated_by", Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "revision", name=op.f("pk_policies")),
    )
    op.create_table(
        "samples",
        sa.Column("sample_id", Text(), nullable=False),
        sa.Column("tenant", Text(), nullable=False),
        sa.Column("model", Text(), nullable=False),
        sa.Column("task", Text(), nullable=False),
        sa.Column("turns", sa.JSON(), nullable=False),
        sa.Column("sampling_json", Text(), nullable=False),
        sa.Column("limits_json", Text(), nullable=False),
        sa.Column("reference", Text(), nullable=False),
        sa.Column("grader", Text(), nullable=False),
        sa.Column("served_at", UtcDateTime(), nullable=False),
        sa.Column("lease_holder", Text()),
        sa.Column("leased_until", UtcDateTime()),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_samples")),
    )
    op.create_index(op.f("ix_samples_model_task_served_at"), "samples", ["model", "task", "served_at"])
    op.create_table(
        "answers",
        sa.Column("sample_id", Text(), nullable=False),
        sa.Column("directive", Text(), nullable=False),
        sa.Column("directive_revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", Text(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sample_id"], ["samples.sample_id"], name=op.f("fk_answers_sample_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sample_id", "directive", "directive_revision", name=op.f("pk_answers")),
    )
    op.create_table(
        "scores",
        sa.Column("id", counted, nullable=False),
        sa.Column("sample_id", Text(), nullable=False),
        sa.Column("directive", Text(), nullable=False),
        sa.Column("directive_revision", sa.Integer(), nullable=False),
        sa.Column("quality", sa.Double(), nullable=False),
        sa.Column("baseline_quality", sa.Double(), nullable=False),
        sa.Column("judge", Text(), nullable=False),
        sa.Column("scored_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sample_id"], ["samples.sample_id"], name=op.f("fk_scores_sample_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scores")),
        sa.UniqueConstraint(
            "sample_id",
            "directive",
            "directive_revision",
            name=op.f("uq_scores_sample_id_directive_directive_revision"),
        ),
    )
    op.execute("INSERT INTO changes (id, counter) VALUES (1, 0)")


def downgrade() -> None:
    op.drop_table("scores")
    op.drop_table("answers")
    op.drop_table("samples")
    op.drop_table("policies")
    op.drop_table("ledger")
    op.drop_table("directives")
    op.drop_table("changes")
    op.drop_table("bounds")
