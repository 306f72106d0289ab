"""Which grids a router is told of."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from router.config import RouterConfig


def test_zones_are_named_with_their_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITH_ROUTER_INTENSITY", "zone:DE")
    monkeypatch.setenv("PITH_ROUTER_ZONES", '["north=zone:NO", "south=csv:/grid=2.csv:ES:lca:lifecycle"]')
    with pytest.raises(ValidationError, match=r"south: /grid=2\.csv cannot be read"):
        RouterConfig()
    monkeypatch.setenv("PITH_ROUTER_ZONES", '["north=zone:NO", "south=constant:ES:150:lifecycle"]')
    assert RouterConfig().zone_specs == {"north": "zone:NO", "south": "constant:ES:150:lifecycle"}
    assert RouterConfig(zones=()).zone_specs == {}


@pytest.mark.parametrize(
    ("zones", "fault"),
    [
        (("north",), "each must be ZONE=SPEC"),
        (("=zone:NO",), "each must be ZONE=SPEC"),
        (("north=",), "each must be ZONE=SPEC"),
        (("north=zone:NO", "north=zone:SE"), "no two may be of the same zone"),
        (("south=zone:ES", "north=guess"), "north: intensity provider must be zone:CODE"),
        (("north=zone:Atlantis",), "north: zone 'Atlantis' must be"),
        (("north=profile:absent.csv",), "north: absent.csv cannot be read"),
        (("n" * 129 + "=zone:NO",), "has 129 characters; at most 128"),
        (("nor\tth=zone:NO",), "has control or other unprintable characters"),
        (("north = zone:NO",), "north : intensity provider must be zone:CODE"),
        (("north =zone:NO",), "north : begins or ends with a space"),
        (
            ("north=constant:NO:60",),
            "north: constant:NO:60 is average, direct, intensity zone:WORLD is average, lifecycle; their grams cannot "
            "be added: name one SCOPE for all",
        ),
        (("gb=uk",), "gb: uk is average, direct, intensity zone:WORLD is average, lifecycle"),
    ],
)
def test_a_wrong_zone_is_named(zones: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ValidationError) as error:
        RouterConfig(zones=zones)
    (found,) = error.value.errors()
    assert found["loc"] == ("zones",)
    assert fault in found["msg"]


def test_a_wrong_default_is_no_fault_of_the_zones() -> None:
    with pytest.raises(ValidationError) as error:
        RouterConfig(intensity="guess", zones=("north=constant:NO:60",))
    assert [fault["loc"] for fault in error.value.errors()] == [("intensity",)]


def test_a_live_zone_needs_its_token_and_the_present() -> None:
    with pytest.raises(ValidationError, match="electricity_maps_token: is needed with zones fr=electricitymaps:FR;"):
        RouterConfig(zones=("fr=electricitymaps:FR",))
    simulated = "scaled:2026-01-01T00:00Z:60"
    with pytest.raises(ValidationError, match="zones: fr=electricitymaps:FR is of the present, PITH_CLOCK is not"):
        RouterConfig(zones=("fr=electricitymaps:FR",), electricity_maps_token="t0ken", clock=simulated)
    config = RouterConfig(zones=("fr=electricitymaps:FR",), electricity_maps_token="t0ken", outbox_path="a/box.jsonl")
    assert config.zone_settings("fr").electricity_maps_token == "t0ken"


def test_what_is_kept_of_a_zone_lies_in_a_file_of_its_own() -> None:
    config = RouterConfig(outbox_path="a/box.jsonl")
    assert config.provider_settings.keep_path == Path("a/intensity.json")
    assert config.zone_settings("north").keep_path == Path("a/intensity-north.json")
    assert config.zone_settings("../no/where").keep_path == Path("a/intensity-..%2Fno%2Fwhere.json")
    config = RouterConfig(intensity_cache_path="b/grid.txt")
    assert config.zone_settings("north").keep_path == Path("b/grid-north.txt")
