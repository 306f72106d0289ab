"""A GPU for tests: the kernels' own sources, compiled by g++, with a fiber for each thread.

It implements `engine.backends.cuda.kernels.Device`. A launch ends in an `EmulationError` where a GPU would corrupt
memory, hang, or read what has not arrived: every buffer lies between unreachable pages with canaries in the slack,
uninitialised memory is NaN, asynchronous copies land as late as they may, and the order of threads, warps and blocks is
the seed's. What it cannot show: a missing `fence()` (its memory is sequentially consistent), bank conflicts, speed.
"""

import ctypes
import random
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.backends.cuda.kernels import Array, Kernel, source_text
from tests.kernels.compilation import (
    MOST_THREADS,
    CompiledKernel,
    CompileError,
    EmulationError,
    compiled_kernel,
    runtime_library,
)

__all__ = [
    "Bits",
    "CompileError",
    "EmulationError",
    "Emulator",
    "bf16_bits",
    "compiled_kernel",
    "fp16_bits",
    "from_bits",
    "planted",
    "to_bits",
]

_LARGEST_SHARED_BYTES = 227 * 1024
_NEAR_BYTES = 16 << 20  # the gap between two buffers
_ONE_LAUNCH = threading.Lock()  # the emulated machine is one, and its state global

Bits = npt.NDArray[np.uint16]


def bf16_bits(values: npt.ArrayLike) -> Bits:
    """float -> bfloat16 bits, rounded to nearest even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, np.uint16(0x7FFF), rounded)


def fp16_bits(values: npt.ArrayLike) -> Bits:
    """float -> IEEE half bits, rounded to nearest even."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32).astype(np.float16).view(np.uint16)


def to_bits(values: npt.ArrayLike, dtype: str) -> Bits:
    """float -> the bits of "bf16" or "fp16"."""
    return {"bf16": bf16_bits, "fp16": fp16_bits}[dtype](values)


def from_bits(bits: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float32]:
    """The bits of "bf16" or "fp16" -> float32, exactly."""
    words = np.asarray(bits, dtype=np.uint16)
    if dtype == "bf16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    if dtype == "fp16":
        return words.view(np.float16).astype(np.float32)
    raise ValueError(f'dtype is "bf16" or "fp16", not {dtype!r}')


def planted(kernel: Kernel, old: str, new: str) -> Kernel:
    """The kernel with a fault: `old`, which its text holds exactly once, replaced by `new`."""
    text = source_text(kernel.source) if kernel.text is None else kernel.text
    if (count := text.count(old)) != 1:
        raise ValueError(f"{kernel.source} holds {old!r} {count} times; a planted fault replaces one place")
    return replace(kernel, text=text.replace(old, new))


