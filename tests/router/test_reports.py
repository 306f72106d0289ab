"""Service Reports over gRPC: sums, the counterfactual, bounds and engines."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.random import default_rng
from pith.common.v1 import energy_pb2
from pith.engine.v1 import control_pb2
from pith.router.v1 import policies_pb2, reports_pb2

from common.clock import ManualClock
from common.energy.reading import Energy, EnergySource
from common.quality.bound import Cell, QualityBound
from router.directives.decide import Reason
from router.fleet.view import EngineState, EngineView
from router.ledger import LedgerEntry, Rating
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.quality import QualityRepository, Reporter
from router.store.ratings import RatingRepository
from tests.postgres import on_both_databases
from tests.router import ledger_entries
from tests.router.admin_client import MODEL, AdminClient, faults, refused
from tests.router.ledger_entries import record

pb: Any = reports_pb2
START = datetime(2026, 1, 1, tzinfo=UTC)
GRAMS_PER_JOULE = (1e-5, 4e-5)
"""By night and by day."""


@pytest.fixture
def admin(client: AdminClient) -> Any:
    return client.reports


def entry(number: int, **changes: Any) -> LedgerEntry:
    """Of three hours before START: 10 J, 0.11 g."""
    own = {
        "energy": Energy(10.0, EnergySource.MODELLED),
        "operational_grams": 0.1,
        "embodied_grams": 0.01,
        "started_at": START - timedelta(hours=3) + timedelta(minutes=number),
    }
    return ledger_entries.entry(number, **(own | changes))


async def get(admin: Any, *dimensions: int, **fields: Any) -> Any:
    return await admin.GetReport(pb.GetReportRequest(dimensions=dimensions, **fields))


def stamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


async def test_a_report_of_nothing(admin: Any) -> None:
    report = await get(admin, pb.DIMENSION_TASK)
    assert (list(report.rows), report.total.requests, report.HasField("counterfactual")) == ([], 0, False)
    assert report.total.energy_source == energy_pb2.ENERGY_SOURCE_UNSPECIFIED


async def test_rows_by_dimensions_sum_to_the_total(admin: Any, database: Database, clock: ManualClock) -> None:
    await record(
        database,
        entry(1),
        entry(2, tenant="other", task="lists"),
        entry(3, directive="L2", energy=Energy(1.0, EnergySource.MEASURED)),
        entry(70, **ledger_entries.UNKNOWN),
        entry(71, evaluation_sample_id="s1"),
        entry(500),
    )
    report = await get(
        admin, pb.DIMENSION_HOUR, pb.DIMENSION_TENANT, pb.DIMENSION_TASK, pb.DIMENSION_DIRECTIVE, pb.DIMENSION_MODEL
    )
    keys = [(row.hour.ToSeconds(), row.tenant, row.task, row.directive, row.model) for row in report.rows]
    first_hour = int((START - timedelta(hours=3)).timestamp())
    assert keys == [
        (first_hour, "acme", "sums", "L1", MODEL),
        (first_hour, "acme", "sums", "L2", MODEL),
        (first_hour, "other", "lists", "L1", MODEL),
        (first_hour + 3600, "acme", "sums", "L1", MODEL),
    ]
    assert [row.requests for row in report.rows] == [1, 1, 1, 1]
    assert (report.rows[1].energy_joules, report.rows[1].energy_source) == (1.0, energy_pb2.ENERGY_SOURCE_MEASURED)
    assert (report.rows[3].requests_without_energy, report.rows[3].energy_joules) == (1, 0.0)
    total = report.total
    assert (total.requests, total.prompt_tokens, total.output_tokens) == (4, 40, 80)
    assert total.energy_joules == pytest.approx(21.0)
    assert (total.operational_grams, total.embodied_grams) == pytest.approx((0.3, 0.03))
    assert (total.requests_without_energy, total.energy_source) == (1, energy_pb2.ENERGY_SOURCE_MODELLED)
    assert (report.evaluation.requests, report.evaluation.operational_grams) == (1, 0.1)


@on_both_databases
async def test_days_policies_engines_and_reasons_tell_rows_apart(admin: Any, database: Database) -> None:
    held_back: dict[str, Any] = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    await record(
        database,
        entry(1, started_at=START - timedelta(seconds=1)),
        entry(2, started_at=START - timedelta(days=1), policy="p", engine="gpu", **held_back),
        entry(3, started_at=START - timedelta(days=1, microseconds=1), policy="p"),
    )
    report = await get(admin, pb.DIMENSION_DAY, pb.DIMENSION_POLICY, pb.DIMENSION_ENGINE, pb.DIMENSION_REASON)
    days = [START - timedelta(days=2), START - timedelta(days=1), START - timedelta(days=1)]
    assert [row.day.ToDatetime(tzinfo=UTC) for row in report.rows] == days
    assert [(row.policy, row.engine, row.reason, row.requests) for row in report.rows] == [
        ("p", "cpu", "planned", 1),
        ("default", "cpu", "planned", 1),
        ("p", "gpu", "holdback", 1),
    ]
    assert not any(row.HasField("hour") for row in report.rows)
    assert not report.total.HasField("day")


@on_both_databases
async def test_ratings_are_told_where_there_are_any(admin: Any, database: Database) -> None:
    await record(database, *(entry(number) for number in range(3)), entry(9, task="lists"))
    given = [Rating("acme", f"r{number}", value, "", START, "") for number, value in ((0, 1.0), (1, 0.0), (2, 0.5))]
    async with database.writing() as connection:
        await RatingRepository(connection).put_many(given)
    report = await get(admin, pb.DIMENSION_TASK)
    lists, sums = report.rows
    assert (sums.requests, sums.rated_requests, sums.mean_rating) == (3, 3, 0.5)
    assert (lists.rated_requests, lists.HasField("mean_rating")) == (0, False)
    assert (report.total.requests, report.total.rated_requests, report.total.mean_rating) == (4, 3, 0.5)


async def test_times_and_tenant_narrow_everything(admin: Any, database: Database) -> None:
    await record(database, *(entry(number, tenant="acme" if number % 2 else "other") for number in range(10)))
    start = START - timedelta(hours=3)
    window = {"start_time": stamp(start + timedelta(minutes=2)), "end_time": stamp(start + timedelta(minutes=6))}
    assert (await get(admin, **window)).total.requests == 4
    one = await get(admin, pb.DIMENSION_TENANT, tenant="other", **window)
    assert [(row.tenant, row.requests) for row in one.rows] == [("other", 2)]
    assert not one.HasField("evaluation")


async def _a_day(database: Database, evaluation_grams: float) -> float:
    """Steered and held-back requests of two tasks, at two intensities; returns what all would have emitted at L0."""
    random = default_rng(5)
    true_grams = 0.0
    entries = []
    for number in range(600):
        task, mean = (("sums", 20.0), ("lists", 60.0))[number % 2]
        joules_at_l0 = float(random.gamma(6.0, mean / 6.0))
        factor = GRAMS_PER_JOULE[int(random.integers(2))]
        true_grams += joules_at_l0 * (factor + 1e-6)
        kind = random.uniform()
        changes: dict[str, Any] = {"directive": "L1"}
        share = 0.3
        if kind < 0.1:
            changes, share = {"directive": "L0", "reason": Reason.HOLDBACK.value}, 1.0
        elif kind < 0.2:
            changes, share = {"directive": "L0", "reason": Reason.SHADOW.value, "eligible": False}, 1.0
        elif kind < 0.3:
            changes, share = {"directive": "L0"}, 1.0
        joules = joules_at_l0 * share
        entries.append(
            entry(
                number,
                task=task,
                energy=Energy(joules, EnergySource.MODELLED),
                operational_grams=joules * factor,
                embodied_grams=joules * 1e-6,
                started_at=START - timedelta(hours=3),
                **changes,
            )
        )
    evaluation = entry(1, request_id="e", evaluation_sample_id="s1", operational_grams=evaluation_grams)
    entries.append(replace(evaluation, embodied_grams=0.0))
    await record(database, *entries)
    return true_grams


async def test_the_counterfactual_finds_what_would_have_been(admin: Any, database: Database) -> None:
    true_grams = await _a_day(database, evaluation_grams=0.05)
    report = await get(admin)
    served = report.total.operational_grams + report.total.embodied_grams
    counterfactual = report.counterfactual
    carbon, saving = counterfactual.carbon_grams, counterfactual.saving
    assert carbon.lower < true_grams < carbon.upper
    assert carbon.value == pytest.approx(true_grams, rel=0.1)
    assert saving.value == pytest.approx(1 - (served + 0.05) / carbon.value)
    assert saving.lower < 1 - (served + 0.05) / true_grams < saving.upper
    assert (saving.confidence, "hold-back" in saving.method) == (0.95, True)
    assert 40 < counterfactual.held_back_requests < 80
    of_tenant = await get(admin, tenant="acme")
    assert of_tenant.counterfactual.saving.value == pytest.approx(1 - served / carbon.value)


async def test_a_stratum_with_too_few_held_back_is_named_and_left_out(admin: Any, database: Database) -> None:
    held: dict[str, Any] = {"task": "new", "directive": "L0", "reason": Reason.HOLDBACK.value}
    await record(database, entry(1, request_id="n1", task="new"))
    assert not (await get(admin)).HasField("counterfactual")
    await _a_day(database, 0.0)
    report = await get(admin)
    found, covered = report.counterfactual, (await get(admin, pb.DIMENSION_TASK)).rows
    assert [(part.policy, part.task, part.requests) for part in found.uncovered] == [("default", "new", 1)]
    assert found.uncovered_requests == 1
    emitted = sum(row.operational_grams + row.embodied_grams for row in covered if row.task != "new")
    assert found.saving.value == pytest.approx(1 - emitted / found.carbon_grams.value)
    await record(database, *(entry(number, request_id=f"n{number}", **held) for number in (2, 3)))
    found = (await get(admin)).counterfactual
    assert (found.uncovered_requests, list(found.uncovered)) == (0, [])


@on_both_databases
async def test_a_spent_budget_saves_as_well(admin: Any, database: Database) -> None:
    """10 J held back at 0.01 g/J; under L1 a tenth, all of it steered by the budget but one request."""
    held: dict[str, Any] = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    steered: dict[str, Any] = {"energy": Energy(1.0, EnergySource.MODELLED), "operational_grams": 0.01}
    spent = {"eligible": False, "reason": Reason.BUDGET_SPENT.value}
    plain = {"embodied_grams": 0.0}
    await record(
        database,
        *(entry(number, **held, **plain) for number in (1, 2)),
        entry(3, **steered, **plain),
        *(entry(number, **steered, **spent, **plain) for number in range(4, 11)),
    )
    found = (await get(admin)).counterfactual
    assert found.carbon_grams.value == pytest.approx(1.0)
    assert found.saving.value == pytest.approx(1 - (0.2 + 0.08))
    assert (found.uncovered_requests, "budget" in found.saving.method) == (0, True)
    await record(database, entry(20, task="lists", **steered, **spent, **plain))
    found = (await get(admin)).counterfactual
    assert [(part.task, part.requests) for part in found.uncovered] == [("lists", 1)]
    assert found.saving.value == pytest.approx(1 - (0.2 + 0.08))


async def test_embodied_carbon_that_is_unknown_is_counted(admin: Any, database: Database) -> None:
    await record(database, entry(1), entry(2, task="own", engine="", busy_seconds=0.0, embodied_grams=0.0))
    report = await get(admin, pb.DIMENSION_TASK)
    own, sums = report.rows
    assert (own.requests_without_embodied, own.requests_without_energy) == (1, 0)
    assert (sums.requests_without_embodied, report.total.requests_without_embodied) == (0, 1)


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"dimensions": [0]}, "dimensions[0]", "is 0; must be one of DIMENSION_TENANT, DIMENSION_TASK"),
        ({"dimensions": [1, 77]}, "dimensions[1]", "is 77"),
        ({"dimensions": [2, 2]}, "dimensions[1]", "is DIMENSION_TASK again"),
        ({"tenant": "t" * 129}, "tenant", "at most 128"),
        ({"end_time": Timestamp(seconds=2**60)}, "end_time", "is out of range"),
        (
            {"start_time": stamp(START)},
            "start_time",
            "is 2026-01-01T00:00:00+00:00; must be before 2026-01-01T00:00:00+00:00",
        ),
        (
            {"start_time": stamp(START), "end_time": stamp(START - timedelta(1))},
            "start_time",
            "must be before 2025-12-31",
        ),
    ],
)
async def test_a_faulty_report_is_refused_by_field(admin: Any, fields: Any, field: str, fault: str) -> None:
    found = await faults(admin.GetReport(pb.GetReportRequest(**fields)))
    assert set(found) == {field}
    assert fault in found[field]


async def test_bounds_and_for_whom_they_open(
    admin: Any, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    bounds = [
        QualityBound(Cell(MODEL, task, directive), lower, 1.0, None, 0.5, 9, "judge", "1", clock.now())
        for task, directive, lower in (("sums", "L2", 0.9), ("lists", "L1", 0.96), ("sums", "L1", 0.95))
    ]
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds(bounds, Reporter("e"), clock.now())
    await keeper.refresh()
    reply = await admin.ListBounds(pb.ListBoundsRequest())
    assert [
        (b.bound.cell.task, b.bound.cell.directive, list(b.open_for), list(b.closed_for)) for b in reply.bounds
    ] == [
        ("lists", "L1", ["default"], []),
        ("sums", "L1", ["default"], []),
        ("sums", "L2", [], ["default"]),
    ]
    assert (reply.bounds[0].bound.HasField("share"), reply.bounds[0].bound.samples) == (False, 9)
    found: list[Any] = []
    token = ""
    while not found or token:
        page = await admin.ListBounds(pb.ListBoundsRequest(page_size=2, page_token=token))
        found += page.bounds
        assert len(found) <= len(reply.bounds)
        token = page.next_page_token
    assert found == list(reply.bounds)
    assert set(await faults(admin.ListBounds(pb.ListBoundsRequest(page_token="x")))) == {"page_token"}
    await clock.advance(timedelta(days=8).total_seconds())
    stale = await admin.ListBounds(pb.ListBoundsRequest())
    assert [list(b.open_for) for b in stale.bounds] == [[], [], []]


async def test_a_tenants_bound_is_told_for_whom_it_decides(
    client: AdminClient, admin: Any, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    cell = Cell(MODEL, "sums", "L1")
    own = policies_pb2.Policy(
        name="of-beta", tenant="beta", floor=0.5, mode=policies_pb2.MODE_ON, directives=["L1"], grader="exact"
    )
    await client.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=own, reason="test"))
    given = {"": (0.96, 1.0), "acme": (0.5, 0.9), "beta": (0.4, 0.6), "gamma": (0.8, 1.0)}
    bounds = [
        QualityBound(replace(cell, tenant=tenant), *interval, None, 0.5, 9, "grader:exact", "1", clock.now())
        for tenant, interval in given.items()
    ]
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds(bounds, Reporter("e"), clock.now())
    await keeper.refresh()
    found: list[Any] = []
    token = ""
    while not found or token:
        page = await admin.ListBounds(pb.ListBoundsRequest(page_size=1, page_token=token))
        found += page.bounds
        token = page.next_page_token
    assert [(b.bound.cell.tenant, list(b.open_for), list(b.closed_for)) for b in found] == [
        ("", ["default", "of-beta"], []),
        ("acme", [], ["default"]),
        ("beta", [], []),
        ("gamma", [], []),
    ]


async def test_engines_as_the_fleet_shows_them(client: AdminClient) -> None:
    client.engines = [
        EngineView("b", "h:2", EngineState.UNREACHABLE, None, None, 0, "connection refused"),
        EngineView(
            "a",
            "h:1",
            EngineState.READY,
            control_pb2.ModelInfo(model="tiny", parameters=5),
            control_pb2.Load(running=3),
            2,
            "",
        ),
    ]
    first, second = (await client.reports.ListEngines(pb.ListEnginesRequest())).engines
    assert (first.name, first.address, first.state, first.in_flight) == ("a", "h:1", pb.ENGINE_STATE_READY, 2)
    assert (first.model.parameters, first.load.running) == (5, 3)
    assert (second.state, second.fault) == (pb.ENGINE_STATE_UNREACHABLE, "connection refused")
    assert not second.HasField("model")
    assert not second.HasField("load")


async def test_only_admins_may(client: AdminClient) -> None:
    _, _, reports = client.as_role("client")
    await refused(get(reports), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
