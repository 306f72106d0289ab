"""What the router may be told, and how a wrong setting is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
