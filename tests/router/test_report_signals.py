"""A report is about one signal: whose grams it adds, and what it leaves out. Idle devices, and the rate of emission."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pith.common.v1 import energy_pb2
from pith.router.v1 import reports_pb2

from common.carbon.accounting import operational_grams
from common.carbon.intensity import Intensity, Scope, Signal, SignalKind
from common.clock import ManualClock
from common.energy.reading import Energy, EnergySource
from router.convert import from_signal
from router.directives.decide import Reason
from router.ledger import LedgerEntry
from router.store.database import Database
from router.store.idle import IdleCount, IdleHour, IdleRepository
from tests.postgres import on_both_databases
from tests.router import ledger_entries
from tests.router.admin_client import AdminClient, faults
from tests.router.fake_engine import FakeEngine
from tests.router.ledger_entries import UNKNOWN, record
from tests.router.running import ask, running

pb: Any = reports_pb2
START = datetime(2026, 1, 1, tzinfo=UTC)
MORNING = START - timedelta(hours=12)
AVERAGE = Signal(SignalKind.AVERAGE, Scope.LIFECYCLE)
MARGINAL = Signal(SignalKind.MARGINAL, Scope.DIRECT)
PUE = 1.2


@pytest.fixture
def admin(client: AdminClient) -> Any:
    return client.reports


def entry(
    number: int, signal: Signal = AVERAGE, joules: float = 3.6e6, g_per_kwh: float = 100.0, **changes: Any
) -> LedgerEntry:
    """`number` minutes after MORNING: 1 kWh at 100 g/kWh and PUE 1.2 is 120 g, and 5 g embodied."""
    own = {
        "energy": Energy(joules, EnergySource.ATTRIBUTED),
        "operational_grams": operational_grams(joules, g_per_kwh, PUE),
        "embodied_grams": 5.0,
        "intensity": Intensity(g_per_kwh, "ES", signal.kind, signal.scope, MORNING, "test"),
        "pue": PUE,
        "started_at": MORNING + timedelta(minutes=number),
    }
    return ledger_entries.entry(number, **(own | changes))


async def idle(database: Database, engine: str, signal: Signal = AVERAGE, **changes: Any) -> None:
    """An hour from MORNING on: 0.5 kWh at 200 g/kWh and PUE 1.2 is 120 g, and 7 g embodied."""
    hour = IdleHour(
        hour=MORNING,
        signal=signal,
        device_seconds=3600.0,
        seconds_without_energy=0.0,
        energy_joules=1.8e6,
        energy_source=EnergySource.MEASURED,
        building_joules=1.8e6 * PUE,
        operational_grams=120.0,
        embodied_grams=7.0,
    )
    async with database.writing() as connection:
        count = IdleCount(3600.0, 1.8e6, MORNING)
        await IdleRepository(connection).add(f"{engine}:1", engine, [replace(hour, **changes)], count)


async def get(admin: Any, **fields: Any) -> Any:
    return await admin.GetReport(pb.GetReportRequest(dimensions=[pb.DIMENSION_TASK], **fields))


def stamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


@on_both_databases
async def test_grams_of_two_signals_are_never_added(admin: Any, database: Database) -> None:
    await record(
        database,
        entry(1, MARGINAL, task="old"),
        entry(2, MARGINAL),
        entry(3, MARGINAL, evaluation_sample_id="s1"),
        entry(4),
        entry(5, evaluation_sample_id="s2"),
        entry(6, **UNKNOWN, pue=None),
    )
    newest = await get(admin)
    assert newest.signal == from_signal(AVERAGE)
    assert [(row.task, row.requests, row.requests_without_energy) for row in newest.rows] == [("sums", 2, 1)]
    assert (newest.total.requests, newest.total.operational_grams, newest.total.embodied_grams) == (2, 120.0, 5.0)
    assert (newest.evaluation.requests, newest.evaluation.operational_grams) == (1, 120.0)
    (other,) = newest.other_signals
    assert (other.signal, other.requests, other.energy_joules) == (from_signal(MARGINAL), 3, 3 * 3.6e6)

    asked = await get(admin, signal=from_signal(MARGINAL))
    assert asked.signal == from_signal(MARGINAL)
    assert [(row.task, row.requests, row.requests_without_energy) for row in asked.rows] == [
        ("old", 1, 0),
        ("sums", 2, 1),
    ]
    assert (asked.total.operational_grams, asked.evaluation.operational_grams) == (240.0, 120.0)
    assert [(other.signal, other.requests) for other in asked.other_signals] == [(from_signal(AVERAGE), 2)]

    # Of nobody: all that has carbon is left out.
    nothing = await get(admin, signal=from_signal(Signal(SignalKind.MARGINAL, Scope.LIFECYCLE)))
    assert (nothing.total.requests, nothing.total.operational_grams, nothing.HasField("sci")) == (1, 0.0, False)
    assert [other.requests for other in nothing.other_signals] == [3, 2]


async def test_the_window_and_the_tenant_decide_which_signal_is_the_newest(admin: Any, database: Database) -> None:
    await record(
        database,
        entry(1, MARGINAL),
        entry(2, MARGINAL, tenant="other", evaluation_sample_id="s1"),
        entry(3),
        entry(4, **UNKNOWN, pue=None),
    )
    assert (await get(admin)).signal == from_signal(AVERAGE)
    early = await get(admin, end_time=stamp(MORNING + timedelta(minutes=3)))
    assert (early.signal, early.total.requests, list(early.other_signals)) == (from_signal(MARGINAL), 1, [])
    late = await get(admin, start_time=stamp(MORNING + timedelta(minutes=4)))
    assert (late.HasField("signal"), late.total.requests, late.HasField("sci")) == (False, 1, False)
    of_tenant = await get(admin, tenant="acme")
    assert of_tenant.signal == from_signal(AVERAGE)
    assert [other.requests for other in of_tenant.other_signals] == [1]
    assert not (await get(admin, tenant="nobody")).HasField("signal")


async def test_where_no_request_has_carbon_evaluation_and_idle_devices_say_the_signal(
    admin: Any, database: Database
) -> None:
    await idle(database, "gpu", MARGINAL)
    report = await get(admin)
    assert (report.signal, [one.engine for one in report.idle]) == (from_signal(MARGINAL), ["gpu"])
    await record(database, entry(1, evaluation_sample_id="s1"))
    report = await get(admin)
    assert (report.signal, report.evaluation.requests, list(report.idle)) == (from_signal(AVERAGE), 1, [])
    assert not report.HasField("sci")


@on_both_databases
async def test_the_rate_by_hand(admin: Any, database: Database) -> None:
    """E: two requests of 1 kWh, an evaluation of 0.5, two idle devices of 0.5, each times 1.2, is 4.2 kWh.
    E x I: 2 x 120 + 60 + 2 x 120 = 540 g. M: 3 x 5 + 2 x 7 = 29 g."""
    await record(
        database,
        entry(1, output_tokens=100),
        entry(2, output_tokens=300),
        entry(3, output_tokens=1000, **UNKNOWN, pue=None),
        entry(4, joules=1.8e6, evaluation_sample_id="s1"),
        entry(5, MARGINAL, joules=9e9),
        entry(6, output_tokens=100, joules=0.0, engine="", busy_seconds=0.0, embodied_grams=None),
    )
    await idle(database, "a")
    await idle(database, "b", seconds_without_energy=1200.0)
    await idle(database, "b", MARGINAL, operational_grams=1e9)
    report = await get(admin, signal=from_signal(AVERAGE))
    sci = report.sci
    assert sci.energy_kwh == pytest.approx(4.2)
    assert sci.intensity_g_per_kwh == pytest.approx(540 / 4.2)
    assert sci.embodied_grams == pytest.approx(29.0)
    assert (sci.requests, sci.output_tokens) == (3, 500)
    assert sci.grams_per_request == pytest.approx(569 / 3)
    assert sci.grams_per_thousand_output_tokens == pytest.approx(569 * 2)
    for said in ("PUE", "idle", "evaluation", "Not counted: networks"):
        assert said in sci.boundary
    assert sci.boundary.endswith(
        "Unknown and not counted: the energy of 1 requests, the energy of 1,200 s of idle devices, "
        "the embodied carbon of 1 requests"
    )


@on_both_databases
async def test_idle_devices_have_rows_of_their_own(admin: Any, database: Database) -> None:
    await record(database, entry(1))
    await idle(database, "b")
    await idle(
        database,
        "a",
        seconds_without_energy=3600.0,
        energy_joules=0.0,
        energy_source=None,
        building_joules=0.0,
        operational_grams=0.0,
    )
    report = await get(admin)
    assert [
        (one.engine, one.device_seconds, one.seconds_without_energy, one.energy_joules, one.energy_source)
        for one in report.idle
    ] == [
        ("a", 3600.0, 3600.0, 0.0, energy_pb2.ENERGY_SOURCE_UNSPECIFIED),
        ("b", 3600.0, 0.0, 1.8e6, energy_pb2.ENERGY_SOURCE_MEASURED),
    ]
    assert [(one.operational_grams, one.embodied_grams) for one in report.idle] == [(0.0, 7.0), (120.0, 7.0)]
    assert (report.total.energy_joules, report.total.operational_grams) == (3.6e6, 120.0)
    of_tenant = await get(admin, tenant="acme")
    assert (list(of_tenant.idle), of_tenant.HasField("sci"), of_tenant.HasField("evaluation")) == ([], False, False)
    assert of_tenant.total == report.total


@on_both_databases
async def test_the_counterfactual_is_of_the_same_signal(admin: Any, database: Database) -> None:
    """Held back 1 kWh, under a directive a tenth; under the other signal everything emits a thousand times as much."""
    held: dict[str, Any] = {"directive": "L0", "reason": Reason.HOLDBACK.value}
    await record(
        database,
        *(entry(number, **held) for number in (1, 2, 3)),
        *(entry(number, joules=3.6e5, embodied_grams=0.5) for number in range(4, 11)),
        *(entry(number, MARGINAL, g_per_kwh=1e5) for number in range(20, 25)),
        entry(30, MARGINAL, g_per_kwh=1e5, evaluation_sample_id="s1"),
        entry(31, evaluation_sample_id="s2"),
    )
    found = (await get(admin, signal=from_signal(AVERAGE))).counterfactual
    assert found.carbon_grams.value == pytest.approx(10 * 125.0)
    assert found.saving.value == pytest.approx(1 - (3 * 125 + 7 * 12.5 + 125) / 1250)
    assert (found.held_back_requests, found.uncovered_requests) == (3, 0)
    other = await get(admin, signal=from_signal(MARGINAL))
    assert not other.HasField("counterfactual")


async def test_a_router_that_is_given_another_signal_goes_on_with_that(tmp_path: Path, engine: FakeEngine) -> None:
    answers, clock = [], ManualClock()
    for scope in ("direct", "lifecycle"):
        async with running(tmp_path, {"e1": engine}, clock=clock, intensity=f"constant:TEST:360:{scope}") as router:
            await router.policy(name=scope, task=scope)
            answers += [await router.generation.Generate(ask(str(number), task=scope)) for number in range(2)]
            report = await router.report(pb.DIMENSION_TASK)
    (row,) = report.rows
    carbon = answers[-1].finished.carbon
    assert (row.task, row.requests, row.operational_grams) == ("lifecycle", 2, 2 * carbon.operational_grams)
    assert report.total.embodied_grams == 2 * carbon.embodied_grams
    (other,) = report.other_signals
    assert (other.signal.scope, other.requests) == (energy_pb2.EMISSION_SCOPE_DIRECT, 2)
    # 1.5 is the PUE of a running router.
    sci, joules = report.sci, sum(answer.finished.energy.joules for answer in answers[2:])
    idle = sum(one.energy_joules for one in report.idle)
    assert sci.energy_kwh == pytest.approx((joules + idle) * 1.5 / 3.6e6)
    assert (sci.intensity_g_per_kwh, sci.requests) == (pytest.approx(360.0), 2)


async def test_the_overhead_counts_on_a_grid_that_emits_nothing(tmp_path: Path, engine: FakeEngine) -> None:
    """Where no gram tells of it."""
    async with running(tmp_path, {"e1": engine}, intensity="constant:TEST:0") as router:
        answer = await router.generation.Generate(ask())
        report = await router.report()
    joules = answer.finished.energy.joules + sum(one.energy_joules for one in report.idle)
    assert report.sci.energy_kwh == pytest.approx(1.5 * joules / 3.6e6)
    assert (report.sci.intensity_g_per_kwh, report.total.operational_grams) == (0.0, 0.0)
    assert report.sci.grams_per_request == report.sci.embodied_grams > 0


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (
            energy_pb2.Signal(scope=energy_pb2.EMISSION_SCOPE_DIRECT),
            {"signal.kind": "is 0; must be one of SIGNAL_KIND_AVERAGE, SIGNAL_KIND_MARGINAL"},
        ),
        (
            energy_pb2.Signal(kind=energy_pb2.SIGNAL_KIND_AVERAGE, scope=9),  # type: ignore[arg-type]
            {"signal.scope": "is 9; must be one of EMISSION_SCOPE_DIRECT, EMISSION_SCOPE_LIFECYCLE"},
        ),
        (
            energy_pb2.Signal(),
            {
                "signal.kind": "is 0; must be one of SIGNAL_KIND_AVERAGE, SIGNAL_KIND_MARGINAL",
                "signal.scope": "is 0; must be one of EMISSION_SCOPE_DIRECT, EMISSION_SCOPE_LIFECYCLE",
            },
        ),
    ],
)
async def test_half_a_signal_is_refused_by_field(admin: Any, signal: Any, expected: dict[str, str]) -> None:
    assert await faults(admin.GetReport(pb.GetReportRequest(signal=signal))) == expected
