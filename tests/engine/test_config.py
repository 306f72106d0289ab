"""What an engine may be told of its grid zone, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.config import EngineConfig


def test_the_zone_comes_by_environment_and_is_none_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineConfig(model_path=Path()).zone == ""
    monkeypatch.setenv("PITH_ENGINE_ZONE", "eu-north-1")
    assert EngineConfig(model_path=Path()).zone == "eu-north-1"
    assert EngineConfig(model_path=Path(), zone="é" * 128).zone == "é" * 128


@pytest.mark.parametrize(
    ("zone", "fault"),
    [
        ("z" * 129, "has 129 characters; at most 128"),
        ("a\nb", "has control or other unprintable characters"),
        ("\x00", "has control or other unprintable characters"),
        ("north ", "begins or ends with a space"),
    ],
    ids=["too long", "two lines", "null", "a space at its end"],
)
def test_a_wrong_zone_is_named(zone: str, fault: str) -> None:
    with pytest.raises(ValidationError) as error:
        EngineConfig(model_path=Path(), zone=zone)
    (found,) = error.value.errors()
    assert found["loc"] == ("zone",)
    assert fault in found["msg"]
