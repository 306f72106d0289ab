"""Rows that older schemas hold, on the way up to the newest and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, Double, MetaData, Table, insert, select, text

from router.directives.levels import Directive
from router.directives.policy import BudgetScope, Mode, Policy, QualityBudget, Trait
from router.store import migrate
from router.store.columns import Text, UtcDateTime
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action
from router.store.tables import metadata
from tests.router.store.schemas import (
    DIRECTIVES,
    FIRST_TABLES,
    NEW_YEAR,
    POLICY,
    STRINGS,
    connected,
    differences,
    extreme,
    fill,
    of_first_tables,
    rows_of,
    table_names,
)


async def test_every_row_survives_the_way_up_and_down_and_up(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    url = database.url
    migrate.upgrade(url, "0001")
    assert table_names(url) == {"alembic_version", *FIRST_TABLES}
    tables = of_first_tables(url)
    fill(url, tables)
    before = rows_of(url, tables)
    assert all(len(rows) >= len(STRINGS) for rows in before.values())

    migrate.upgrade(url)
    assert rows_of(url, tables) == before
    with connected(url) as connection:
        said = {column: set(map(repr, connection.scalars(select(metadata.tables[table].c[column]))))
                for table, column in NEW_COLUMNS}  # fmt: skip
    assert said == {column: {repr(value)} for (_, column), value in NEW_COLUMNS.items()}

    migrate.downgrade(url, "0001")
    assert table_names(url) == {"alembic_version", *FIRST_TABLES}
    assert rows_of(url, tables) == before

    migrate.upgrade(url)
    assert rows_of(url, tables) == before
    assert differences(url) == []
    migrate.downgrade(url, "base")
    assert table_names(url) == {"alembic_version"}
    migrate.upgrade(url)
    assert {name: len(rows) for name, rows in rows_of(url, tables).items() if rows} == {"changes": 1}
    await database.close()


NEW_COLUMNS: dict[tuple[str, str], Any] = {
    ("directives", "template_variables"): {},
    ("directives", "model"): "",
    ("policies", "latency_seconds"): None,
    ("policies", "latency_share"): None,
    ("policies", "carbon_grams_per_day"): None,
    ("policies", "when_carbon_spent"): None,
    ("policies", "directive_floor"): None,
    ("policies", "quality_budget_scope"): None,
    ("policies", "leave_alone"): ["code", "explicit_length", "opt_out", "structured_output", "tools"],
    ("samples", "erased_at"): None,
    ("scores", "characters"): None,
    ("scores", "shown_first"): None,
    ("bounds", "tenant"): "",
    ("bounds", "method"): "BETTING",
    ("bounds", "since"): None,
    ("bounds", "code_revision"): "",
}
"""What later ones say of rows that were there before them."""


async def test_0005_counts_the_characters_of_prompts_and_gives_graders_their_first_revision(
    empty_database_url: str,
) -> None:
    """More rows than it counts at once; text that was erased, or is none, has a length that nobody knows."""
    database = Database(empty_database_url)
    url = database.url
    migrate.upgrade(url, "0004")
    known: Any = {
        "plain": ([["system", "kürzer 🌍"], ["user", "four"]], None, 12),
        "no turns": ([], None, 0),
        "erased": ([], NEW_YEAR, None),
        "odd": ([{"role": "user"}], None, None),
    }
    known |= {f"n{number:04d}": ([["user", "x" * number]], None, number) for number in range(2_100)}
    columns = {"tenant": "a", "model": "m@1", "task": "t", "sampling_json": "{}", "limits_json": "{}"}
    columns |= {"reference": "", "grader": "", "lease_holder": None, "leased_until": None}
    judges = ["grader:exact", "grader:numeric", "pairwise:m@1/prompt-1", ""]
    with connected(url) as connection:
        samples = Table("samples", MetaData(), *(Column(c.name, c.type) for c in metadata.tables["samples"].c))
        scores = Table("scores", MetaData(), *(Column(c.name, c.type) for c in metadata.tables["scores"].c))
        connection.execute(
            insert(samples),
            [
                {**columns, "sample_id": name, "turns": turns, "served_at": NEW_YEAR, "erased_at": erased_at}
                for name, (turns, erased_at, _) in known.items()
            ],
        )
        connection.execute(
            insert(scores),
            [
                {
                    "id": 1 + number,
                    "sample_id": "plain",
                    "directive": "L1",
                    "directive_revision": 1 + number,
                    "quality": 1.0,
                    "baseline_quality": 1.0,
                    "judge": judge,
                    "scored_at": NEW_YEAR,
                }
                for number, judge in enumerate(judges)
            ],
        )
    migrate.upgrade(url)
    with connected(url) as connection:
        counted = {row.sample_id: row.prompt_characters for row in connection.execute(select(samples))}
        assert counted == {name: characters for name, (_, _, characters) in known.items()}
        named = connection.scalars(select(scores.c.judge).order_by(scores.c.id)).all()
        assert named == ["grader:exact@1", "grader:numeric@1", "pairwise:m@1/prompt-1", ""]
    migrate.downgrade(url, "0004")
    with connected(url) as connection:
        assert connection.scalars(select(scores.c.judge).order_by(scores.c.id)).all() == judges
    await database.close()


async def test_the_code_of_today_reads_and_writes_what_0001_kept(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    migrate.upgrade(database.url, "0001")
    tables = of_first_tables(database.url)
    with connected(database.url) as connection:
        connection.execute(insert(tables["directives"]), DIRECTIVES)
        connection.execute(insert(tables["policies"]), [POLICY])
        rows = [{column.name: extreme(column, row) for column in tables["bounds"].c} for row in range(2)]
        connection.execute(insert(tables["bounds"]), [{**row, "id": 1 + number} for number, row in enumerate(rows)])
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT setval('bounds_id_seq', 2)"))
    await database.open()
    async with database.changing() as connection:
        assert await DirectiveRepository(connection).all() == (
            Directive(
                "L1",
                DIRECTIVES[0]["text"],
                max_output_tokens=2**63 - 1,
                stop=tuple(DIRECTIVES[0]["stop"]),
                revision=2,
            ),
        )
        assert await PolicyRepository(connection).all() == (
            Policy(
                "acme-qa",
                tenant="acme",
                task="qa",
                mode=Mode.ON,
                traffic_share=1 / 3,
                directives=("L1",),
                holdback_share=5e-324,
                sample_share=1.0,
                grader="exact",
                leave_alone=frozenset(Trait),
            ),
        )
        await connection.execute(
            insert(metadata.tables["bounds"]),
            {key: value for key, value in rows[1].items() if key != "id"}
            | {"tenant": "", "method": "BETTING", "code_revision": ""},
        )
        assert (await connection.scalars(select(metadata.tables["bounds"].c.id))).all() == [1, 2, 3]
    await database.close()


async def test_before_0008_nothing_is_told_of_another_models_answers(database: Database) -> None:
    """A directive that named one at any of its revisions would else be opened by what was said of that model."""
    directives = [
        Directive("was", model="tiny@1"),
        Directive("plain", "Be brief"),
        Directive("names", "Be brief", model="tiny@1"),
    ]
    async with database.changing() as connection:
        repository = DirectiveRepository(connection)
        await repository.add_many([(one, Action.CREATE) for one in directives], "")
        await repository.add_many([(Directive("was", "One word", revision=2), Action.UPDATE)], "")
    told = ("bounds", "reviews", "scores", "answers")
    names = [one.name for one in directives]
    with connected(database.url) as connection:
        connection.execute(insert(metadata.tables["samples"]), row_of("samples", 1))
        for table in (*told, "ledger"):
            row = {key: value for key, value in row_of(table, 1).items() if key != "id"}
            keys = {"request_id", "review_id"} & row.keys()
            rows = [row | dict.fromkeys({"directive", *keys}, name) for name in names]
            connection.execute(insert(metadata.tables[table]), rows)

    def left(table: str) -> list[str]:
        with connected(database.url) as connection:
            return sorted(connection.scalars(text(f"SELECT directive FROM {table}")))

    assert {table: left(table) for table in told} == {table: sorted(names) for table in told}
    migrate.downgrade(database.url, "0007")
    assert {table: left(table) for table in told} == {table: ["plain"] for table in told}
    # What was served stays as it was.
    assert left("ledger") == sorted(names)
    migrate.upgrade(database.url)
    assert differences(database.url) == []
    await database.open()
    async with database.reading() as connection:
        assert await DirectiveRepository(connection).all() == (
            Directive("names", "Be brief"),
            Directive("plain", "Be brief"),
            Directive("was", "One word", revision=2),
        )


def row_of(table: str, number: int) -> dict[str, Any]:
    """A row of it, as the code writes one."""
    return {column.name: extreme(column, number) for column in metadata.tables[table].c}


async def test_before_0007_every_directive_keeps_the_floor_by_itself(database: Database) -> None:
    policies = [Policy("mean", floor=0.9, quality_budget=QualityBudget(0.8, BudgetScope.DAY)), Policy("strict")]
    async with database.changing() as connection:
        await PolicyRepository(connection).add_many([(policy, Action.CREATE) for policy in policies], "")
    migrate.downgrade(database.url, "0006")
    await database.open()
    async with database.reading() as connection:
        assert await PolicyRepository(connection).all() == (Policy("mean", floor=0.9), Policy("strict"))


async def test_what_budgets_have_spent_is_of_the_signal_there_was(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    url, day = database.url, datetime(2026, 1, 1, tzinfo=UTC)
    migrate.upgrade(url, "0002")
    old = [{"policy": policy, "day": moment, "grams": grams} for policy, moment, grams in (
        ("a", day, 1.5), ("a", day - timedelta(days=1), 2.5), ("b", day, 0.25),
    )]  # fmt: skip
    tables = of_first_tables(url)
    row = {column.name: extreme(column, 1) for column in tables["ledger"].c}
    newest = row | {"intensity_kind": "AVERAGE", "intensity_scope": "DIRECT", "started_at": NEW_YEAR}
    unknown = row | {"request_id": "later", "intensity_kind": None, "intensity_scope": None}
    days = [Column("policy", Text), Column("day", UtcDateTime), Column("grams", Double)]
    with connected(url) as connection:
        connection.execute(insert(tables["ledger"]), [newest, unknown | {"started_at": NEW_YEAR + timedelta(days=9)}])
        connection.execute(insert(Table("spent", MetaData(), *days)), old)
    migrate.upgrade(url)
    spent = metadata.tables["spent"]
    signal = {"intensity_kind": "AVERAGE", "intensity_scope": "DIRECT"}
    with connected(url) as connection:
        found = [dict(one) for one in connection.execute(select(spent).order_by(spent.c.grams)).mappings()]
        assert found == [one | signal for one in sorted(old, key=lambda one: one["grams"])]
        connection.execute(insert(spent), [{**old[0], **signal, "intensity_kind": "MARGINAL", "grams": 7.0}])
    assert differences(url) == []
    # Never a sum of two: the most under one.
    migrate.downgrade(url, "0002")
    with connected(url) as connection:
        rows = connection.execute(text("SELECT policy, grams FROM spent ORDER BY grams")).all()
    assert [tuple(row) for row in rows] == [("b", 0.25), ("a", 2.5), ("a", 7.0)]
    migrate.upgrade(url)
    assert differences(url) == []
    await database.close()


async def test_without_a_ledger_nothing_was_spent(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    migrate.upgrade(database.url, "0002")
    with connected(database.url) as connection:
        connection.execute(text("INSERT INTO spent VALUES ('a', '2026-01-01 00:00:00', 1.0)"))
    await database.open()
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM spent"))).scalar() == 0
    await database.close()
