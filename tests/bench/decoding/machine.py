"""Where pieces are measured: a GPU, or in the tests the emulator."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from common.architecture.shape import ModelShape
from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.kernels import Device, FloatType
from tests.bench.decoding.timing import Timer, Work


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and what measuring on it takes.

    Attributes:
        xp: CuPy or numpy, for random values.
        free_bytes: device memory that could still be had.
        release: gives memory of what is no longer referenced back.
        capture_torch: makes a graph of what torch queues.
        torch_device: torch's name of the device.
        tune: completes a dataflow table for a shape by measuring.
    """

    device: Device
    xp: ModuleType
    timer: Timer
    free_bytes: Callable[[], int]
    release: Callable[[], None]
    capture_torch: Callable[[Callable[[], object]], Work]
    torch_device: str
    tune: Callable[[ModelShape, FloatType, DataflowTable], DataflowTable]
