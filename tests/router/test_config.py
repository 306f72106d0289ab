"""What the router may be told, and how a wrong setting is named."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.carbon.specification import provider_from_spec
from common.client_tls import ClientTls
from router.config import RouterConfig
from tests.certificates import Authority


def test_the_defaults_need_nothing_but_a_folder_to_write_to() -> None:
    config = RouterConfig()
    assert (config.listen, config.database_url) == ("127.0.0.1:7400", "sqlite:///.pith/router.db")
    assert config.engine_addresses == {}
    assert config.carbon.pue >= 1


def test_engines_are_named_by_their_address_or_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITH_ROUTER_ENGINES", '["10.0.0.1:7500", "gpu-1=10.0.0.2:7500", "near=unix:/run/engine"]')
    assert RouterConfig().engine_addresses == {
        "10.0.0.1:7500": "10.0.0.1:7500",
        "gpu-1": "10.0.0.2:7500",
        "near": "unix:/run/engine",
    }


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"engines": ("a=h:1", "a=h:2")}, "no two may have the same name"),
        ({"engines": ("a=",)}, "ADDRESS or NAME=ADDRESS"),
        ({"engines": ("gpu-1=10.0.0.2",)}, "10.0.0.2 must be HOST:PORT"),
        ({"engines": ("h:1", "10.0.0.2:0")}, "10.0.0.2:0 has port 0; it must be 1 to 65535"),
        ({"intensity": "guess"}, "intensity provider must be"),
        ({"intensity": "profile:absent.csv"}, "absent.csv cannot be read"),
        ({"intensity": "zone:Atlantis"}, "zone 'Atlantis' must be an ISO 3166-1 alpha-2 code"),
        ({"intensity": "uk:18"}, "REGION must be 1 to 17, got '18'"),
        ({"electricity_maps_token": "a\nb"}, "must be printable ASCII, on one line"),
        ({"electricity_maps_url": "http://api.electricitymaps.com"}, "is beyond loopback; it must be https"),
        ({"uk_carbon_intensity_url": "api.carbonintensity.org.uk"}, "must be https://HOST[:PORT][/PATH]"),
        ({"uk_carbon_intensity_url": "https://me:it@host"}, "must be https://HOST[:PORT][/PATH]"),
        ({"intensity_timeout_seconds": 0}, "greater than 0"),
        ({"intensity_expires_seconds": 3600}, "greater than or equal to 7200"),
        ({"pue": 0.9}, "greater than or equal to 1"),
        ({"stall_seconds": 0}, "greater than 0"),
        ({"max_prompt_characters": 0}, "greater than or equal to 1"),
        ({"unheard_of": 1}, "Extra inputs"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as error:
        RouterConfig(**settings)
    (found,) = error.value.errors()
    assert found["loc"][0] == next(iter(settings))
    assert fault in found["msg"]


def test_engines_are_called_as_the_files_say(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("router")
    assert RouterConfig().engine_tls is None
    settings = {"engine_tls_certificate": own.certificate, "engine_tls_key": own.key}
    config = RouterConfig(engine_tls_ca=authority.certificate, **settings)
    assert config.engine_tls == ClientTls(authority.certificate, own.certificate, own.key)
    with pytest.raises(ValidationError, match="engine_tls_ca: is needed with engine_tls_certificate"):
        RouterConfig(**settings)
    with pytest.raises(ValidationError, match=r"engine_tls_key: .*router\.pem: not a private key"):
        RouterConfig(engine_tls_ca=authority.certificate, **{**settings, "engine_tls_key": own.certificate})


def test_a_live_grid_needs_its_token_and_the_present() -> None:
    with pytest.raises(ValidationError, match="electricity_maps_token: is needed with intensity electricitymaps:DE"):
        RouterConfig(intensity="electricitymaps:DE")
    with pytest.raises(ValidationError, match="electricity_maps_token: is needed"):
        RouterConfig(intensity="electricitymaps:DE", electricity_maps_token="")
    config = RouterConfig(intensity="electricitymaps:DE", electricity_maps_token="t0ken", outbox_path="a/box.jsonl")
    assert config.provider_settings.electricity_maps_token == "t0ken"
    assert config.provider_settings.keep_path == Path("a/intensity.json")
    assert "t0ken" not in repr(config)
    simulated = "scaled:2026-01-01T00:00Z:60"
    for spec in ("electricitymaps:DE", "uk", "uk:13"):
        with pytest.raises(ValidationError, match=f"intensity: {spec} is of the present, PITH_CLOCK is not"):
            RouterConfig(intensity=spec, electricity_maps_token="t0ken", clock=simulated)
    assert RouterConfig(intensity="zone:DE", clock=simulated).intensity == "zone:DE"


def test_the_worlds_mean_is_the_grid_of_who_names_none() -> None:
    config = RouterConfig()
    intensity = provider_from_spec(config.intensity).current(datetime(2026, 1, 1, tzinfo=UTC))
    assert (intensity.g_per_kwh, str(intensity.signal)) == (473.0, "average, lifecycle")
