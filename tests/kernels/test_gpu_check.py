"""The check of the kernels on a GPU, without one: what it runs, what it keeps, and the device that tests get."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.cuda.kernels import Kernel
from tests.bench import gpu_check
from tests.bench.decoding.results import Results
from tests.bench.gpu_check import SANITIZED, TESTS, Check, all_checks, run, run_check
from tests.kernels import devices
from tests.kernels.devices import GuardedGpu, GuardedMemoryError
from tests.kernels.emulator import Emulator

TOUCH = Kernel("touch.cu", "touch", (), 32)
MIXED = """
import os, pytest
def test_right(): assert os.environ["PITH_KERNEL_DEVICE"] == "cuda"
@pytest.mark.parametrize("value", [1, 2])
def test_wrong(value): assert value == 2, "not two"
@pytest.mark.skip
def test_skipped(): pass
"""


class StandIn:
    """A GPU in host memory whose launches write where they are told to."""

    def __init__(self) -> None:
        self.offset = 0
        self.capturing = False

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def upload(self, host: Any, array: Any) -> None:
        array[...] = host

    def to_host(self, array: Any) -> Any:
        return np.array(array)

    def synchronize(self) -> None:
        assert not self.capturing, "no stream may be waited for while it is captured"

    def capture(self, work: Any) -> Any:
        self.capturing = True
        work()
        self.capturing = False
        return work

    def launch(self, kernel: Kernel, grid: Any, arguments: Any) -> None:
        target = arguments[0]
        whole = target if target.base is None else target.base
        start = target.ctypes.data - whole.ctypes.data
        whole[start + self.offset] = 7


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(devices, "_gpu", lambda: stand_in)
    return stand_in


def test_memory_of_a_tested_gpu_is_nan_until_it_is_written(gpu: StandIn) -> None:
    device = GuardedGpu(multiprocessors=13)
    assert device.multiprocessors == 13
    np.testing.assert_array_equal(device.empty((3, 5), np.float32), np.nan)
    np.testing.assert_array_equal(device.empty(4, np.int32), -1)
    np.testing.assert_array_equal(device.zeros((2, 2), np.uint16), 0)
    host = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(device.asarray(host), host)
    assert device.empty((0,), np.float32).shape == (0,)


@pytest.mark.parametrize(("offset", "caught"), [(-1, True), (0, False), (31, False), (32, True)])
def test_a_write_beside_an_array_is_found(gpu: StandIn, offset: int, caught: bool) -> None:
    device = GuardedGpu(8)
    array = device.zeros((4, 4), np.uint16)
    gpu.offset = offset
    if not caught:
        device.launch(TOUCH, (1, 1, 1), (array, np.int32(3)))
        return
    with pytest.raises(GuardedMemoryError, match="touch wrote beside argument 0"):
        device.launch(TOUCH, (1, 1, 1), (array, np.int32(3)))


def test_a_captured_launch_waits_for_nothing(gpu: StandIn) -> None:
    device = GuardedGpu(8)
    array = device.zeros((4, 4), np.uint16)
    replay = device.capture(lambda: device.launch(TOUCH, (1, 1, 1), (array,)))
    gpu.offset = -1
    with pytest.raises(GuardedMemoryError):
        replay()


def test_without_the_variable_tests_run_on_the_emulator() -> None:
    device = devices.make_device(3, multiprocessors=5)
    assert isinstance(device, Emulator)
    assert device.multiprocessors == 5


def test_every_file_that_makes_its_device_is_checked_and_some_under_the_sanitizer() -> None:
    checks = all_checks()
    files = [check.file for check in checks if not check.tool]
    assert files[:2] == ["test_emulator.py", "test_attention.py"]
    assert set(files) >= {"test_gemm.py", "test_epilogues.py", "test_elementwise.py", "test_select.py"}
    assert {check.tool for check in checks} == {"", "memcheck", "racecheck"}
    for file, select in SANITIZED.items():
        text = (TESTS / file).read_text()
        for words in select.split(" or "):
            assert any(words in line for line in text.splitlines() if line.startswith("def test_")), (file, words)


def test_a_check_counts_what_passed_and_names_what_failed(tmp_path: Path) -> None:
    (tmp_path / "test_mixed.py").write_text(MIXED)
    result = run_check(Check("test_mixed.py"), 60, tmp_path)
    assert (result["passed"], result["skipped"]) == (2, 1)
    assert list(result["failures"]) == ["test_wrong[1]"]
    assert "not two" in result["failures"]["test_wrong[1]"][0]
    assert result["failed"] == "pytest ended with 1"
    (tmp_path / "test_broken.py").write_text("import nothing_of_the_kind")
    assert run_check(Check("test_broken.py"), 60, tmp_path)["failed"] == "pytest ended with 2"
    assert run_check(Check("test_mixed.py"), 0.01, tmp_path) == {"failed": "ran past 0 s"}


def test_a_sanitizer_runs_what_is_selected_and_its_finds_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_mixed.py").write_text(MIXED)
    check = Check("test_mixed.py", "racecheck", "right")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_check(check, 60, tmp_path) == {"left_out": "compute-sanitizer is not on PATH"}
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "--tool racecheck --error-exitcode" ] || exit 3\nshift 4\nexec "$@"\n'
    )
    sanitizer.chmod(sanitizer.stat().st_mode | stat.S_IXUSR)
    assert run_check(check, 60, tmp_path) == {"passed": 1, "skipped": 0, "failures": {}}
    sanitizer.write_text("#!/bin/sh\necho '========= Error: Race reported'\necho other\nexit $4\n")
    result = run_check(check, 60, tmp_path)
    assert result == {"failed": "racecheck found faults", "found": ["========= Error: Race reported"]}


def test_a_run_stops_when_its_time_is_up_and_the_next_goes_on(tmp_path: Path) -> None:
    clock, ran = [0.0], []

    def execute(check: Check, seconds: float) -> dict[str, Any]:
        ran.append((check.name, seconds))
        clock[0] += 40
        return {"failed": "no"} if check.file == "b" else {"passed": 1}

    checks, file = [Check("a"), Check("b"), Check("c"), Check("c", "memcheck", "x")], tmp_path / "gpu.json"

    def once(budget_seconds: float, *, retry_failed: bool = False) -> int:
        results = Results.open(file, "gpu_check", {"device": "gpu"}, "command", {})
        said: list[str] = []
        return run(checks, execute, results, budget_seconds, lambda: clock[0], said.append, retry_failed=retry_failed)

    assert once(100) == 2
    assert ran == [("a", 100), ("b", 60)]
    assert once(1000) == 0
    assert [name for name, _ in ran[2:]] == ["c", "memcheck c"]
    assert once(1000) == 0
    assert len(ran) == 4
    assert once(1000, retry_failed=True) == 0
    assert ran[4:] == [("b", 1000)]
    assert list(json.loads(file.read_text())["pieces"]) == ["a", "b", "c", "memcheck c"]


def test_without_a_gpu_there_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "find_device", lambda: "no NVIDIA driver on this machine")
    assert gpu_check.main(["--json", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err == "tests.bench.gpu_check: no NVIDIA driver on this machine\n"
    assert list(tmp_path.iterdir()) == []
