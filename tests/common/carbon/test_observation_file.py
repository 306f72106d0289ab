import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.carbon.electricity_maps import ElectricityMaps
from common.carbon.intensity import Scope
from common.carbon.observation_file import MAX_FILE_BYTES, ObservationFile
from common.carbon.observations import Observation, Observations
from tests.common.carbon.grid_api import TOKEN
from tests.common.carbon.grid_file import HOUR, MIDNIGHT

SOURCE = ElectricityMaps("DE", Scope.DIRECT, TOKEN)
OBSERVATIONS = [Observation(MIDNIGHT, 300.5), Observation(MIDNIGHT + HOUR, 0.1, estimated=True)]


def kept(folder: Path, source: ElectricityMaps = SOURCE) -> ObservationFile:
    return ObservationFile(folder / "intensity.json", source)


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    kept(tmp_path / "new").write(Observations(OBSERVATIONS))
    kept(tmp_path / "new").write(Observations(OBSERVATIONS))
    assert kept(tmp_path / "new").read() == OBSERVATIONS
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["intensity.json"]
    assert TOKEN not in (tmp_path / "new" / "intensity.json").read_text()


@pytest.mark.parametrize("other", [("FR", Scope.DIRECT), ("DE", Scope.LIFECYCLE)])
def test_what_another_source_left_is_not_read(tmp_path: Path, other: tuple[str, Scope]) -> None:
    kept(tmp_path, ElectricityMaps(*other, TOKEN)).write(Observations(OBSERVATIONS))
    with capture_logs() as logs:
        assert kept(tmp_path).read() == ()
    assert logs == []


def test_no_file_is_nothing_to_speak_of(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert kept(tmp_path).read() == ()
    assert logs == []


def damaged(**fields: Any) -> bytes:
    whole = {"of": {"source": "Electricity Maps", "zone": "DE", "signal": "average, direct"}, "observations": []}
    return json.dumps(whole | fields).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"of": {',
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b" " * (MAX_FILE_BYTES + 1),
        damaged(observations=7),
        damaged(observations=[["2023-01-01T00:00:00+00:00", 1.0]]),
        damaged(observations=[["2023-01-01T00:00:00+00:00", -1.0, False]]),
        damaged(observations=[["2023-01-01T00:00:00+00:00", float("nan"), False]]),
        damaged(observations=[["long ago", 1.0, False]]),
    ],
)
def test_a_damaged_file_is_passed_over_with_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "intensity.json").write_bytes(content)
    with capture_logs() as logs:
        assert kept(tmp_path).read() == ()
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("kept intensities cannot be read", "warning")
    kept(tmp_path).write(Observations(OBSERVATIONS))
    assert kept(tmp_path).read() == OBSERVATIONS


def test_a_disk_that_does_not_take_it_is_worth_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = ObservationFile(tmp_path / "file" / "intensity.json", SOURCE)
    with capture_logs() as logs:
        for _ in range(3):
            file.write(Observations(OBSERVATIONS))
    assert [line["event"] for line in logs] == ["intensities cannot be kept on disk"]


def test_the_file_that_was_there_survives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(tmp_path)
    file.write(Observations(OBSERVATIONS))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.carbon.observation_file.os.fsync", full)
    with capture_logs() as logs:
        file.write(Observations([Observation(MIDNIGHT + timedelta(days=1), 1.0)]))
    assert logs[0]["fault"] == "No space left on device"
    assert file.read() == OBSERVATIONS
    assert [path.name for path in tmp_path.iterdir()] == ["intensity.json"]
