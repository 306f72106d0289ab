"""What a kernel is, and what a device can do that runs it: a GPU, or in the tests an emulator of the same sources."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

FloatType = Literal["bf16", "fp16"]
"""Of weights, activations and cache: T in the sources."""
DTYPES: tuple[FloatType, ...] = get_args(FloatType)
HEAD_DIMS = (64, 128)
SOURCES = Path(__file__).parent / "csrc"
INTRINSICS = "intrinsics.cuh"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[ \t]*$', re.MULTILINE)


class Array(Protocol):
    """An array in the device's memory, C-contiguous; a view of one is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry point of one source, compiled with one set of macros.

    Attributes:
        source: file name in `csrc`.
        entry: `extern "C"` name.
        defines: macros, as (name, value).
        threads: of a block, all in x.
        shared_bytes: dynamic shared memory of a block.
        text: the source text in place of the file's.
    """

    source: str
    entry: str
    defines: tuple[tuple[str, str | int], ...]
    threads: int
    shared_bytes: int = 0
    text: str | None = None


class Device(Protocol):
    """Memory, launches and products. `CupyDevice` says what each method does.

    16-bit floats are uint16 arrays; scalars are numpy's, so that their width is stated.
    """

    @property
    def name(self) -> str: ...
    @property
    def multiprocessors(self) -> int: ...
    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array: ...
    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array: ...
    def asarray(self, host: npt.NDArray[Any]) -> Array: ...
    def to_host(self, array: Array) -> npt.NDArray[Any]: ...
    def upload(self, host: npt.NDArray[Any], array: Array) -> None: ...
    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Array | np.generic]) -> None: ...
    def matmul(self, dtype: str, inputs: Array, weights: Array, out: Array, *, accumulate: bool = False) -> None: ...
    def stream(self) -> AbstractContextManager[Any]: ...
    def capture(self, work: Callable[[], None]) -> Callable[[], None]: ...


@cache
def source_text(name: str) -> str:
    """The text of `csrc/name` with its quoted includes inlined once each; the include of the intrinsics stays."""
    return _inline(name, set())


def device_text(kernel: Kernel) -> str:
    """The whole text that a device compiles: CuPy's cache does not hash included files, so there are none."""
    text = source_text(kernel.source) if kernel.text is None else kernel.text
    intrinsics = (SOURCES / INTRINSICS).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: intrinsics if match[1] == INTRINSICS else match[0], text)


def compile_options(kernel: Kernel) -> tuple[str, ...]:
    """NVRTC's options for a kernel, apart from the architecture, which CuPy adds."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in kernel.defines))


def _inline(name: str, seen: set[str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        included = match[1]
        if included in seen:
            return ""
        seen.add(included)
        return match[0] if included == INTRINSICS else _inline(included, seen)

    return _INCLUDE.sub(replacement, (SOURCES / name).read_text(encoding="utf-8"))
