"""The ledger's idempotence and sums."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource
from common.quality.bound import Cell
from router.directives.levels import L0, SEEDED
from router.ledger import LedgerEntry
from router.optimizer.costs import CostBook, Mean, Observed
from router.optimizer.pricing import Lengths
from router.store.database import Database
from router.store.ledger import LedgerRepository
from router.store.reports import ReportRepository, Window
from tests.router import ledger_entries

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GRID = Intensity(120.0, "ES", SignalKind.AVERAGE, Scope.LIFECYCLE, NOON, "profile")
DIRECTIVES = {directive.name: directive for directive in (L0, *SEEDED)}


def entry(number: int = 0, **changes: Any) -> LedgerEntry:
    own = {"model": "tiny@0123", "intensity": GRID, "finish_reason": "stop"}
    return ledger_entries.entry(number, **(own | changes))


async def test_a_request_is_billed_once_whatever_is_repeated(database: Database) -> None:
    async with database.writing() as connection:
        await LedgerRepository(connection).add_many([entry(1), entry(2), entry(1)])
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many([entry(2, output_tokens=999), entry(3), entry(1, tenant="other")])
        await ledger.add_many([])
        ((_, total),) = await ReportRepository(connection).totals(Window(), GRID.signal)
    assert (total.requests, total.output_tokens) == (4, 80)


async def test_recent_requests_newest_first(database: Database) -> None:
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many([entry(number) for number in (3, 1, 2, 0)])
        assert await ledger.recent(NOON + timedelta(seconds=1), limit=2) == (("acme", "r3"), ("acme", "r2"))
        assert len(await ledger.recent(NOON + timedelta(seconds=1), limit=9)) == 3


async def test_mean_costs_by_cell(database: Database) -> None:
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many(
            [
                entry(1, energy=Energy(2.0, EnergySource.MODELLED), output_tokens=11),
                entry(2, energy=Energy(4.0, EnergySource.MODELLED), output_tokens=20, busy_seconds=1.5),
                entry(3, energy=None),
                entry(4, directive="L0", energy=Energy(9.0, EnergySource.MODELLED)),
                entry(5, directive="L2", directive_revision=7),
                entry(6, directive="gone"),
                entry(7, evaluation_sample_id="s1", directive="L2", task="lists"),
                entry(8, task="lists"),
            ]
        )
        costs = await ledger.mean_costs(DIRECTIVES)
        later = await ledger.mean_costs(DIRECTIVES, since=NOON + timedelta(seconds=7))
    cell = Cell("tiny@0123", "sums", "L1")
    assert costs[cell] == Observed(Lengths(10, 100, 17, 307, 170), 3, Mean(3.0, 2), Mean(2.5 / 3, 3))
    assert set(costs) == {cell, replace(cell, directive="L0"), replace(cell, task="lists")}
    assert set(later) == {replace(cell, task="lists")}


async def test_mean_costs_are_those_that_a_book_that_saw_the_requests_would_have(database: Database) -> None:
    """Cached tokens, more of them than there are, lengths that nobody told, and the longest that a message can say."""
    longest = 2**32 - 1
    requests = [
        entry(1, prompt_tokens=100, cached_tokens=64, output_tokens=7),
        entry(2, prompt_tokens=5, cached_tokens=9, output_tokens=0, energy=None),
        entry(3, prompt_tokens=0, output_tokens=3),
        entry(4, prompt_tokens=0, output_tokens=3, energy=None, busy_seconds=9.0),
        entry(5, busy_seconds=0.0),
        entry(6, task="long", prompt_tokens=longest, cached_tokens=1, output_tokens=longest),
    ]
    book = CostBook()
    for request in requests:
        cell = Cell(request.model, request.task, request.directive)
        told = (request.prompt_tokens, request.cached_tokens, request.output_tokens)
        joules = request.energy.joules if request.energy else None
        if request.prompt_tokens or joules is not None:
            book.observe(cell, joules, request.busy_seconds, Lengths.of(*told) if request.prompt_tokens else None)
    async with database.writing() as connection:
        await LedgerRepository(connection).add_many(requests)
        costs = await LedgerRepository(connection).mean_costs(DIRECTIVES)
    assert {cell.task for cell in costs} == {"sums", "long"}
    for cell, found in costs.items():
        expected = book.observed(cell)
        assert expected is not None and expected.lengths is not None and found.lengths is not None
        assert found.lengths == pytest.approx(expected.lengths)
        assert replace(found, lengths=None) == replace(expected, lengths=None)


async def test_what_callers_told_counts_only_where_no_engine_of_ours_has_answered(database: Database) -> None:
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        theirs = {"engine": "", "prompt_tokens": 99}
        await ledger.add_many([entry(1, **theirs), entry(2, energy=None), entry(3, directive="L0", **theirs)])
        costs = await ledger.mean_costs(DIRECTIVES)
    ours, only_theirs = costs[Cell("tiny@0123", "sums", "L1")], costs[Cell("tiny@0123", "sums", "L0")]
    assert ours == Observed(Lengths(10, 100, 20, 400, 200), 1, Mean(), Mean(0.5, 1))
    assert only_theirs.lengths is not None and only_theirs.lengths.input_tokens == 99


async def test_answer_times_are_the_newest_whole_answers_of_present_revisions_oldest_first(database: Database) -> None:
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many(
            [
                entry(1, seconds=1.0),
                entry(2, seconds=2.0, directive="L0"),
                entry(3, seconds=3.0, energy=None),
                entry(4, finish_reason="ABORTED"),
                entry(5, directive="L2", directive_revision=7),
                entry(6, directive="gone"),
                entry(7, evaluation_sample_id="s1"),
            ]
        )
        times = await ledger.answer_times(DIRECTIVES, NOON, 99)
        newest = await ledger.answer_times(DIRECTIVES, NOON + timedelta(seconds=2), 3)
    cell = Cell("tiny@0123", "sums", "L1")
    assert times == [(cell, 1.0), (replace(cell, directive="L0"), 2.0), (cell, 3.0)]
    assert newest == [(cell, 3.0)]


async def test_odd_text_does_not_stop_the_ledger(database: Database) -> None:
    odd = "nul \x00, quote ', emoji 🌱"
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many([entry(1, request_id=odd, engine=odd)])
        await ledger.add_many([entry(1, request_id=odd, engine=odd)])
        ((_, request_id),) = await ledger.recent(NOON, 9)
    assert request_id == odd.replace("\x00", "\ufffd")
