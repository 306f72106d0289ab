"""The tables. What migrations make is the same, which a test compares."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
)

from router.store.columns import Text, UtcDateTime

# Names for all constraints, since SQLite can only change a table by making it anew, and finds them by name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts up only what it knows as INTEGER.
_Counted = BigInteger().with_variant(Integer(), "sqlite")

changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("counter", BigInteger, nullable=False),
)
"""One row, whose counter goes up in every transaction that touches directives, policies or bounds."""

directives = Table(
    "directives",
    metadata,
    Column("name", Text, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("placement", Text, nullable=False),
    Column("max_output_tokens", BigInteger, nullable=False),
    Column("stop", JSON, nullable=False),
    Column("suppressed_words", JSON, nullable=False),
    Column("history_messages", BigInteger, nullable=False),
    Column("template_variables", JSON, nullable=False),
    Column("model", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
)
"""Every revision is a row and stays: the newest is in force, unless its action is "delete"."""

policies = Table(
    "policies",
    metadata,
    Column("name", Text, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("traffic_share", Double, nullable=False),
    Column("floor", Double, nullable=False),
    Column("floor_kind", Text, nullable=False),
    Column("directives", JSON, nullable=False),
    Column("holdback_share", Double, nullable=False),
    Column("sample_share", Double, nullable=False),
    Column("grader", Text, nullable=False),
    Column("bound_max_age_seconds", BigInteger, nullable=False),
    Column("latency_seconds", Double),
    Column("latency_share", Double),
    Column("carbon_grams_per_day", Double),
    Column("when_carbon_spent", Text),
    Column("directive_floor", Double),
    Column("quality_budget_scope", Text),
    Column("leave_alone", JSON, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
)
"""As directives."""

ledger = Table(
    "ledger",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("directive", Text, nullable=False),
    Column("directive_revision", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("planned", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("policy_revision", Integer, nullable=False),
    Column("eligible", Boolean, nullable=False),
    Column("evaluation_sample_id", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("energy_joules", Double),
    Column("energy_source", Text),
    Column("busy_seconds", Double, nullable=False),
    Column("operational_grams", Double),
    Column("embodied_grams", Double),
    Column("intensity_g_per_kwh", Double),
    Column("intensity_zone", Text),
    Column("intensity_kind", Text),
    Column("intensity_scope", Text),
    Column("intensity_observed_at", UtcDateTime),
    Column("intensity_source", Text),
    # Of the building, by which the operational grams were counted.
    Column("pue", Double),
    Column("engine", Text, nullable=False),
    # A seed has 64 bits without a sign, a column of the databases 63.
    Column("seed", Text, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("started_hour", UtcDateTime, nullable=False),
    Column("seconds", Double, nullable=False),
    Index(None, "started_at"),
)

spent = Table(
    "spent",
    metadata,
    Column("policy", Text, primary_key=True),
    # The first moment of the day, UTC.
    Column("day", UtcDateTime, primary_key=True),
    Column("intensity_kind", Text, primary_key=True),
    Column("intensity_scope", Text, primary_key=True),
    Column("grams", Double, nullable=False),
)
"""Carbon of the ledger's rows by policy, day and signal, brought up to date in the transaction that adds them."""

