"""Engines in two grid zones behind one router: who is asked, what it is charged, and what people see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pith.common.v1 import energy_pb2
from pith.router.v1 import generation_pb2, reports_pb2
from sqlalchemy import select
from structlog.testing import capture_logs

from common.clock import ManualClock
from router.store.tables import idle
from tests.common.carbon.grid_api import TOKEN, Answer, Asked, GridApi, electricity_maps, said
from tests.router.fake_engine import FakeEngine, killed, tell
from tests.router.outcome_reports import ENERGY, decide, faults, outcome, rows
from tests.router.running import Running, ask, running

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ZONES = ("north=constant:NO:60", "south=constant:PL:600")
JOULES_A_KWH = 3.6e6


@pytest.fixture
async def engines() -> AsyncIterator[dict[str, FakeEngine]]:
    """Their names are such that among equals, the one in the south is asked."""
    async with AsyncExitStack() as stack:
        made = {"a": FakeEngine(), "b": FakeEngine()}
        for fake, zone in zip(made.values(), ("south", "north"), strict=True):
            fake.info.zone = zone
            await fake.start()
            stack.push_async_callback(fake.stop)
        yield made


@asynccontextmanager
async def zoned(
    folder: Path, engines: dict[str, FakeEngine], zones: Sequence[str] = ZONES, **settings: Any
) -> AsyncIterator[Running]:
    async with running(folder, engines, zones=zones, **settings) as router:
        yield router


async def generate(router: Running, request_id: str = "") -> tuple[str, Any]:
    """The engine that began the answer, and its carbon."""
    answer: generation_pb2.GenerateResponse = await router.generation.Generate(ask(request_id=request_id))
    return answer.started.engine, answer.finished.carbon


async def until(router: Running, name: str, **load: int) -> None:
    """The router has heard of that load."""
    while True:
        (engine,) = [engine for engine in await router.engines() if engine.name == name]
        if all(getattr(engine.load, field) == value for field, value in load.items()):
            return


def by_hour(path: Path, **columns: Sequence[float]) -> Path:
    """Intensities from noon on, a column a zone."""
    lines = [f"datetime,{','.join(columns)}"]
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        lines.append(f"{(NOON + index * HOUR).isoformat()},{','.join(map(str, values))}")
    path.write_text("\n".join(lines) + "\n")
    return path


async def test_requests_go_where_the_grid_is_clean_and_are_charged_there(
    tmp_path: Path, engines: dict[str, FakeEngine]
) -> None:
    async with zoned(tmp_path, engines) as router:
        for _ in range(5):
            name, carbon = await generate(router)
            assert (name, carbon.intensity.zone, carbon.intensity.g_per_kwh) == ("b", "NO", 60)
        entries = await rows(router)
    assert engines["a"].requests == []
    assert [(row.engine, row.intensity_zone, row.intensity_g_per_kwh) for row in entries] == [("b", "NO", 60)] * 5
    # 2 J, with the building's share.
    assert [row.operational_grams for row in entries] == pytest.approx([2 / JOULES_A_KWH * 1.5 * 60] * 5)


@pytest.mark.parametrize(
    "load",
    [
        {"running": 4},
        {"running": 1, "waiting": 1},
        {"running": 2, "waiting": 1, "kv_blocks_total": 100, "kv_blocks_free": 33},
    ],
    ids=["full", "queueing", "short of memory"],
)
async def test_one_without_room_leaves_them_to_the_other(
    tmp_path: Path, engines: dict[str, FakeEngine], load: dict[str, int]
) -> None:
    async with zoned(tmp_path, engines) as router:
        await engines["b"].report(**load)
        await until(router, "b", **load)
        name, carbon = await generate(router, "r1")
        assert (name, carbon.intensity.zone) == ("a", "PL")
        assert carbon.operational_grams == pytest.approx(2 / JOULES_A_KWH * 1.5 * 600)
        await engines["b"].report(running=3, waiting=0)
        await until(router, "b", running=3, waiting=0)
        assert (await generate(router, "r2"))[0] == "b"
        (first, second) = await rows(router)
    assert [(row.engine, row.intensity_zone) for row in (first, second)] == [("a", "PL"), ("b", "NO")]


@pytest.mark.parametrize(
    "load",
    [
        {"waiting": 1, "kv_blocks_total": 100, "kv_blocks_free": 100},
        {"running": 2, "waiting": 1, "kv_blocks_total": 100, "kv_blocks_free": 34},
    ],
    ids=["without work", "at work"],
)
async def test_who_waits_for_the_next_step_alone_leaves_room(
    tmp_path: Path, engines: dict[str, FakeEngine], load: dict[str, int]
) -> None:
    """A report may come between a request and the step that it joins."""
    async with zoned(tmp_path, engines) as router:
        await engines["b"].report(**load)
        await until(router, "b", **load)
        assert (await generate(router))[0] == "b"


async def test_where_none_has_room_the_least_loaded_is_asked(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    async with zoned(tmp_path, engines) as router:
        await engines["b"].report(running=4, waiting=3)
        await engines["a"].report(running=4, waiting=2)
        await until(router, "b", waiting=3)
        await until(router, "a", waiting=2)
        assert (await generate(router))[0] == "a"
        await engines["a"].report(waiting=4)
        await until(router, "a", waiting=4)
        assert (await generate(router))[0] == "b"


async def test_they_change_over_with_the_hour(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    path = by_hour(tmp_path / "grid.csv", north=(60, 300, 100), south=(600, 200, 100))
    zones = [f"{zone}=csv:{path}:{zone.upper()}:{zone}" for zone in ("north", "south")]
    async with zoned(tmp_path, engines, zones, clock=ManualClock(NOON)) as router:
        asked = []
        for number in range(3):
            asked.append((await generate(router, f"r{number}"))[0])
            await router.clock.advance(3600)
        entries = await rows(router)
    assert asked == ["b", "a", "a"], "where both are as clean, the first of those as loaded"
    assert [row.intensity_zone for row in entries] == ["NORTH", "SOUTH", "SOUTH"]
    grams = [2 / JOULES_A_KWH * 1.5 * value for value in (60, 200, 100)]
    assert [row.operational_grams for row in entries] == pytest.approx(grams)


async def test_zones_that_are_nearly_as_clean_share_by_load(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    async with zoned(tmp_path, engines, ("north=constant:NO:100", "south=constant:PL:104")) as router:
        assert (await generate(router))[0] == "a"
        await engines["a"].report(running=1)
        await until(router, "a", running=1)
        assert (await generate(router))[0] == "b"


async def test_what_is_known_of_a_grid_that_is_not_fresh_still_counts(
    tmp_path: Path, engines: dict[str, FakeEngine]
) -> None:
    path = by_hour(tmp_path / "grid.csv", north=(60, 60), south=(600, 600))
    zones = [f"{zone}=csv:{path}:{zone.upper()}:{zone}" for zone in ("north", "south")]
    async with zoned(tmp_path, engines, zones, clock=ManualClock(NOON)) as router:
        await router.clock.advance(48 * 3600)
        name, carbon = await generate(router)
        assert (name, carbon.intensity.source) == ("b", "annual mean of grid.csv")
        found = await router.reports.GetStatus(reports_pb2.GetStatusRequest())
    assert [(zone.zone, zone.fault) for zone in found.zones] == [
        ("north", "grid.csv has nothing since 2026-03-01 13:00Z"),
        ("south", "grid.csv has nothing since 2026-03-01 13:00Z"),
    ]
    assert found.intensity_fault == ""


async def test_an_engine_without_a_zone_is_on_the_default_grid(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    engines["a"].info.zone = ""
    with capture_logs() as logs:
        async with zoned(tmp_path, engines, ("north=constant:NO:400",)) as router:
            name, carbon = await generate(router)
            assert (name, carbon.intensity.zone, carbon.intensity.g_per_kwh) == ("a", "TEST", 360)
            assert [(engine.name, engine.zone, engine.intensity.g_per_kwh) for engine in await router.engines()] == [
                ("a", "", 360),
                ("b", "north", 400),
            ]
    assert [line for line in logs if line["log_level"] == "warning"] == []


@pytest.mark.parametrize("zones", [("north=constant:NO:60",), ()])
async def test_a_zone_that_is_not_known_is_said_once_and_is_the_default(
    tmp_path: Path, engines: dict[str, FakeEngine], zones: tuple[str, ...]
) -> None:
    engines["b"].info.zone = "atlantis"
    with capture_logs() as logs:
        async with running(tmp_path, {"b": engines["b"]}, zones=zones) as router:
            for _ in range(2):
                name, carbon = await generate(router)
                assert (name, carbon.intensity.zone) == ("b", "TEST")
                await engines["b"].stop()
                await router.until_ready(0)
                await engines["b"].start()
                await router.until_ready(1)
            (view,) = await router.engines()
            assert (view.zone, view.model.zone, view.intensity.zone) == ("", "atlantis", "TEST")
    said_so = [
        (line["log_level"], line["engine"], line["zone"]) for line in logs if "PITH_ROUTER_ZONES" in line["event"]
    ]
    assert said_so == [("warning", "b", "atlantis")]


async def test_an_engine_that_comes_back_elsewhere_is_charged_there(
    tmp_path: Path, engines: dict[str, FakeEngine]
) -> None:
    async with running(tmp_path, {"b": engines["b"]}, zones=ZONES) as router:
        await engines["b"].stop()
        await router.until_ready(0)
        engines["b"].info.zone = "south"
        await engines["b"].start()
        await router.until_ready(1)
        assert (await generate(router))[1].intensity.zone == "PL"


async def test_an_answer_that_another_engine_ends_is_charged_where_it_began(
    tmp_path: Path, engines: dict[str, FakeEngine]
) -> None:
    engines["b"].script = tell("Hello", lives=2, death=killed)
    engines["a"].script = tell("Hello")
    async with zoned(tmp_path, engines) as router:
        answer = await router.generation.Generate(ask())
        assert (answer.text, answer.started.engine) == ("Hello", "b")
        assert len(engines["a"].requests) == 1
        assert answer.finished.carbon.intensity.zone == "NO"
        (row,) = await rows(router)
    assert (row.engine, row.intensity_zone) == ("b", "NO")


async def test_a_callers_own_engine_is_on_the_default_grid(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    async with zoned(tmp_path, engines) as router:
        await router.generation.ReportOutcome(outcome(await decide(router, request_id="r1", model="theirs")))
        (row,) = await rows(router)
    assert (row.engine, row.intensity_zone) == ("", "TEST")
    assert row.operational_grams == pytest.approx(ENERGY.joules / JOULES_A_KWH * 1.5 * 360)


async def test_idle_time_is_charged_in_its_engines_zone(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    joules = energy_pb2.Energy(joules=90.0, source=energy_pb2.ENERGY_SOURCE_MEASURED)
    async with zoned(tmp_path, engines) as router:
        for name, fake in engines.items():
            await fake.report(instance_id=name, idle_seconds_total=30.0, idle_energy_total=joules)
        found: list[Any] = []
        while len(found) < 2:
            await router.router.idle.write()
            async with router.router._database.reading() as connection:
                found = list(await connection.execute(select(idle).order_by(idle.c.engine)))
    grams = [90 / JOULES_A_KWH * 1.5 * value for value in (600, 60)]
    assert [row.operational_grams for row in found] == pytest.approx(grams)


async def test_people_see_each_zone_and_its_intensity(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    path = by_hour(tmp_path / "grid.csv", north=tuple(range(60, 160)))
    zones = (f"north=csv:{path}:NO:north", "south=constant:PL:600")
    async with zoned(tmp_path, engines, zones, clock=ManualClock(NOON + 60 * HOUR)) as router:
        shown = [(engine.name, engine.zone, engine.intensity.zone) for engine in await router.engines()]
        assert shown == [("a", "south", "PL"), ("b", "north", "NO")]
        status = await router.reports.GetStatus(reports_pb2.GetStatusRequest())
        assert status.intensity.zone == "TEST"
        assert [(zone.zone, zone.intensity.g_per_kwh, zone.fault) for zone in status.zones] == [
            ("north", 120, ""),
            ("south", 600, ""),
        ]
        outlook = await router.reports.GetIntensity(reports_pb2.GetIntensityRequest(history_hours=2, zone="north"))
        assert (outlook.current.zone, [hour.g_per_kwh for hour in outlook.history]) == ("NO", [119, 120])
        assert outlook.forecast[0].g_per_kwh.value < 160
        outlook = await router.reports.GetIntensity(reports_pb2.GetIntensityRequest(history_hours=2))
        assert (outlook.current.zone, [hour.g_per_kwh for hour in outlook.history]) == ("TEST", [360, 360])
        assert outlook.forecast[0].g_per_kwh.value == 360
        found = await faults(router.reports.GetIntensity(reports_pb2.GetIntensityRequest(zone="atlantis")))
        assert found == {"zone": "is 'atlantis'; must be one of north, south, or empty"}


async def test_without_zones_none_can_be_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, {}) as router:
        found = await faults(router.reports.GetIntensity(reports_pb2.GetIntensityRequest(zone="x" * 200)))
        assert found == {"zone": f"is {'x' * 128!r}; must be empty: no zones are configured"}
        assert list((await router.reports.GetStatus(reports_pb2.GetStatusRequest())).zones) == []


# Live grids.


def two_grids(clock: ManualClock, fails: Sequence[str] = ()) -> Any:
    grids = {
        "DE": electricity_maps(lambda start: 300.0, clock.now, zone="DE"),
        "FR": electricity_maps(lambda start: 50.0, clock.now, zone="FR"),
    }

    def answer(asked: Asked) -> Answer:
        zone = asked.query["zone"]
        return said({}, 503) if zone in fails else grids[zone](asked)

    return answer


def live(grid: GridApi, **settings: Any) -> dict[str, Any]:
    return {
        "intensity": "electricitymaps:DE:direct",
        "electricity_maps_token": TOKEN,
        "electricity_maps_url": grid.url,
        "intensity_timeout_seconds": 60.0,
        **settings,
    }


def metric(router: Running, name: str, **labels: str) -> float | None:
    return router.router.metrics.registry.get_sample_value(f"pith_router_intensity_{name}", labels)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("intensity*"))


async def test_live_grids_are_asked_and_kept_each_by_itself(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    clock = ManualClock(NOON + timedelta(minutes=10))
    zones = ("north=electricitymaps:FR:direct", "south=electricitymaps:DE:direct")
    async with GridApi(two_grids(clock)) as grid:
        async with zoned(tmp_path, engines, zones, clock=clock, **live(grid)) as router:
            name, carbon = await generate(router)
            assert (name, carbon.intensity.zone, carbon.intensity.g_per_kwh) == ("b", "FR", 50)
            assert metric(router, "age_seconds") == metric(router, "age_seconds", zone="north") == 600
            assert metric(router, "polls_total", result="ok") == 1
            assert metric(router, "polls_total", result="ok", zone="north") == 1
            assert metric(router, "outages_total", zone="north") == 0
        # What two zones name alike is asked once.
        assert sorted(asked.query["zone"] for asked in grid.asked) == ["DE", "FR"]
        # Within the outage, each has what was kept of it.
        grid.answer = two_grids(clock, fails=("DE", "FR"))
        async with zoned(tmp_path, engines, zones, clock=clock, **live(grid)) as router:
            shown = [
                (engine.name, engine.intensity.zone, engine.intensity.g_per_kwh) for engine in await router.engines()
            ]
            assert shown == [("a", "DE", 300), ("b", "FR", 50)]
            assert (await generate(router))[0] == "b"
    assert kept(tmp_path) == ["intensity-north.json", "intensity.json"]


async def test_what_stands_in_for_a_grid_that_was_never_heard_is_not_compared(
    tmp_path: Path, engines: dict[str, FakeEngine]
) -> None:
    """An annual mean of lifecycle emissions, which is less than the other's direct ones."""
    engines["a"].info.zone = ""
    clock = ManualClock(NOON + timedelta(minutes=10))
    async with (
        GridApi(two_grids(clock, fails=("FR",))) as grid,
        zoned(tmp_path, engines, ("north=electricitymaps:FR:direct",), clock=clock, **live(grid)) as router,
    ):
        shown = {engine.name: engine.intensity for engine in await router.engines()}
        assert shown["b"].scope == energy_pb2.EMISSION_SCOPE_LIFECYCLE
        assert shown["b"].g_per_kwh < shown["a"].g_per_kwh
        assert (await generate(router))[0] == "a", "the least loaded"
        status = await router.reports.GetStatus(reports_pb2.GetStatusRequest())
        assert [(zone.zone, zone.fault) for zone in status.zones] == [("north", "HTTP 503")]
        grid.answer = two_grids(clock)
        await clock.advance(60)
        while metric(router, "polls_total", result="ok", zone="north") != 1:
            await router.engines()
        await clock.advance(1)
        assert (await generate(router))[0] == "b"


# Settings.
