"""The ledger's idempotence and sums."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource
from common.quality.estimates import Cell
from router.directives.decide import Reason
from router.directives.levels import L0, SEEDED
from router.ledger import LedgerEntry
from router.optimizer.costs import Cost
from router.store.database import Database
from router.store.ledger import LedgerRepository, Window

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GRID = Intensity(120.0, "ES", SignalKind.AVERAGE, Scope.LIFECYCLE, NOON, "profile")
DIRECTIVES = {directive.name: directive for directive in (L0, *SEEDED)}


def entry(number: int = 0, **changes: Any) -> LedgerEntry:
    plain = LedgerEntry(
        tenant="acme",
        request_id=f"r{number}",
        task="sums",
        model="tiny@0123",
        directive="L1",
        directive_revision=1,
        reason=Reason.PLANNED.value,
        planned="L1",
        policy="default",
        policy_revision=1,
        eligible=True,
        evaluation_sample_id="",
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=20,
        energy=Energy(4.0, EnergySource.MODELLED),
        busy_seconds=0.5,
        operational_grams=0.02,
        embodied_grams=0.001,
        intensity=GRID,
        engine="cpu",
        seed=2**64 - 1,
        finish_reason="stop",
        started_at=NOON + timedelta(seconds=number),
        seconds=1.0,
    )
    return replace(plain, **changes)


async def test_a_request_is_billed_once_whatever_is_repeated(database: Database) -> None:
    async with database.writing() as connection:
        await LedgerRepository(connection).add_many([entry(1), entry(2), entry(1)])
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many([entry(2, output_tokens=999), entry(3), entry(1, tenant="other")])
        await ledger.add_many([])
        ((_, total),) = await ledger.totals(Window())
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
    assert costs[cell] == Cost(3.0, 1.0, 15.5, 2)
    assert set(costs) == {cell, replace(cell, directive="L0"), replace(cell, task="lists")}
    assert set(later) == {replace(cell, task="lists")}


async def test_totals_by_dimension_leave_unknown_energy_out_of_the_sums(database: Database) -> None:
    unknown: dict[str, Any] = {"energy": None, "operational_grams": None, "embodied_grams": None}
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many(
            [
                entry(1, energy=Energy(4.0, EnergySource.MEASURED)),
                entry(2, energy=Energy(6.0, EnergySource.ATTRIBUTED)),
                entry(3, **unknown),
                entry(4, started_at=NOON + timedelta(minutes=59, seconds=59, microseconds=999_999)),
                entry(5, started_at=NOON + timedelta(hours=1), tenant="other"),
                entry(6, evaluation_sample_id="s1"),
            ]
        )
        by_hour = await ledger.totals(Window(), ["hour", "tenant"])
        ((_, total),) = await ledger.totals(Window())
        ((_, evaluation),) = await ledger.totals(Window(), evaluation=True)
        ((_, one_tenant),) = await ledger.totals(Window(tenant="other"))
        ((_, one_hour),) = await ledger.totals(Window(NOON, NOON + timedelta(hours=1)))
    assert [values for values, _ in by_hour] == [
        {"hour": NOON, "tenant": "acme"},
        {"hour": NOON + timedelta(hours=1), "tenant": "other"},
    ]
    first = by_hour[0][1]
    assert (first.requests, first.requests_without_energy, first.output_tokens) == (4, 1, 80)
    assert first.energy_joules == pytest.approx(14.0)
    assert first.grams == pytest.approx(3 * 0.021)
    assert first.energy_source is EnergySource.MODELLED
    assert (total.requests, evaluation.requests, one_tenant.requests, one_hour.requests) == (5, 1, 1, 4)


async def test_totals_of_nothing(database: Database) -> None:
    async with database.reading() as connection:
        ledger = LedgerRepository(connection)
        ((values, total),) = await ledger.totals(Window())
        assert await ledger.totals(Window(), ["task"]) == ()
        assert await ledger.strata(Window()) == ()
    assert (values, total.requests, total.grams, total.energy_source) == ({}, 0, 0.0, None)


async def test_strata_hold_what_the_estimator_needs(database: Database) -> None:
    def joules(value: float) -> Energy:
        return Energy(value, EnergySource.MODELLED)

    held = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many(
            [
                entry(1, energy=joules(2.0), operational_grams=0.4, embodied_grams=0.1),
                entry(2, energy=joules(4.0), operational_grams=0.4, embodied_grams=0.1),
                entry(3, energy=joules(8.0), operational_grams=0.8, embodied_grams=0.2, **held),
                entry(4, energy=joules(6.0), operational_grams=0.6, embodied_grams=0.4, **held),
                # Neither steered nor held back: the plan left it at L0.
                entry(5, directive="L0"),
                entry(6, eligible=False, reason=Reason.SHADOW.value),
                entry(7, energy=None, operational_grams=None, **held),
                entry(8, evaluation_sample_id="s1"),
                entry(9, task="lists", **held),
            ]
        )
        lists, sums = await ledger.strata(Window())
    assert (lists.task, lists.steered_requests, lists.held_back_requests) == ("lists", 0, 1)
    assert (sums.model, sums.task, sums.steered_requests, sums.held_back_requests) == ("tiny@0123", "sums", 2, 2)
    assert sums.steered_grams == pytest.approx(1.0)
    assert sums.grams_per_joule_sum == pytest.approx(0.2 + 0.1)
    assert sums.grams_per_joule_square_sum == pytest.approx(0.04 + 0.01)
    assert (sums.joules_sum, sums.joules_square_sum) == pytest.approx((14.0, 100.0))
    assert (sums.embodied_grams_sum, sums.embodied_grams_square_sum) == pytest.approx((0.6, 0.2))
    assert sums.joules_embodied_grams_sum == pytest.approx(1.6 + 2.4)


async def test_odd_text_does_not_stop_the_ledger(database: Database) -> None:
    odd = "nul \x00, quote ', emoji 🌱"
    async with database.writing() as connection:
        ledger = LedgerRepository(connection)
        await ledger.add_many([entry(1, request_id=odd, engine=odd)])
        await ledger.add_many([entry(1, request_id=odd, engine=odd)])
        ((_, request_id),) = await ledger.recent(NOON, 9)
    assert request_id == odd.replace("\x00", "\ufffd")
