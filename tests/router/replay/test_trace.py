"""A carbon file as a replay lives through it."""

import json
from pathlib import Path

import numpy as np
import pytest

from router.diagnosis.lines import LogError
from router.replay.trace import Year, read_trace
from tests.router.replay.planted import START, carbon_file, trace

YEAR = {"XX": {"min": 10, "max": 500.5, "mean": 120}, "X": {"min": 0, "max": 1, "mean": 1}}


def test_hours_are_counted_from_the_files_first(tmp_path: Path) -> None:
    found = read_trace(carbon_file(tmp_path))
    assert (found.start, len(found), found.column) == (START, 960, "Carbon Intensity gCO2eq/kWh (direct)")
    assert found.g_per_kwh == pytest.approx(trace().g_per_kwh, abs=1e-3)
    assert found.year.source == "XX_2023.csv"
    assert (found.year.least, found.year.most) == (found.g_per_kwh.min(), found.g_per_kwh.max())
    lifecycle = read_trace(tmp_path / "XX_2023.csv", "Carbon Intensity gCO2eq/kWh (LCA)")
    assert lifecycle.g_per_kwh == pytest.approx(2 * trace().g_per_kwh, abs=1e-3)


def test_a_missing_hour_has_the_last_observation(tmp_path: Path) -> None:
    path = carbon_file(tmp_path, np.arange(1.0, 11.0))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], *lines[5:8], lines[8].replace(",8.000,", ",,"), *lines[9:], ""]))
    assert read_trace(path).g_per_kwh.tolist() == [1, 2, 3, 3, 5, 6, 7, 7, 9, 10]


def test_the_year_is_read_beside_it_or_from_a_file_that_is_named(tmp_path: Path) -> None:
    path = carbon_file(tmp_path)
    (tmp_path / "year_2023.json").write_text(json.dumps({"YY": YEAR["X"]}))
    assert read_trace(path).year.source == "XX_2023.csv"
    (tmp_path / "year_2023.json").write_text(json.dumps(YEAR))
    assert read_trace(path).year == Year(10.0, 500.5, 120.0, "year_2023.json")
    (tmp_path / "year_2023.json").write_text(json.dumps({"XX": YEAR["XX"], "XX_NORTH": YEAR["X"]}))
    assert read_trace(carbon_file(tmp_path, name="XX_NORTH_2023.csv")).year.most == 1.0
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"XX": {"min": 1, "max": 3, "mean": 2}}))
    assert read_trace(path, year=other).year == Year(1.0, 3.0, 2.0, "other.json")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object by zone"),
        ('{"YY": {}}', "has no zone with which the name of XX_2023.csv begins; it has YY"),
        ('{"XX": {"min": 1, "max": 2}}', "XX: min, mean and max must be numbers that ascend from 0"),
        ('{"XX": {"min": 3, "max": 2, "mean": 2.5}}', "XX: min, mean and max must be numbers that ascend from 0"),
        ('{"XX": {"min": 1, "max": NaN, "mean": 2}}', "XX: min, mean and max must be numbers that ascend from 0"),
        ('{"XX": 5}', "XX: min, mean and max must be numbers that ascend from 0"),
    ],
    ids=["torn", "list", "zone", "missing", "order", "nan", "number"],
)
def test_what_is_no_year_is_named(tmp_path: Path, text: str, fault: str) -> None:
    year = tmp_path / "given.json"
    year.write_text(text)
    with pytest.raises(LogError) as refused:
        read_trace(carbon_file(tmp_path), year=year)
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["datetime,a,b", "2023-01-01,1,2"], "--carbon-column must say which column holds gCO2eq/kWh"),
        (["a (direct)", "1"], "exactly one column must begin with 'datetime'"),
        (["datetime,a", "2023-01-01,-1"], "line 2: a must be a finite number of at least 0, got '-1'"),
        (["datetime,a", "2023-01-01,1", "2093-01-01,1"], "a trace may span at most"),
    ],
    ids=["column", "time", "negative", "long"],
)
def test_what_is_no_trace_is_named(tmp_path: Path, lines: list[str], fault: str) -> None:
    path = tmp_path / "grid.csv"
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(LogError) as refused:
        read_trace(path)
    assert fault in str(refused.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"none\.csv cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(LogError, match=r"none\.json cannot be read: No such file"):
        read_trace(carbon_file(tmp_path), year=tmp_path / "none.json")
