"""GetIntensity: the grid as a whole router knows it, and the forecast that it makes of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from pith.common.v1 import energy_pb2
from pith.router.v1 import reports_pb2

from common.carbon.forecast import forecast
from common.clock import ManualClock
from common.errors import from_rpc_error
from router import grid_forecast
from router.grid_forecast import GridForecast
from tests.router.admin_client import FixedIntensity
from tests.router.running import running

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=30, hours=9, minutes=20)
HOUR = timedelta(hours=1)
Request = reports_pb2.GetIntensityRequest


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Sixty days of a daily cycle between 200 and 400; a day without observations; the future, too, is in the file."""
    path = tmp_path / "grid.csv"
    rows = [
        f"{(START + hour * HOUR).isoformat()},{300 + 100 * math.cos(2 * math.pi * hour / 24):.3f}"
        for hour in range(60 * 24)
        if not 480 <= hour < 504
    ]
    path.write_text("\n".join(["datetime,lca", *rows]) + "\n")
    return path


async def test_outlook_of_a_router(tmp_path: Path, trace: Path) -> None:
    settings = {"clock": ManualClock(NOW), "ready": False, "intensity": f"csv:{trace}:ES:lca:lifecycle"}
    async with running(tmp_path, {}, **settings) as router:
        found = await router.reports.GetIntensity(Request())
        this_hour = datetime(2026, 1, 31, 9, tzinfo=UTC)
        assert (found.current.zone, found.current.source, found.current.age_seconds) == ("ES", "grid.csv", 1200)
        assert found.current.kind == energy_pb2.SIGNAL_KIND_AVERAGE
        assert found.current.scope == energy_pb2.EMISSION_SCOPE_LIFECYCLE
        assert found.fault == ""
        past = [hour.start_time.ToDatetime(tzinfo=UTC) for hour in found.history]
        assert past == [this_hour - back * HOUR for back in reversed(range(24))]
        assert found.history[-1].g_per_kwh == found.current.g_per_kwh
        ahead = [hour.start_time.ToDatetime(tzinfo=UTC) for hour in found.forecast]
        assert ahead == [this_hour + (lead + 1) * HOUR for lead in range(24)]
        for hour in found.forecast:
            true = 300 + 100 * math.cos(2 * math.pi * hour.start_time.ToDatetime().hour / 24)
            assert hour.g_per_kwh.value == pytest.approx(true, abs=5)
            assert hour.g_per_kwh.lower <= hour.g_per_kwh.value <= hour.g_per_kwh.upper
            assert hour.g_per_kwh.confidence == 0.8
            assert "cross-validated" in hour.g_per_kwh.method

        longer = await router.reports.GetIntensity(Request(history_hours=744, forecast_hours=48))
        # 30 days and 10 hours, less the day without observations.
        assert len(longer.history) == 30 * 24 + 10 - 24
        assert longer.forecast[:24] == found.forecast
        assert len(longer.forecast) == 48


async def test_a_young_history_has_no_forecast(tmp_path: Path, trace: Path) -> None:
    settings = {"clock": ManualClock(START + 30 * HOUR), "ready": False, "intensity": f"csv:{trace}:ES:lca"}
    async with running(tmp_path, {}, **settings) as router:
        found = await router.reports.GetIntensity(Request())
        assert (len(found.history), len(found.forecast)) == (24, 0)
        await router.clock.advance(17 * 3600)
        assert len((await router.reports.GetIntensity(Request())).forecast) == 24


async def test_hours_have_limits(tmp_path: Path) -> None:
    async with running(tmp_path, {}, ready=False) as router:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.reports.GetIntensity(Request(history_hours=745, forecast_hours=2**32 - 1))
        error = from_rpc_error(caught.value)
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT
        assert [(fault.field, fault.description) for fault in error.violations] == [
            ("history_hours", "is 745; at most 744"),
            ("forecast_hours", "is 4,294,967,295; at most 48"),
        ]
        at_most = await router.reports.GetIntensity(Request(history_hours=744, forecast_hours=48))
        assert (len(at_most.history), len(at_most.forecast)) == (744, 48)


class Growing(FixedIntensity):
    """A history of 100 hours whose last value a test sets."""

    last = 100.0

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        rows = list(super().history(now, min(hours, 100)))
        return [*rows[:-1], (rows[-1][0], self.last)]


async def test_a_forecast_is_made_once_for_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[datetime] = []

    def counted(history: Sequence[tuple[datetime, float]], now: datetime, hours: int, confidence: float) -> object:
        made.append(now)
        return forecast(history, now, hours, confidence)

    monkeypatch.setattr(grid_forecast, "forecast", counted)
    grid = Growing()
    kept = GridForecast(grid)
    together = await asyncio.gather(*(kept.hours(NOW, count) for count in (1, 24, 48)))
    assert [len(found) for found in together] == [1, 24, 48]
    await kept.hours(NOW + timedelta(minutes=39), 24)
    assert len(made) == 1
    grid.last = 150.0
    assert (await kept.hours(NOW, 1))[0][1].value > 100
    await kept.hours(NOW + HOUR, 24)
    assert len(made) == 3


async def test_a_provider_that_fails_is_a_fault_and_not_an_error(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"clock": ManualClock(NOW), "ready": False, "intensity": f"csv:{trace}:ES:lca"}
    async with running(tmp_path, {}, **settings) as router:

        def broken(self: object, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
            raise RuntimeError("the disk is gone")

        monkeypatch.setattr("common.carbon.csv_intensity.CsvIntensity.history", broken)
        found = await router.reports.GetIntensity(Request())
        assert found.fault == "the provider fails: the disk is gone"
        assert not found.HasField("current")
