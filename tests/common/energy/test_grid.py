"""Files of measurements: what is read, and what is said of faults."""

import gzip
import math
from pathlib import Path

import pytest

from common.energy import grid
from common.energy.grid import GridError, Measurement, read
from common.energy.reading import EnergySource

HEADER = "input_tokens,output_tokens,gpu_energy_j"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grid.csv"


def faults(path: Path, text: str | bytes, *, keep_first_row: bool = True) -> list[str]:
    """Without the folder that they begin with."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(GridError) as raised:
        read(path, keep_first_row=keep_first_row)
    return [fault.removeprefix(str(path)) for fault in raised.value.faults]


def test_first_row_is_warm_up(path: Path) -> None:
    path.write_text(f"{HEADER}\n8,8,900\n8,16,70.5\n64,8,60\n")
    assert read(path) == (Measurement(8, 16, 70.5), Measurement(64, 8, 60))
    assert read(path, keep_first_row=True)[0] == Measurement(8, 8, 900)


def test_batch_is_read_and_other_columns_are_not(path: Path) -> None:
    path.write_text("batch,device,output_tokens,gpu_energy_j,input_tokens\n8,H100,615.5,430.1,100\n")
    assert read(path, keep_first_row=True) == (Measurement(100, 615.5, 430.1, batch=8),)


def test_source_is_read_where_it_is_one(path: Path) -> None:
    path.write_text(f"{HEADER},source\n1,2,3,MODELLED\n1,2,3, MEASURED\n1,2,3,vLLM\n1,2,3,\n")
    sources = [measurement.source for measurement in read(path, keep_first_row=True)]
    assert sources == [EnergySource.MODELLED, EnergySource.MEASURED, None, None]


def test_input_tokens_may_be_unknown(path: Path) -> None:
    path.write_text("output_tokens,gpu_energy_j\n10,5\n")
    assert read(path, keep_first_row=True) == (Measurement(None, 10, 5),)
    path.write_text(f"{HEADER}\n,10,5\n,20,9\n")
    assert [measurement.input_tokens for measurement in read(path, keep_first_row=True)] == [None, None]


def test_gzip_is_known_by_its_bytes(path: Path) -> None:
    path.write_bytes(gzip.compress(f"{HEADER}\r\n1,2,3\r\n\r\n4,5,6\r\n".encode()))
    assert read(path) == (Measurement(4, 5, 6),)


def test_mark_of_spreadsheets_and_spaces_are_passed_over(path: Path) -> None:
    path.write_text(f"\ufeff{HEADER.replace(',', ', ')}\n 1, 2, 3\n")
    assert read(path, keep_first_row=True) == (Measurement(1, 2, 3),)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("x,8,5", ":2: input_tokens must be a number, got 'x'"),
        ("-1,8,5", ":2: input_tokens must be from 0 to 100,000,000, got -1"),
        ("nan,8,5", ":2: input_tokens must be from 0 to 100,000,000, got nan"),
        ("8,0,5", ":2: output_tokens must be above 0 and at most 100,000,000, got 0"),
        ("8,,5", ":2: output_tokens must be a number, got ''"),
        ("8,8,0", ":2: gpu_energy_j must be from 1e-30 to 1e+12 J, got 0"),
        ("8,8,inf", ":2: gpu_energy_j must be from 1e-30 to 1e+12 J, got inf"),
        # Shares of it would be infinite.
        ("8,8,1e-320", ":2: gpu_energy_j must be from 1e-30 to 1e+12 J, got 9.99989e-321"),
        ("8,8", ":2: has 2 fields, the header 3"),
    ],
)
def test_fault_names_line_field_and_limit(path: Path, row: str, fault: str) -> None:
    assert faults(path, f"{HEADER}\n{row}\n") == [fault]


def test_every_fault_is_told(path: Path) -> None:
    found = faults(path, f"{HEADER},batch\n8,8,5,1\n8,-1,0,0.5\n8,8,5,1\n8,8,5,many\n")
    assert [fault.split()[:2] for fault in found] == [
        [":3:", "output_tokens"],
        [":3:", "gpu_energy_j"],
        [":3:", "batch"],
        [":5:", "batch"],
    ]


def test_many_faults_are_not_all_told(path: Path) -> None:
    found = faults(path, HEADER + "\n8,8,0" * 50)
    assert len(found) == 11
    assert "perhaps more" in found[-1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no column output_tokens"),
        ("n,m,e\n1,2,3\n", "no column output_tokens and no column gpu_energy_j; a grid has input_tokens, output"),
        (f"{HEADER},gpu_energy_j\n1,2,3,4\n", ":1: has more than one column gpu_energy_j"),
        (f"{HEADER}\n", "no row"),
        (f"{HEADER}\n1,2,3\n,5,6\n", "input_tokens must be given in every row or in none"),
        (b"\xff\xfe", "not UTF-8"),
        (gzip.compress(HEADER.encode(), mtime=0)[:-9], "not whole as gzip"),
        (f'{HEADER}\n1,2,"{"3" * 200_000}"\n', "is not CSV"),
    ],
)
def test_file_that_is_no_grid(path: Path, text: str | bytes, fault: str) -> None:
    (found,) = faults(path, text)
    assert fault in found


def test_single_row_is_only_warm_up(path: Path) -> None:
    (found,) = faults(path, f"{HEADER}\n1,2,3\n", keep_first_row=False)
    assert "after the first, the warm-up" in found


def test_limits_of_size_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MAX_ROWS", 2)
    assert faults(path, HEADER + "\n1,2,3" * 3) == [":4: has over 2 rows, the limit"]
    monkeypatch.setattr(grid, "MAX_BYTES", 1 << 20)
    (found,) = faults(path, gzip.compress(b"0" * (1 << 21)))
    assert "over 1 MiB" in found


def test_missing_file_is_an_oserror(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(path)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"input_tokens": -1}, "input_tokens"),
        ({"output_tokens": 0}, "output_tokens"),
        ({"joules": 0}, "joules"),
        ({"joules": math.nan}, "joules"),
        ({"batch": 0.5}, "batch"),
    ],
)
def test_impossible_measurement_is_refused(fields: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Measurement(**{"input_tokens": 1.0, "output_tokens": 1.0, "joules": 1.0, **fields})
