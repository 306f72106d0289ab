"""The grid's file: whole after every cell, gone on with, and refused where it is another's or damaged."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.energy.grid import Measurement, read
from common.energy.reading import EnergySource
from engine.calibration.grid import Cell
from engine.calibration.rows import GridFile, GridFileError

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
DEVICE = 'GPU "A", threads: 1'


def opened(path: Path | None, device: str = DEVICE, source: EnergySource = EnergySource.MEASURED) -> GridFile:
    return GridFile(path, source, device, "digest", ManualClock(START))


def test_what_is_kept_is_there_for_another_run_and_for_the_command_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "grid.csv"
    grid = opened(path)
    for joules in (100.0, 3.0, 5.0):
        grid.add(Cell(16, 64, 128), joules, 5.01)
    grid.add(Cell(1, 32, 64), 0.1 + 0.2, 5.0)
    again = opened(path)
    assert again.rows == grid.rows and again.measured_at() == START
    mean = Measurement(64, 128, 4.0, 16)
    assert again.measurements() == {Cell(16, 64, 128): mean, Cell(1, 32, 64): Measurement(32, 64, 0.1 + 0.2, 1)}
    assert [again.windows(cell) for cell in (Cell(16, 64, 128), Cell(1, 32, 64), Cell(1, 1, 1))] == [2, 1, 0]
    # Both leave the first row out.
    assert [measured.joules for measured in read(path)] == [3, 5, 0.1 + 0.2]


def test_without_a_file_rows_are_kept_in_memory() -> None:
    grid = opened(None)
    assert grid.measurements() == {}
    grid.add(Cell(1, 2, 3), 9.0, 1.0)
    grid.add(Cell(1, 2, 3), 4.0, 1.0)
    assert grid.measurements() == {Cell(1, 2, 3): Measurement(2, 3, 4.0, 1)}


def test_another_devices_or_sources_grid_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    opened(path).add(Cell(1, 2, 3), 4.0, 1.0)
    with pytest.raises(GridFileError, match=r"grid.csv:2: device is .*GPU .*, of this engine 'other'"):
        opened(path, device="other")
    with pytest.raises(GridFileError, match="source is 'MEASURED', of this engine 'MODELLED'"):
        opened(path, source=EnergySource.MODELLED)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("gpu_energy_j", "joules", ":1: must be the line input_tokens,"),
        (",4.0,", ",nan,", ":2: gpu_energy_j must be a number above 0, got 'nan'"),
        (",4.0,", ",-4.0,", ":2: gpu_energy_j"),
        (",4.0,", ",,", ":2: gpu_energy_j"),
        ("2,3,", "2.5,3,", ":2: input_tokens must be a whole number above 0, got '2.5'"),
        ("2,3,", "2,0,", ":2: output_tokens"),
        (",digest", "", ":2: must have 9 fields, got 8"),
        ("+00:00,", ",", ":2: measured_at must be a time with its zone"),
        ("2026-", "in 26-", ":2: measured_at must be"),
        ("2026-03-01T12:00:00+00:00", "9999-12-31T23:59:59-14:00", ":2: measured_at must be"),
        ("2,3,", "900000000,3,", ":2: input_tokens must be from 0 to 100,000,000"),
        (",4.0,", ",1e13,", ":2: joules must be from 1e-30 to"),
        ("2,3,", '"2,3,', "is not CSV"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "grid.csv"
    opened(path).add(Cell(1, 2, 3), 4.0, 1.0)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(GridFileError, match=named):
        opened(path)


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GridFileError, match="is not CSV in UTF-8"):
        opened(path)
    with pytest.raises(GridFileError, match=r"cannot be read: Is a directory"):
        opened(tmp_path)
    (tmp_path / "file").write_text("")
    grid = opened(None)
    grid.path = tmp_path / "file" / "grid.csv"
    with pytest.raises(GridFileError, match="cannot be written"):
        grid.add(Cell(1, 2, 3), 4.0, 1.0)
    assert grid.rows == []
