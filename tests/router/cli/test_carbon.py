"""`pithctl carbon`."""

import re
from datetime import timedelta

import pytest
from pith.common.v1.energy_pb2 import EMISSION_SCOPE_LIFECYCLE, SIGNAL_KIND_AVERAGE, Intensity, Interval
from pith.router.v1.reports_pb2 import IntensityOutlook

from router.cli.carbon import sparkline
from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import NOW, FakeServices

HOUR = timedelta(hours=1)


def add_forecast(outlook: IntensityOutlook, values: list[float]) -> None:
    for index, value in enumerate(values):
        interval = Interval(value=value, lower=value / 2, upper=2 * value, confidence=0.8, method="[ridge]")
        hour = outlook.forecast.add(g_per_kwh=interval)
        hour.start_time.FromDatetime(NOW + (index + 1) * HOUR)


@pytest.fixture
def outlook(fake: FakeServices) -> IntensityOutlook:
    """At 12:30: 200 g/kWh, 100 to 400 in the hours before, of which that of 10:00 was not seen."""
    found = fake.outlook
    found.current.MergeFrom(
        Intensity(
            g_per_kwh=200,
            zone="ES",
            kind=SIGNAL_KIND_AVERAGE,
            scope=EMISSION_SCOPE_LIFECYCLE,
            source="Electricity [Maps]",
            age_seconds=1800,
        )
    )
    found.current.observed_at.FromDatetime(NOW)
    for back, value in ((3, 100.0), (1, 400.0), (0, 200.0)):
        found.history.add(g_per_kwh=value).start_time.FromDatetime(NOW - back * HOUR)
    return found


def facts(said: str) -> dict[str, str]:
    return dict(re.findall(r"^(.+?) {2,}(.*)$", said.split("\n\n")[0], re.MULTILINE))


def test_what_is_asked_for_is_asked(pithctl: Pithctl, fake: FakeServices, outlook: IntensityOutlook) -> None:
    pithctl("carbon")
    pithctl("carbon", "--history", "100", "--forecast", "48", "--zone", "north")
    asked = fake.called("GetIntensity")
    assert [(request.history_hours, request.forecast_hours) for request in asked] == [(24, 24), (100, 48)]
    assert [request.zone for request in asked] == ["", "north"]


@pytest.mark.parametrize("option", [("--history", "745"), ("--history", "0"), ("--forecast", "49")])
def test_limits_are_named(pithctl: Pithctl, option: tuple[str, str]) -> None:
    result = pithctl("carbon", *option)
    assert (result.code, option[0] in result.err) == (2, True)


def test_the_present_says_what_it_is_of(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    said = facts(pithctl("carbon").out)
    assert said["grid"] == "200 g/kWh in ES (average lifecycle, Electricity [Maps]), 30 min old"
    assert "not fresh" not in said
    outlook.fault = "[503] from the source"
    assert facts(pithctl("carbon").out)["not fresh"] == "[503] from the source"


def test_an_hour_without_an_observation_is_a_blank(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    said = pithctl("carbon", "--history", "4").out
    assert "▁ █▃  3 hours, 100 to 400 g/kWh" in said
    # Hours before the first that is known.
    assert "  ▁ █▃" in pithctl("carbon", "--history", "6").out


def test_without_a_forecast_that_is_said(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    said = pithctl("carbon").out
    assert facts(said)["ahead"] == "too little is known for a forecast, which takes 48 observed hours"
    assert "INTERVAL" not in said
    assert pithctl("carbon", "--json").document["cleanest"] is None


def test_the_cleanest_hours_follow_one_another(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    # The least hour is at 13:00, the least three are those from 16:00 on.
    add_forecast(outlook, [90, 300, 300, 120, 100, 110, 500])
    said = pithctl("carbon").out
    assert facts(said)["cleanest"] == "2026-03-01 16:00Z to 19:00Z, about 110 g/kWh, 45.0 % below now"
    assert pithctl("carbon", "--json").document["cleanest"] == {
        "start_time": "2026-03-01T16:00:00Z",
        "end_time": "2026-03-01T19:00:00Z",
        "g_per_kwh": 110.0,
    }
    outlook.current.g_per_kwh = 100
    assert "10.0 % above now" in pithctl("carbon").out


def test_two_hours_ahead_are_looked_at_whole(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    add_forecast(outlook, [100, 140])
    assert "2026-03-01 13:00Z to 15:00Z, about 120 g/kWh" in pithctl("carbon").out


def test_a_flat_forecast_has_no_cleanest_hours(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    add_forecast(outlook, [100.0, 100.2, 100.1, 100.3])
    assert facts(pithctl("carbon").out)["cleanest"] == "no hour ahead is cleaner than another"


def test_each_hour_ahead_has_its_interval(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    add_forecast(outlook, [100, 200, 0])
    rows = pithctl("carbon").out.split("\n\n")[1].splitlines()
    assert rows[0].split() == ["HOUR", "g/kWh", "80", "%", "INTERVAL"]
    assert rows[1].split()[:6] == ["2026-03-01", "13:00Z", "100", "50", "to", "200"]
    assert rows[3].split()[2:6] == ["0", "0", "to", "0"]
    # On one scale, from 0 to the upper end of all.
    assert [row.index("●") - rows[3].index("●") for row in rows[1:]] == [9, 18, 0]
    assert "Forecast by [ridge]." in pithctl("carbon").out


def test_no_provider(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.outlook.fault = "the provider fails"
    said = facts(pithctl("carbon").out)
    assert said["grid"] == "unknown: no provider answers"
    assert said["before"] == "no observation"
    assert pithctl("carbon", "--json").document["current"] is None


def test_long_histories_stand_on_one_line() -> None:
    line = sparkline([float(hour) for hour in range(744)], 0, 743)
    assert len(line) <= 72
    assert (line[0], line[-1]) == ("▁", "█")
    assert sparkline([None] * 144, 0, 1) == " " * 72
    assert sparkline([5.0, 5.0], 5, 5) == "▁▁"


def test_now_is_not_this_machines(pithctl: Pithctl, outlook: IntensityOutlook) -> None:
    """Simulated days lie elsewhere in time: the hours before are counted from the router's now."""
    assert facts(pithctl("carbon", "--history", "1").out)["before"].startswith("▃")
