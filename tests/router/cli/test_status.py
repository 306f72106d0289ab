"""`pithctl status`."""

import re

import pytest
from pith.common.v1.energy_pb2 import EMISSION_SCOPE_DIRECT, SIGNAL_KIND_MARGINAL
from pith.router.v1.reports_pb2 import (
    ENGINE_STATE_BROKEN,
    ENGINE_STATE_DRAINING,
    ENGINE_STATE_READY,
    ListEnginesResponse,
)

from router.cli.status import engines_line
from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices

Engine = ListEnginesResponse.Engine
ENGINES = [
    Engine(name="e1", state=ENGINE_STATE_READY),
    Engine(name="e2", state=ENGINE_STATE_BROKEN, fault="failed [5] times"),
    Engine(name="e3", state=ENGINE_STATE_DRAINING),
]


def line(out: str, name: str) -> str:
    found = re.search(rf"^{name} +(.*)$", out, re.MULTILINE)
    assert found is not None, out
    return found[1]


@pytest.mark.parametrize(
    ("source", "aged"),
    [
        ("constant", False),
        ("Ember, mean of 2024", False),
        ("es-2025.csv", True),
        ("Electricity Maps, mean of what was seen in the last year", True),
    ],
)
def test_a_declared_intensity_has_no_age(pithctl: Pithctl, fake: FakeServices, source: str, aged: bool) -> None:
    fake.router_status.intensity.source = source
    fake.router_status.intensity.age_seconds = 600
    grid = line(pithctl("status").out, "grid")
    assert source in grid
    assert ("10 min old" in grid) == aged


def test_a_grid_that_is_away_is_a_fault(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.router_status.intensity.source = "Electricity Maps"
    fake.router_status.intensity_fault = "HTTP 401: the token is not accepted for this"
    told = "no fresh carbon intensity: HTTP 401: the token is not accepted for this"
    assert line(pithctl("status").out, "lacks") == told
    assert told in pithctl("top", "--once", "--interval", "0.1").out
    fake.router_status.intensity_fault = ""
    assert "lacks" not in pithctl("status").out


def test_each_zone_is_a_line_with_its_engines(pithctl: Pithctl, fake: FakeServices) -> None:
    assert "zone" not in pithctl("status").out
    north = fake.router_status.zones.add(zone="north", fault="HTTP 503")
    north.intensity.g_per_kwh, north.intensity.zone, north.intensity.source = 61.7, "NO", "Ember, mean of 2024"
    fake.router_status.zones.add(zone="south")
    fake.engines = [Engine(name="e1", zone="north"), Engine(name="e2"), Engine(name="e3", zone="north")]
    out = pithctl("status").out
    assert line(out, "zone north").startswith("e1, e3: 62 g/kWh in NO (")
    assert line(out, "zone south") == "no engine: unknown: no provider answers"
    told = "no fresh carbon intensity in zone north: HTTP 503"
    assert re.findall(r"^lacks +(.*zone.*)$", out, re.MULTILINE) == [told, "the intensity of zone south is unknown"]
    assert told in pithctl("top", "--once", "--interval", "0.1").out


def test_an_engine_in_a_zone_that_the_router_does_not_know_is_a_fault(pithctl: Pithctl, fake: FakeServices) -> None:
    lost = Engine(name="e1")
    lost.model.zone = "[atlantis]"
    known = Engine(name="e2", zone="north")
    known.model.zone = "north"
    fake.engines = [lost, known, Engine(name="e3")]
    (told,) = re.findall(r"^lacks +(.*zone.*)$", pithctl("status").out, re.MULTILINE)
    assert told == "zone [atlantis] of engine e1 is none of PITH_ROUTER_ZONES: it is charged by the router's own grid"


def test_carbon_says_what_it_counts_and_is_unknown_without_a_grid(pithctl: Pithctl, fake: FakeServices) -> None:
    found = fake.router_status
    found.energy_joules_total, found.carbon_grams_total = 100.0, 0.25
    found.intensity.kind, found.intensity.scope = SIGNAL_KIND_MARGINAL, EMISSION_SCOPE_DIRECT
    assert line(pithctl("status").out, "energy") == "100 J, 250 mg CO2e (marginal, direct), where known"
    found.ClearField("intensity")
    assert line(pithctl("status").out, "energy") == "100 J, unknown CO2e, where known"


def test_engines_are_a_line_with_the_faults_of_those_not_ready(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.engines = ENGINES
    said = line(pithctl("status").out, "engines")
    assert said == "1 ready of 3; e2 broken: failed [5] times; e3 draining"
    fake.engines = ENGINES[:1]
    assert line(pithctl("status").out, "engines") == "1 ready of 1"
    fake.engines = []
    assert line(pithctl("status").out, "engines") == "none known"


def test_what_an_engine_lacks_is_red() -> None:
    text = engines_line(ENGINES)
    red = [text.plain[span.start : span.end] for span in text.spans if span.style == "red"]
    assert red == ["e2 broken: failed [5] times", "e3 draining"]
    assert engines_line([]).style == "red"


def test_the_document_needs_no_engines(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("status", "--json").document["draining"] is False
    assert fake.called("ListEngines") == []