class _Report(ctypes.Structure):
    _fields_ = (
        ("message", ctypes.c_char * 1000),
        ("address", ctypes.c_uint64),
        ("has_thread", ctypes.c_int32),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class _Buffer:
    """What error messages know of an allocation."""

    number: int
    start: int
    nbytes: int
    description: str


class Emulator:
    """A `Device` without a GPU.

    Args:
        seed: decides the order of everything and where buffers lie; the same seed, the same run.
        multiprocessors: what it claims to have; launches do not depend on it.
        step_limit: calls of intrinsics that a thread may make, and that all may make without any of them getting
            further, before the launch counts as a hang.
    """

    def __init__(self, seed: int = 0, multiprocessors: int = 8, step_limit: int = 2_000_000) -> None:
        self._random = random.Random(seed)
        self._multiprocessors = multiprocessors
        self._step_limit = step_limit
        self._buffers: dict[int, _Buffer] = {}
        self._allocations = 0

    @property
    def name(self) -> str:
        return "emulator"

    @property
    def multiprocessors(self) -> int:
        return self._multiprocessors

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Guarded memory full of NaN (-1 as an integer)."""
        kind = np.dtype(dtype)
        dimensions = (shape,) if isinstance(shape, int) else shape
        nbytes = int(np.prod(dimensions, dtype=np.int64)) * kind.itemsize
        runtime = runtime_library()
        start = runtime.emulator_allocate(nbytes, int(self._random.random() < 0.75))
        if not start:
            raise MemoryError(f"no room for {nbytes} guarded bytes")
        memory = (ctypes.c_char * nbytes).from_address(start)
        array: npt.NDArray[Any] = np.ndarray(dimensions, kind, buffer=cast(Any, memory))
        self._buffers[start] = _Buffer(self._allocations, start, nbytes, f"{kind} {list(dimensions)}")
        self._allocations += 1
        weakref.finalize(memory, _free, self._buffers, start).atexit = False
        return array

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def asarray(self, host: npt.NDArray[Any]) -> npt.NDArray[Any]:
        array = self.empty(host.shape, host.dtype)
        array[...] = host
        return array

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        return np.array(array)

    def upload(self, host: npt.NDArray[Any], array: Array) -> None:
        cast("npt.NDArray[Any]", array)[...] = host

    def matmul(self, dtype: str, inputs: Array, weights: Array, out: Array, *, accumulate: bool = False) -> None:
        """In float32, rounded once; stands for cuBLAS, which no emulation covers."""
        result = cast("npt.NDArray[Any]", out)
        product = from_bits(self.to_host(inputs), dtype) @ from_bits(self.to_host(weights), dtype).T
        if result.dtype == np.float32:
            result[...] = product + (result if accumulate else 0)
        else:
            result[...] = to_bits(product + (from_bits(result, dtype) if accumulate else 0), dtype)

    def stream(self) -> AbstractContextManager[None]:
        """Every launch has ended when it returns: there is no stream."""
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Array | np.generic]) -> None:
        """Runs a kernel to its end.

        Raises:
            CompileError: the source does not compile.
            EmulationError: the launch or one of its threads did something wrong.
        """
        compiled = compiled_kernel(kernel)
        _check_launch(kernel, grid, compiled.most_threads)
        values = [self._as_argument(kernel, compiled, i, argument) for i, argument in enumerate(arguments)]
        if len(values) != len(compiled.parameters):
            raise EmulationError(f"{kernel.entry} takes {len(compiled.parameters)} arguments, got {len(values)}")
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        report = _Report()
        runtime = runtime_library()
        with _ONE_LAUNCH:
            finished = runtime.emulator_launch(
                compiled.invoke,
                pointers,
                (ctypes.c_uint * 3)(*grid),
                kernel.threads,
                kernel.shared_bytes,
                self._random.getrandbits(64),
                self._step_limit,
                ctypes.byref(report),
            )
            damage = runtime.emulator_damage()
        if not finished:
            where = f", block {tuple(report.block)}, thread {report.thread}" if report.has_thread else ""
            near = f": {self._locate(report.address, compiled, arguments)}" if report.address else ""
            raise EmulationError(
                f"{kernel.entry}{where}: {_quote_lines(report.message.decode(), compiled.lines)}{near}"
            )
        if damage:
            raise EmulationError(f"{kernel.entry}: wrote beside {self._locate(damage, compiled, arguments)}")

    def _as_argument(self, kernel: Kernel, compiled: CompiledKernel, index: int, argument: Array | np.generic) -> Any:
        if index >= len(compiled.parameters):
            raise EmulationError(f"{kernel.entry} takes {len(compiled.parameters)} arguments, got more")
        parameter = compiled.parameters[index]
        name = f"{kernel.entry}'s argument {index} ({parameter.name})"
        wanted = parameter.dtype
        if parameter.is_pointer:
            if not isinstance(argument, np.ndarray) or self._buffer_of(argument) is None:
                raise EmulationError(f"{name} must be an array of this device, not {type(argument).__name__}")
            if not argument.flags.c_contiguous:
                raise EmulationError(f"{name} must be C-contiguous, its strides are {argument.strides}")
            if wanted is not None and argument.dtype.itemsize != wanted.itemsize:
                raise EmulationError(f"{name} points to {wanted}, the array holds {argument.dtype}")
            return ctypes.c_void_p(argument.ctypes.data)
        if not isinstance(argument, np.generic) or argument.dtype != wanted:
            given = argument.dtype if isinstance(argument, np.generic) else type(argument).__name__
            raise EmulationError(f"{name} must be a numpy {wanted}, not {given}")
        return (ctypes.c_char * argument.nbytes).from_buffer_copy(argument.tobytes())

    def _buffer_of(self, array: npt.NDArray[Any]) -> _Buffer | None:
        start = array.ctypes.data
        end = start + array.nbytes
        return next((b for b in self._buffers.values() if b.start <= start and end <= b.start + b.nbytes), None)

    def _locate(self, address: int, compiled: CompiledKernel, arguments: Sequence[Any]) -> str:
        """The nearest buffer to an address, by the parameter's name where it was an argument."""
        if not self._buffers:
            return f"address {address:#x}, near no buffer"

        def distance(buffer: _Buffer) -> int:
            return max(buffer.start - address, address - (buffer.start + buffer.nbytes) + 1, 0)

        nearest = min(self._buffers.values(), key=distance)
        if distance(nearest) > _NEAR_BYTES:
            return f"address {address:#x}, near no buffer"
        offset = address - nearest.start
        passed = [
            f"argument {index} ({compiled.parameters[index].name})"
            for index, argument in enumerate(arguments)
            if isinstance(argument, np.ndarray) and self._buffer_of(argument) is nearest
        ]
        name = " = ".join(passed) or f"buffer {nearest.number}, not an argument of this launch"
        if offset < 0:
            place = f"{-offset} bytes before its start"
        elif offset >= nearest.nbytes:
            place = f"{offset - nearest.nbytes} bytes past its end"
        else:
            place = "inside"
        return f"{name}, {nearest.description}, {nearest.nbytes} bytes, at offset {offset} ({place})"


def _check_launch(kernel: Kernel, grid: tuple[int, int, int], most_threads: int) -> None:
    if not 1 <= kernel.threads <= min(most_threads, MOST_THREADS):
        raise EmulationError(f"{kernel.entry}: {kernel.threads} threads a block; its bounds are 1 to {most_threads}")
    if not 0 <= kernel.shared_bytes <= _LARGEST_SHARED_BYTES:
        raise EmulationError(
            f"{kernel.entry}: {kernel.shared_bytes} bytes of shared memory; {_LARGEST_SHARED_BYTES} is most"
        )
    if len(grid) != 3 or min(grid) < 1 or max(grid[1:]) > 65_535:
        raise EmulationError(f"{kernel.entry}: grid {grid}; extents are at least 1, the second and third at most 65535")


def _free(buffers: dict[int, _Buffer], start: int) -> None:
    del buffers[start]
    runtime_library().emulator_free(start)


def _quote_lines(message: str, lines: tuple[str, ...]) -> str:
    """Adds the text of the lines that a message names: the compiled text is the one with includes inlined."""

    def quoted(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"{match[0]} `{lines[number - 1].strip()}`" if 1 <= number <= len(lines) else match[0]

    return re.sub(r"\bline (\d+)", quoted, message)
