"""What g++ made once is found again, and what stops it is said in a line."""

from pathlib import Path

import numpy as np
import pytest

from tests.kernels.compilation import CompileError, compiled_kernel, find_compiler
from tests.kernels.devices import emulator_only
from tests.kernels.emulator import Emulator
from tests.kernels.toys import toy

pytestmark = emulator_only


def test_a_library_is_built_once_and_its_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Emulator()
    out = device.zeros(32, np.float32)
    monkeypatch.setenv("PITH_KERNEL_CACHE", str(tmp_path / "cache"))
    good = toy("float* out", "out[threadIdx.x] = 41.0f;")
    device.launch(good, (1, 1, 1), (out,))
    built = list((tmp_path / "cache").iterdir())
    assert [path.suffix for path in built] == [".so"]
    compiled_kernel.cache_clear()
    device.launch(good, (1, 1, 1), (out,))
    assert list((tmp_path / "cache").iterdir()) == built
    assert (out == 41).all()
    with pytest.raises(
        CompileError, match=r"^toy\.cu does not compile: toy\.cu:3:\d+: error: .*missing_name"
    ) as caught:
        device.launch(toy("float* out", "out[0] = missing_name;"), (1, 1, 1), (out,))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == built


@pytest.mark.parametrize(("ci", "outcome"), (("1", pytest.fail.Exception), ("", pytest.skip.Exception)))
def test_without_a_compiler_ci_fails_and_others_skip(
    ci: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"needs g\+\+"):
        find_compiler()
