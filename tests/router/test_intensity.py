"""A whole router on a live grid that goes away and comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pith.common.v1 import energy_pb2
from pith.router.v1 import reports_pb2
from structlog.testing import capture_logs

from common.clock import ManualClock
from tests.common.carbon.grid_api import TOKEN, Answer, GridApi, electricity_maps, said, uk_carbon_intensity
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, ask, running

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEGINS = "no fresh carbon intensity"
ENDS = "carbon intensity is fresh again"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON + timedelta(minutes=10))


@pytest.fixture
async def grid(clock: ManualClock) -> AsyncIterator[GridApi]:
    async with GridApi(electricity_maps(lambda start: 100.0 + start.hour, clock.now)) as grid:
        yield grid


def live(grid: GridApi, intensity: str = "electricitymaps:DE:direct", token: str = TOKEN) -> dict[str, Any]:
    return {
        "intensity": intensity,
        "electricity_maps_token": token,
        "electricity_maps_url": grid.url,
        "uk_carbon_intensity_url": grid.url,
        "intensity_timeout_seconds": 60.0,
    }


def metric(router: Running, name: str, **labels: str) -> float:
    return router.router.metrics.registry.get_sample_value(f"pith_router_intensity_{name}", labels) or 0.0


async def until(router: Running, name: str, value: float, **labels: str) -> None:
    """Each turn is a call, during which the router hears from the grid."""
    while metric(router, name, **labels) != value:
        await router.reports.GetStatus(reports_pb2.GetStatusRequest())


async def intensity_of_an_answer(router: Running) -> Any:
    return (await router.generation.Generate(ask())).finished.carbon.intensity


async def test_an_outage_touches_no_request_and_has_one_line_at_each_end(
    tmp_path: Path, engine: FakeEngine, clock: ManualClock, grid: GridApi
) -> None:
    answers = grid.answer
    with capture_logs() as logs:
        async with running(tmp_path, {"e1": engine}, clock=clock, **live(grid)) as router:
            found = await intensity_of_an_answer(router)
            assert (found.g_per_kwh, found.zone, found.source) == (112.0, "DE", "Electricity Maps")
            assert found.scope == energy_pb2.EMISSION_SCOPE_DIRECT
            assert found.age_seconds == 600
            asked = len(grid.asked)

            grid.answer = lambda _: said({"error": "maintenance"}, 503)
            await clock.advance(3060)
            await until(router, "polls_total", 1, result="failed")
            grid.answer = lambda _: Answer(hang=True)
            await clock.advance(30)
            while len(grid.asked) < asked + 2:  # the router now waits for an answer that never comes
                await router.reports.GetStatus(reports_pb2.GetStatusRequest())
            found = await intensity_of_an_answer(router)
            assert (found.g_per_kwh, found.age_seconds) == (112.0, 3690)
            assert metric(router, "age_seconds") == 3690
            assert (metric(router, "outages_total"), len(grid.asked)) == (1, asked + 2)
    assert [line["fault"] for line in logs if line["event"] == BEGINS] == ["HTTP 503"]
    assert ENDS not in [line["event"] for line in logs]

    # A router that starts in the outage has what was kept, and hears when it ends.
    grid.answer = lambda _: said({}, 429, retry_after="7200")
    with capture_logs() as logs:
        async with running(tmp_path, {"e1": engine}, clock=clock, **live(grid)) as router:
            await until(router, "polls_total", 1, result="limited")
            assert (await intensity_of_an_answer(router)).g_per_kwh == 112.0
            for polls in (2, 3):  # no more of them: what Retry-After asks for is heeded
                await clock.advance(7200)
                await until(router, "polls_total", polls, result="limited")
            await clock.advance(3600)
            found = await intensity_of_an_answer(router)
            assert found.source == "Electricity Maps, mean of what was seen in the last year"
            assert found.scope == energy_pb2.EMISSION_SCOPE_DIRECT
            grid.answer = answers
            await clock.advance(3600)
            await until(router, "polls_total", 1, result="ok")
            assert (await intensity_of_an_answer(router)).source == "Electricity Maps"
    events = [line["event"] for line in logs]
    assert (events.count(BEGINS), events.count(ENDS)) == (1, 1)
    assert TOKEN not in str(logs)


async def test_it_starts_without_the_grid_on_an_annual_mean_that_says_so(
    tmp_path: Path, engine: FakeEngine, clock: ManualClock, grid: GridApi
) -> None:
    async with running(tmp_path, {"e1": engine}, clock=clock, **live(grid, token="wrong")) as router:
        found = await intensity_of_an_answer(router)
        assert (found.g_per_kwh, found.zone, found.source) == (342.0, "DE", "Ember, mean of 2024")
        assert found.scope == energy_pb2.EMISSION_SCOPE_LIFECYCLE
        assert metric(router, "polls_total", result="refused") == 1
        told = await router.reports.GetStatus(reports_pb2.GetStatusRequest())
        assert told.intensity_fault == "HTTP 401: the token is not accepted for this"


async def test_the_grid_of_great_britain(tmp_path: Path, engine: FakeEngine, clock: ManualClock) -> None:
    async with (
        GridApi(uk_carbon_intensity(lambda start: None, lambda start: 150.0)) as grid,
        running(tmp_path, {"e1": engine}, clock=clock, **live(grid, "uk:13")) as router,
    ):
        found = await intensity_of_an_answer(router)
    assert (found.g_per_kwh, found.zone) == (150.0, "GB-13")
    assert found.source == "UK Carbon Intensity API, estimated"


async def test_of_a_declared_grid_there_is_its_age_alone(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}) as router:
        await router.clock.advance(90)
        assert metric(router, "age_seconds") == 90
        assert router.router.metrics.registry.get_sample_value("pith_router_intensity_outages_total") is None
