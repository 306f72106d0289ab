"""Every kernel that may be launched compiles for the GPUs it is meant for, and fits them: no driver is needed."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from engine.backends.cuda.kernels import Kernel, compile_options, device_text
from tests.kernels.emulator import planted

MODULES = ("attention", "gemm", "elementwise", "selection")
# A block's dynamic shared memory by architecture, in bytes (CUDA C++ Programming Guide, technical specifications).
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_90a": 227 * 1024}
REGISTERS_PER_MULTIPROCESSOR = 65536
# What CuPy adds of its own: flushing denormals, and an option of its C++ headers.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


@dataclass(frozen=True)
class Usage:
    """What the compiler says of one entry point; the bounds are those of the source."""

    registers: int
    spilled_bytes: int
    stack_bytes: int
    bound_threads: int
    bound_blocks: int


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    try:
        module = import_module("cupy_backends.cuda.libs.nvrtc")
        module.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI has to compile the kernels, and NVRTC is missing: {error}")
        pytest.skip(f"NVRTC is missing: {error}")
    return module


def kernels() -> Iterator[Kernel]:
    for module in MODULES:
        name = f"engine.backends.cuda.{module}"
        if find_spec(name) is not None:
            yield from import_module(name).instantiations()


def name_of(kernel: Kernel) -> str:
    return "-".join([kernel.entry, *(str(value) for _, value in kernel.defines)])


@cache
def compiled(nvrtc: Any, text: str, options: tuple[str, ...]) -> tuple[str, str]:
    """Log and PTX of all entries of a text: kernels of one source and the same macros are compiled together."""
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError as error:
        raise AssertionError(f"{error}\n{nvrtc.getProgramLog(program)}") from None
    else:
        return nvrtc.getProgramLog(program), nvrtc.getPTX(program).decode()
    finally:
        nvrtc.destroyProgram(program)


def usage(nvrtc: Any, kernel: Kernel, architecture: str) -> Usage:
    options = (*compile_options(kernel), *CUPY_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")
    log, ptx = compiled(nvrtc, device_text(kernel), options)
    used = re.search(
        rf"Function properties for {kernel.entry}\n"
        r".* (\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers",
        log,
    )
    bounds = re.search(rf"\.entry {kernel.entry}\([^)]*\)\n\.maxntid (\d+).*\n\.minnctapersm (\d+)", ptx)
    assert used and bounds, log
    stack, stores, loads, registers = map(int, used.groups())
    return Usage(registers, stores + loads, stack, *map(int, bounds.groups()))


@pytest.mark.parametrize("kernel", list(kernels()), ids=name_of)
def test_a_kernel_compiles_without_spills_and_fits_its_multiprocessor(nvrtc: Any, kernel: Kernel) -> None:
    for architecture, shared_bytes in SHARED_BYTES.items():
        used = usage(nvrtc, kernel, architecture)
        assert used.spilled_bytes == 0, architecture
        assert used.stack_bytes == 0, architecture
        assert used.bound_threads == kernel.threads, architecture
        # Registers come to a warp in steps of 8 a thread.
        registers = -(-used.registers // 8) * 8 * kernel.threads
        assert registers * used.bound_blocks <= REGISTERS_PER_MULTIPROCESSOR, architecture
        assert kernel.shared_bytes <= shared_bytes, architecture


def test_a_spill_is_seen(nvrtc: Any) -> None:
    kernel = next(kernel for kernel in kernels() if kernel.entry == "top_k")
    crowded = planted(kernel, "KERNEL_BOUNDS(THREADS, 6)", "KERNEL_BOUNDS(THREADS, 8)")
    assert usage(nvrtc, crowded, "sm_90").spilled_bytes > 0
