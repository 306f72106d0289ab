"""Arguments of the services: one flag, and a help that says all else."""

from __future__ import annotations

import pytest
from pydantic_settings import SettingsConfigDict

from common.command_line import command_line
from common.config import ServiceConfig


class ShopConfig(ServiceConfig):
    model_config = SettingsConfigDict(env_prefix="PITH_SHOP_")


def test_insecure_is_said_only_where_it_was() -> None:
    assert command_line(ShopConfig, "shop", []) == {}
    assert command_line(ShopConfig, "shop", ["--insecure"]) == {"insecure": True}


@pytest.mark.parametrize("argument", ["--insecur", "--listen=0.0.0.0:1", "extra"])
def test_what_is_unknown_is_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        command_line(ShopConfig, "shop", [argument])
    assert exited.value.code == 2
    assert f"python -m shop: error: unrecognized arguments: {argument}" in capsys.readouterr().err


def test_help_names_every_setting_its_default_and_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        command_line(ShopConfig, "shop", ["--help"])
    assert exited.value.code == 0
    said = capsys.readouterr().out
    assert "PITH_SHOP_CONFIG" in said and "PITH_CLOCK (default: system)" in said
    assert all(f"PITH_SHOP_{name.upper()} " in said for name in ShopConfig.model_fields if name != "clock")
    assert "PITH_SHOP_DRAIN_SECONDS (default: 20.0)\n      Time for calls in flight" in said
