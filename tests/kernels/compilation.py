"""Kernels for the emulator: g++ makes a library of each, kept in a cache; its own runtime is one more library.

The cache is the folder that PITH_KERNEL_CACHE names, `.pith/kernels` in the checkout by default.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.cuda.kernels import Kernel, source_text

MOST_THREADS = 1024  # of a block, on every GPU
HOST = Path(__file__).parent / "host"
_CHECKOUT = Path(__file__).resolve().parents[2]
_COMPILE = ("-std=c++17", "-O2", "-fPIC", "-fno-strict-aliasing", "-fwrapv", "-Wno-unknown-pragmas")
# A GPU faults on misaligned accesses too; a local array is registers there, and out of bounds is anything.
_COMPILE_KERNEL = (
    *_COMPILE,
    "-fsanitize=alignment,bounds,shift-exponent",
    "-fno-sanitize-recover=all",
    "-ftrivial-auto-var-init=pattern",
    "-fstack-clash-protection",  # touches every page, so that a large local array meets the guard below the stack
)
# The sanitizers' calls are answered by the emulator, not by the compiler's own library.
_LINK = ("-nodefaultlibs", "-lstdc++", "-lm", "-lgcc_s", "-lc")

_DTYPES: dict[str, np.dtype[Any]] = {  # by the letters of host/intrinsics.cuh
    "f": np.dtype(np.float32),
    "i": np.dtype(np.int32),
    "u": np.dtype(np.uint32),
    "l": np.dtype(np.int64),
    "h": np.dtype(np.uint16),
}


class EmulationError(RuntimeError):
    """A kernel did what would fail, hang or be undefined on a GPU; names kernel, block, thread, and buffer."""


class CompileError(EmulationError):
    """A kernel's source is not C++; the message is the compiler's first error."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """Of an entry point; no dtype where any will do."""

    name: str
    is_pointer: bool
    dtype: np.dtype[Any] | None


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel as machine code, with what its launches are checked against."""

    library: ctypes.CDLL
    invoke: Any
    parameters: tuple[Parameter, ...]
    most_threads: int  # by KERNEL_BOUNDS
    lines: tuple[str, ...]  # of the text that was compiled, for messages


@cache
def compiled_kernel(kernel: Kernel) -> CompiledKernel:
    """The kernel's entry point for the emulator, from the cache where the same was compiled before."""
    text, entry = source_text(kernel.source) if kernel.text is None else kernel.text, kernel.entry
    runtime_library()  # first: the kernel's library finds its symbols there
    head = re.search(rf"(?:\bKERNEL_BOUNDS\s*\(([^;{{]*)\)\s*)?\bvoid\s+{re.escape(entry)}\s*\(([^;{{]*)\)\s*\{{", text)
    bounds, declared = (head[1], head[2]) if head else (None, "")
    most_threads = f"emulated::first_of({bounds})" if bounds else str(MOST_THREADS)
    trailer = (
        f'\nextern "C" void emulator_invoke(void** arguments) {{ emulated::invoke({entry}, arguments); }}\n'
        f"static constexpr auto emulator_parameters_of_entry = emulated::parameters_of({entry});\n"
        'extern "C" const char* emulator_parameters() { return emulator_parameters_of_entry.letters; }\n'
        f'extern "C" int emulator_most_threads() {{ return {most_threads}; }}\n'
    )
    flags = (*_COMPILE_KERNEL, *(f"-D{name}={value}" for name, value in kernel.defines))
    header = (HOST / "intrinsics.cuh").read_text(encoding="utf-8")
    library = ctypes.CDLL(str(_build(kernel.source, text + trailer, flags, header)))
    library.emulator_parameters.restype = ctypes.c_char_p
    return CompiledKernel(
        library=library,
        invoke=ctypes.cast(library.emulator_invoke, ctypes.c_void_p),
        parameters=_parameters(library.emulator_parameters().decode(), declared),
        most_threads=library.emulator_most_threads(),
        lines=tuple(text.splitlines()),
    )


def _parameters(letters: str, declared: str) -> tuple[Parameter, ...]:
    """From what the compiler knows, two letters each (pointer or scalar, type), and the list in the text for names."""
    kinds = [letters[i : i + 2] for i in range(0, len(letters), 2)]
    names = [found[-1] for part in declared.split(",") if (found := re.findall(r"\w+", part))]
    if len(names) != len(kinds):  # a macro in the list
        names = [f"number {i}" for i in range(len(kinds))]
    return tuple(Parameter(name, kind[0] == "p", _DTYPES.get(kind[1])) for name, kind in zip(names, kinds, strict=True))


@cache
def runtime_library() -> Any:
    """The emulator's own library, its symbols visible to the kernels' libraries."""
    text = "".join(f'#include "{path.name}"\n' for path in sorted(HOST.glob("*.cc")))
    depends_on = "".join(path.read_text(encoding="utf-8") for path in sorted(HOST.iterdir()))
    library = ctypes.CDLL(str(_build("runtime.cc", text, _COMPILE, depends_on)), mode=ctypes.RTLD_GLOBAL)
    library.emulator_allocate.argtypes = (ctypes.c_size_t, ctypes.c_int)
    library.emulator_allocate.restype = ctypes.c_void_p
    library.emulator_free.argtypes = (ctypes.c_void_p,)
    library.emulator_free.restype = None
    library.emulator_damage.restype = ctypes.c_void_p
    library.emulator_launch.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_void_p,
    )
    return library


def find_compiler() -> str:
    """The path of g++. Without one a test fails in CI and is skipped elsewhere."""
    path = shutil.which("g++")
    if path is None:
        reason = "the kernel emulator needs g++, which is not on PATH"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@cache
def _compiler_version(path: str) -> str:
    return subprocess.run((path, "--version"), check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _build(name: str, text: str, flags: tuple[str, ...], depends_on: str) -> Path:
    """A shared library of `text`, kept under a name that holds the hash of everything it depends on."""
    compiler = find_compiler()
    version = _compiler_version(compiler)
    key = hashlib.sha256("\0".join((version, *flags, *_LINK, depends_on, text)).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("PITH_KERNEL_CACHE") or _CHECKOUT / ".pith" / "kernels")
    path = folder / f"{Path(name).stem}-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as building:
        source = Path(building) / name
        source.write_text(text, encoding="utf-8")
        library = Path(building) / "library.so"
        command = (compiler, *flags, f"-I{HOST}", "-x", "c++", str(source), "-shared", "-o", str(library), *_LINK)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
            first = (errors or ["no message"])[0].replace(f"{building}/", "")
            raise CompileError(f"{name} does not compile: {first}")
        library.replace(path)  # in one step: another process may look for it now
    return path