idle_counters = Table(
    "idle_counters",
    metadata,
    # Drawn by an engine at each start.
    Column("instance_id", Text, primary_key=True),
    Column("idle_seconds", Double, nullable=False),
    Column("idle_joules", Double),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""What of each engine's running totals is in `idle`: whichever router reads the next advances it, in that transaction,
so that many routers count an engine's idle time once."""

idle = Table(
    "idle",
    metadata,
    Column("instance_id", Text, primary_key=True),
    Column("hour", UtcDateTime, primary_key=True),
    Column("intensity_kind", Text, primary_key=True),
    Column("intensity_scope", Text, primary_key=True),
    Column("engine", Text, nullable=False),
    Column("device_seconds", Double, nullable=False),
    Column("seconds_without_energy", Double, nullable=False),
    Column("energy_joules", Double, nullable=False),
    Column("energy_source", Text),
    # The energy times the building's PUE.
    Column("building_joules", Double, nullable=False),
    Column("operational_grams", Double, nullable=False),
    Column("embodied_grams", Double, nullable=False),
    Index(None, "hour"),
)
"""Devices without work: charged to the product."""

ratings = Table(
    "ratings",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("rating", Double, nullable=False),
    Column("comment", Text, nullable=False),
    Column("rated_at", UtcDateTime, nullable=False),
    Column("rated_by", Text, nullable=False),
)
"""The last rating of each request."""

samples = Table(
    "samples",
    metadata,
    Column("sample_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("turns", JSON, nullable=False),
    # Of all turns; stays when the text is erased, absent where that came first.
    Column("prompt_characters", BigInteger),
    Column("sampling_json", Text, nullable=False),
    Column("limits_json", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("grader", Text, nullable=False),
    Column("served_at", UtcDateTime, nullable=False),
    Column("lease_holder", Text),
    Column("leased_until", UtcDateTime),
    # The text is gone, what was found out about it is not.
    Column("erased_at", UtcDateTime),
    Index(None, "model", "task", "served_at"),
)

answers = Table(
    "answers",
    metadata,
    Column("sample_id", Text, ForeignKey("samples.sample_id", ondelete="CASCADE"), primary_key=True),
    Column("directive", Text, primary_key=True),
    Column("directive_revision", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
)

scores = Table(
    "scores",
    metadata,
    Column("id", _Counted, primary_key=True),
    Column("sample_id", Text, ForeignKey("samples.sample_id", ondelete="CASCADE"), nullable=False),
    Column("directive", Text, nullable=False),
    Column("directive_revision", Integer, nullable=False),
    Column("quality", Double, nullable=False),
    Column("baseline_quality", Double, nullable=False),
    Column("judge", Text, nullable=False),
    Column("scored_at", UtcDateTime, nullable=False),
    # Of answers that were compared with one another, else absent.
    Column("characters", BigInteger),
    Column("baseline_characters", BigInteger),
    Column("shown_first", Double),
    Column("shown_second", Double),
    UniqueConstraint("sample_id", "directive", "directive_revision"),
)

bounds = Table(
    "bounds",
    metadata,
    Column("id", _Counted, primary_key=True),
    Column("model", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("directive", Text, nullable=False),
    # Empty: of all tenants together.
    Column("tenant", Text, nullable=False),
    Column("withdrawn", Boolean, nullable=False),
    Column("lower", Double, nullable=False),
    Column("upper", Double, nullable=False),
    Column("share", Double),
    Column("absolute_lower", Double, nullable=False),
    Column("absolute_upper", Double),
    Column("samples", BigInteger, nullable=False),
    Column("judge", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("reported_by", Text, nullable=False),
    Column("reported_at", UtcDateTime, nullable=False),
    Column("method", Text, nullable=False),
    # By the judge's preferences as they were given, where the method corrects them.
    Column("raw_lower", Double),
    Column("raw_upper", Double),
    Column("raw_share", Double),
    # Time of the earliest score that it rests on.
    Column("since", UtcDateTime),
    # The scores up to this one, `scores.id`, were known to whoever made it; absent where that was not said.
    Column("position", BigInteger),
    # Why it was withdrawn, and the floor that was broken.
    Column("reason", Text),
    Column("floor", Double),
    Column("floor_kind", Text),
    # Of the evaluator's code.
    Column("code_revision", Text, nullable=False),
    # A cell's newest row is looked for within the transaction that others wait for.
    Index(None, "model", "task", "directive", "tenant", "id"),
)
"""Every bound ever reported, for audit: none is deleted. A cell's newest row is in force, unless it says withdrawn.

Each batch of samples that an evaluator reports adds a row of about 270 bytes (in SQLite), so that 100 batches a day are
10 MB a year.
"""

reviews = Table(
    "reviews",
    metadata,
    # Random: it tells a person nothing of what is compared.
    Column("review_id", Text, primary_key=True),
    Column("sample_id", Text, ForeignKey("samples.sample_id", ondelete="CASCADE"), nullable=False),
    Column("directive", Text, nullable=False),
    Column("directive_revision", Integer, nullable=False),
    Column("rater", Text, nullable=False),
    # Whether the directive's answer is the first of the two.
    Column("shown_first", Boolean, nullable=False),
    Column("drawn_at", UtcDateTime, nullable=False),
    # For the directive's answer: 0, 1/2 or 1; absent until the person has said.
    Column("preference", Double),
    Column("reviewed_at", UtcDateTime),
    UniqueConstraint("sample_id", "directive", "directive_revision", "rater"),
)
"""Pairs of answers, L0's and a directive's, that people compare."""

erasures = Table(
    "erasures",
    metadata,
    Column("tenant", Text, primary_key=True),
    # Text of requests before this is not to be kept: also what a router writes later from its outbox.
    Column("before", UtcDateTime, nullable=False),
    Column("erased_at", UtcDateTime, nullable=False),
    Column("erased_by", Text, nullable=False),
)
"""A row a tenant that had its text erased."""

tokens = Table(
    "tokens",
    metadata,
    Column("name", Text, primary_key=True),
    # Lower-case hex. A token has 256 random bits, so that a fast hash tells nothing about it.
    Column("sha256", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("revoked_by", Text, nullable=False),
    UniqueConstraint("sha256"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", Text, primary_key=True),
    # 0 stands for the router's default.
    Column("requests_per_minute", Integer, nullable=False),
    Column("concurrent_requests", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
)

seals = Table(
    "seals",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # Hex of 32 random bytes.
    Column("key", Text, nullable=False),
)
"""One row: the key by which every router knows the decisions that another one sealed."""

task_revisions = Table(
    "task_revisions",
    metadata,
    Column("revision", Integer, primary_key=True, autoincrement=False),
    # How many there were; 0: they were forgotten.
    Column("examples", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
)
"""Who labelled prompts when and why: every revision stays, the newest is in force."""

task_examples = Table(
    "task_examples",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("task", Text, nullable=False),
    Column("text", Text, nullable=False),
)
"""The labelled prompts of the newest revision. Those of older ones are gone, as they are what somebody said."""
