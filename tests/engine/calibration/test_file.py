"""A calibration in the cache directory: found by its model and device, and by no other."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.calibration.file import CalibrationFileError, load, save
from tests.common.energy.test_calibration import CALIBRATION


def test_it_is_found_by_model_and_device(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert load(cache, "d1", "NVIDIA H200") is None
    other = replace(CALIBRATION, device="CPU, threads: 1", cells=9)
    file = save(CALIBRATION, cache)
    save(other, cache)
    assert file.parent == cache and [path.suffix for path in cache.iterdir()] == [".json"] * 2
    assert load(cache, "d1", "NVIDIA H200") == CALIBRATION
    assert load(cache, "d1", "CPU, threads: 1") == other
    assert load(cache, "d2", "NVIDIA H200") is None
    save(replace(CALIBRATION, cells=8), cache)
    assert load(cache, "d1", "NVIDIA H200") == replace(CALIBRATION, cells=8)


def test_a_file_that_is_damaged_or_anothers_is_refused_in_one_line(tmp_path: Path) -> None:
    file = save(CALIBRATION, tmp_path)
    # These two devices share a file name.
    with pytest.raises(CalibrationFileError, match="belongs to another model or device"):
        load(tmp_path, "d1", "NVIDIA-H200")
    for damaged in (file.read_bytes()[:-20], b"", b"\xff\xfe", b'{"format":\n1}'):
        file.write_bytes(damaged)
        with pytest.raises(CalibrationFileError, match=str(file)) as raised:
            load(tmp_path, "d1", "NVIDIA H200")
        assert "\n" not in str(raised.value)
    (tmp_path / "not a directory").write_text("")
    with pytest.raises(CalibrationFileError, match="cannot be written"):
        save(CALIBRATION, tmp_path / "not a directory")
