"""Sources as a device compiles them."""

import re
from pathlib import Path

import pytest

from engine.backends.cuda import kernels
from engine.backends.cuda.kernels import Kernel, compile_options, device_text, source_text

NORM = Kernel("norm.cu", "rms_norm", (("DTYPE", "bf16"), ("THREADS", 256)), 256, 32)
SOURCES = sorted(path.name for path in kernels.SOURCES.glob("*.cu"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_keeps_one_include_that_of_the_intrinsics(name: str) -> None:
    text = source_text(name)
    assert re.findall(r"#\s*include\s*(\S+)", text) == ['"intrinsics.cuh"']
    # What one version of that header knows and the other does not has no place in a kernel.
    assert not re.search(r"\basm\b|EMULATOR|__CUDA|__syncthreads|__shared__", text)


@pytest.mark.parametrize("name", SOURCES)
def test_a_device_gets_one_text_without_includes(name: str) -> None:
    text = device_text(Kernel(name, "any", (), 32))
    assert "#include" not in text
    assert text.count("DEVICE void sync_block()") == 1


def test_a_kernels_own_text_goes_before_its_file() -> None:
    text = device_text(Kernel("norm.cu", "any", (), 32, text='#include "intrinsics.cuh"\n// planted\n'))
    assert text.startswith((kernels.SOURCES / "intrinsics.cuh").read_text())
    assert text.endswith("// planted\n")


def test_shared_headers_are_inlined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "a.cu": '#include "b.cuh"\n #  include "c.cuh"\n// a',
        "b.cuh": '#include "intrinsics.cuh"\n#include "c.cuh"\n// b',
        "c.cuh": '#include "intrinsics.cuh"\n// c\\n',
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(kernels, "SOURCES", tmp_path)
    lines = [line for line in source_text("a.cu").splitlines() if line.strip()]
    assert lines == ['#include "intrinsics.cuh"', "// c\\n", "// b", "// a"]


def test_macros_become_options() -> None:
    assert compile_options(NORM) == ("-std=c++17", "-DDTYPE=bf16", "-DTHREADS=256")
