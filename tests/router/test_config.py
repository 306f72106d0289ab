"""What the router may be told, and how a wrong setting is named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from router.config import RouterConfig


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
