"""Sums over the ledger: by any dimensions, with ratings, and for the counterfactual."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from common.energy.reading import Energy, EnergySource
from router.directives.decide import Reason
from router.ledger import Rating
from router.store.database import Database
from router.store.ratings import RatingRepository
from router.store.reports import ReportRepository, Window
from router.store.strata import StratumRepository
from tests.router.admin_client import MODEL
from tests.router.ledger_entries import GRID, NOON, UNKNOWN, entry, record


async def test_totals_by_dimension_leave_unknown_energy_out_of_the_sums(database: Database) -> None:
    await record(
        database,
        entry(1, energy=Energy(4.0, EnergySource.MEASURED)),
        entry(2, energy=Energy(6.0, EnergySource.ATTRIBUTED)),
        entry(3, **UNKNOWN),
        entry(4, started_at=NOON + timedelta(minutes=59, seconds=59, microseconds=999_999)),
        entry(5, started_at=NOON + timedelta(hours=1), tenant="other"),
        entry(6, evaluation_sample_id="s1"),
    )
    async with database.reading() as connection:
        reports = ReportRepository(connection)
        by_hour = await reports.totals(Window(), GRID.signal, ["hour", "tenant"])
        ((_, total),) = await reports.totals(Window(), GRID.signal)
        ((_, evaluation),) = await reports.totals(Window(), GRID.signal, evaluation=True)
        ((_, one_tenant),) = await reports.totals(Window(tenant="other"), GRID.signal)
        ((_, one_hour),) = await reports.totals(Window(NOON, NOON + timedelta(hours=1)), GRID.signal)
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
        reports = ReportRepository(connection)
        ((values, total),) = await reports.totals(Window(), GRID.signal)
        assert await reports.totals(Window(), GRID.signal, ["task"]) == ()
        assert await StratumRepository(connection).all(Window(), GRID.signal) == ()
    assert (values, total.requests, total.grams, total.energy_source) == ({}, 0, 0.0, None)


async def test_strata_hold_what_the_estimator_needs(database: Database) -> None:
    def joules(value: float) -> Energy:
        return Energy(value, EnergySource.MODELLED)

    held = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    await record(
        database,
        entry(1, energy=joules(2.0), operational_grams=0.4, embodied_grams=0.1),
        entry(2, energy=joules(4.0), operational_grams=0.4, embodied_grams=0.1),
        entry(3, energy=joules(8.0), operational_grams=0.8, embodied_grams=0.2, **held),
        entry(4, energy=joules(6.0), operational_grams=0.6, embodied_grams=0.4, **held),
        # Neither steered nor held back: the plan left it at L0.
        entry(5, directive="L0"),
        entry(6, directive="L0", eligible=False, reason=Reason.SHADOW.value),
        entry(7, **(UNKNOWN | held)),
        entry(8, evaluation_sample_id="s1"),
        entry(9, task="lists", **held),
    )
    async with database.reading() as connection:
        lists, sums = await StratumRepository(connection).all(Window(), GRID.signal)
    assert (lists.task, lists.steered_requests, lists.held_back_requests) == ("lists", 0, 1)
    assert (sums.model, sums.task, sums.steered_requests, sums.held_back_requests) == (MODEL, "sums", 2, 2)
    assert sums.steered_grams == pytest.approx(1.0)
    assert sums.grams_per_joule_sum == pytest.approx(0.2 + 0.1)
    assert sums.grams_per_joule_square_sum == pytest.approx(0.04 + 0.01)
    assert (sums.joules_sum, sums.joules_square_sum, sums.joules_cube_sum) == pytest.approx((14.0, 100.0, 728.0))
    assert (sums.embodied_grams_sum, sums.embodied_grams_square_sum) == pytest.approx((0.6, 0.2))
    assert sums.joules_embodied_grams_sum == pytest.approx(1.6 + 2.4)


async def test_what_a_spent_budget_steers_is_of_its_stratum(database: Database) -> None:
    held = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    spent = {"eligible": False, "reason": Reason.BUDGET_SPENT.value}
    await record(
        database,
        entry(1, operational_grams=0.4, embodied_grams=0.1),
        entry(2, operational_grams=0.8, embodied_grams=0.1, **spent),
        entry(3, **held),
        # The least carbon of what was open was L0 itself.
        entry(4, directive="L0", **spent),
        entry(5, policy="other", **spent),
    )
    async with database.reading() as connection:
        default, other = await StratumRepository(connection).all(Window(), GRID.signal)
    assert (default.policy, default.steered_requests, default.budget_steered_requests) == ("default", 2, 1)
    assert (default.steered_grams, default.held_back_requests) == (pytest.approx(1.4), 1)
    assert (other.policy, other.steered_requests, other.held_back_requests) == ("other", 1, 0)


async def test_embodied_carbon_without_time_on_a_device_is_unknown(database: Database) -> None:
    unknown = {"busy_seconds": 0.0, "embodied_grams": 0.0}
    held = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    await record(
        database,
        entry(1),
        entry(2, **unknown),
        # A device that nothing was declared of, and an answer that never came to a device.
        entry(3, task="free", embodied_grams=0.0),
        entry(4, task="free", energy=Energy(0.0, EnergySource.MODELLED), operational_grams=0.0, **unknown),
        entry(5, **{**UNKNOWN, "busy_seconds": 0.0}),
        entry(6, **held),
        entry(7, **held, **unknown),
    )
    async with database.reading() as connection:
        reports = ReportRepository(connection)
        free, sums = await reports.totals(Window(), GRID.signal, ["task"])
        strata = await StratumRepository(connection).all(Window(), GRID.signal)
    assert (sums[1].requests, sums[1].requests_without_energy, sums[1].requests_without_embodied) == (5, 1, 2)
    assert sums[1].grams == pytest.approx(4 * 0.02 + 2 * 0.001)
    assert (free[1].requests_without_embodied, free[1].embodied_grams) == (0, 0.0)
    # Requests are compared with those of which the same is known.
    of_sums = [stratum for stratum in strata if stratum.task == "sums"]
    assert sorted((one.steered_requests, one.held_back_requests, one.embodied_grams_sum) for one in of_sums) == [
        (1, 1, 0.0),
        (1, 1, 0.001),
    ]


async def test_a_day_is_one_of_utc_on_every_database(database: Database) -> None:
    tokyo = timezone(timedelta(hours=9))
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    await record(
        database,
        entry(1, started_at=midnight - timedelta(microseconds=1)),
        entry(2, started_at=midnight),
        # The second of January, in Tokyo and in UTC.
        entry(3, started_at=datetime(2026, 1, 2, 23, 30, tzinfo=tokyo)),
        # The third in Tokyo alone.
        entry(4, started_at=datetime(2026, 1, 3, 8, 59, tzinfo=tokyo)),
        entry(5, started_at=midnight + timedelta(days=1)),
    )
    async with database.reading() as connection:
        days = await ReportRepository(connection).totals(Window(), GRID.signal, ["day"])
    assert [(values["day"], totals.requests) for values, totals in days] == [
        (midnight - timedelta(days=1), 1),
        (midnight, 3),
        (midnight + timedelta(days=1), 1),
    ]
    assert all(values["day"].tzinfo is not None for values, _ in days)


async def test_policy_engine_and_reason_tell_rows_apart(database: Database) -> None:
    held_back = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    await record(database, entry(1), entry(2, policy="p", engine="gpu", **held_back), entry(3, policy="p"))
    async with database.reading() as connection:
        rows = await ReportRepository(connection).totals(Window(), GRID.signal, ["policy", "engine", "reason"])
    assert [(*values.values(), totals.requests) for values, totals in rows] == [
        ("default", "cpu", "planned", 1),
        ("p", "cpu", "planned", 1),
        ("p", "gpu", "holdback", 1),
    ]


async def test_ratings_count_for_the_requests_that_have_one(database: Database) -> None:
    await record(database, *(entry(number) for number in range(4)), entry(1, tenant="other", task="lists"))

    def rating(tenant: str, request_id: str, value: float) -> Rating:
        return Rating(tenant, request_id, value, "", NOON, "a user")

    async with database.writing() as connection:
        await RatingRepository(connection).put_many(
            [
                rating("acme", "r1", 1.0),
                rating("acme", "r2", 0.25),
                # Not in the ledger: of another tenant, and of nobody's request.
                rating("other", "r2", 0.0),
                rating("acme", "gone", 0.0),
            ]
        )
    async with database.reading() as connection:
        reports = ReportRepository(connection)
        lists, sums = await reports.totals(Window(), GRID.signal, ["task"])
        ((_, total),) = await reports.totals(Window(), GRID.signal)
    assert (sums[1].requests, sums[1].rated_requests, sums[1].mean_rating) == (4, 2, 0.625)
    assert (lists[1].requests, lists[1].rated_requests, lists[1].mean_rating) == (1, 0, None)
    assert (total.requests, total.output_tokens, total.rated_requests) == (5, 100, 2)
