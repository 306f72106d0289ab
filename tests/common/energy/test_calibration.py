"""A calibration goes through its file unchanged, and a file that is damaged is refused by the name of its field."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.calibration import Calibration
from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot

CALIBRATION = Calibration(
    model=SweetSpot(request_joules=0.5, output_joules=0.1, output_squared_joules=1e-7),
    source=EnergySource.MEASURED,
    model_digest="d1",
    device="NVIDIA H200",
    measured_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    cells=38,
    held_out_mape=1.25,
    corner_mape=None,
    max_batch=16,
    max_input_tokens=4096,
    max_output_tokens=2048,
)
JOULES = st.floats(0, 1e300)
PERCENT = st.none() | st.floats(0, 1e6)


@given(st.builds(SweetSpot, *[JOULES] * 9), PERCENT, PERCENT, st.integers(1, 2**32 - 1), st.integers(-12, 12))
@settings(deadline=None)
def test_what_is_written_is_read(
    model: SweetSpot, held_out: float | None, corner: float | None, count: int, zone_hours: int
) -> None:
    at = datetime(2026, 3, 1, 12, 30, 1, 7, tzinfo=timezone(timedelta(hours=zone_hours)))
    given = replace(CALIBRATION, model=model, held_out_mape=held_out, corner_mape=corner, cells=count, measured_at=at)
    assert Calibration.from_json(given.to_json()) == given


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format 1"),
        ({"model": None}, "model"),
        ({"model": {"output_joules": 1.0}}, "request_joules"),
        ({"source": "ATTRIBUTED"}, "source"),
        ({"source": "GUESSED"}, "source"),
        ({"model_digest": 7}, "model_digest"),
        ({"device": ""}, "device"),
        ({"measured_at": "yesterday"}, "measured_at"),
        ({"measured_at": "2026-03-01T12:00:00"}, "measured_at"),
        ({"measured_at": "9999-12-31T23:59:59-14:00"}, "measured_at"),
        ({"cells": 0}, "cells"),
        ({"cells": 2.0}, "cells"),
        ({"cells": True}, "cells"),
        ({"max_batch": 2**32}, "max_batch"),
        ({"max_input_tokens": None}, "max_input_tokens"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"held_out_mape": -1}, "held_out_mape"),
        ({"held_out_mape": "1"}, "held_out_mape"),
        ({"corner_mape": float("inf")}, "corner_mape"),
    ],
)
def test_a_damaged_field_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Calibration.from_json(json.dumps(json.loads(CALIBRATION.to_json()) | change))


@pytest.mark.parametrize("name", json.loads(CALIBRATION.to_json()))
def test_a_field_that_is_missing_is_named(name: str) -> None:
    values = json.loads(CALIBRATION.to_json())
    del values[name]
    with pytest.raises(ValueError, match=name):
        Calibration.from_json(json.dumps(values))


@pytest.mark.parametrize("coefficient", [-1e-9, float("nan"), "0", None, 10**400])
def test_a_coefficient_that_no_work_has_is_named(coefficient: object) -> None:
    values = json.loads(CALIBRATION.to_json())
    values["model"]["pair_joules"] = coefficient
    with pytest.raises(ValueError, match="pair_joules"):
        Calibration.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "7"])
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Calibration.from_json(text)
