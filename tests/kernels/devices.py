"""What the kernels are tested on: the emulator, or with PITH_KERNEL_DEVICE=cuda the GPU (`tests.bench.gpu_check`)."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from engine.backends.cuda.cupy_device import CupyDevice
from engine.backends.cuda.kernels import Array, Device, Kernel
from tests.kernels.emulator import Emulator

DEVICE_VARIABLE = "PITH_KERNEL_DEVICE"
ON_GPU = os.environ.get(DEVICE_VARIABLE) == "cuda"

emulator_only = pytest.mark.skipif(ON_GPU, reason="of the emulator, or of the host alone")
"""For tests that a GPU says nothing about: planted faults, which may hang it, and what the emulator itself does."""

_GUARD_BYTES = 512  # of either side, and CuPy's alignment
_CANARY, _UNSET = 0xA5, 0xFF


class GuardedMemoryError(RuntimeError):
    """A kernel wrote beside an array that it was given."""


def make_device(seed: int = 0, multiprocessors: int = 8) -> Device:
    """A device that claims so many multiprocessors, so that launches are split as a test wants them.

    Args:
        seed: decides the emulator's schedule; a GPU has its own.
    """
    return cast(Device, GuardedGpu(multiprocessors)) if ON_GPU else Emulator(seed, multiprocessors)


class GuardedGpu:
    """The GPU with what tests count on: new memory is NaN, and a write beside an array is found after the launch."""

    def __init__(self, multiprocessors: int) -> None:
        self.multiprocessors = multiprocessors
        self._gpu = _gpu()
        self._capturing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        whole: Any = self._gpu.empty(nbytes + 2 * _GUARD_BYTES, np.uint8)
        whole[...] = _CANARY
        inside = whole[_GUARD_BYTES : _GUARD_BYTES + nbytes]
        inside[...] = _UNSET
        return cast(Array, inside.view(np.dtype(dtype)).reshape(shape))

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        array = self.empty(host.shape, host.dtype)
        self._gpu.upload(host, array)
        return array

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._capturing = True
        try:
            return self._gpu.capture(work)
        finally:
            self._capturing = False

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Array | np.generic]) -> None:
        """Runs a kernel to its end, or records it. Raises GuardedMemoryError, or CuPy's error of the launch."""
        self._gpu.launch(kernel, grid, arguments)
        if self._capturing:
            return
        self._gpu.synchronize()
        for index, argument in enumerate(arguments):
            whole: Any = argument
            while getattr(whole, "base", None) is not None:
                whole = whole.base
            if isinstance(argument, np.generic) or whole.dtype != np.uint8:
                continue
            guards = self._gpu.to_host(whole[:_GUARD_BYTES]), self._gpu.to_host(whole[-_GUARD_BYTES:])
            if any((guard != _CANARY).any() for guard in guards):
                raise GuardedMemoryError(f"{kernel.entry} wrote beside argument {index}")


@cache
def _gpu() -> CupyDevice:
    device = CupyDevice()
    import_module("cupy").cuda.set_allocator(None)  # no pool: compute-sanitizer sees where an allocation ends
    return device
