"""The GPU as a `Machine`, or the line that says why there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from common.architecture.shape import ModelShape
from engine.backends.cuda.cupy_device import CupyDevice, find_device
from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.kernels import FloatType
from engine.backends.cuda.tuning import tune
from tests.bench.decoding.libraries import on_torch_stream
from tests.bench.decoding.machine import Machine
from tests.bench.decoding.timing import event_timer
from tests.bench.decoding.torch_step import captured

_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "torch", "transformers", "flashinfer-python", "triton", "numpy")


class NoGpuError(Exception):
    """There is nothing to measure on; the message says why in one line."""


def require() -> CupyDevice:
    """The GPU for CuPy and for torch. Raises NoGpuError where either has none."""
    found = find_device()
    if isinstance(found, str):
        raise NoGpuError(found)
    if not torch.cuda.is_available():
        raise NoGpuError("torch, which the peers need, sees no GPU")
    return found


@contextmanager
def machine(device: CupyDevice) -> Iterator[Machine]:
    """Within it one stream serves CuPy and torch, so that one pair of events times all."""
    cupy = import_module("cupy")

    def free_bytes() -> int:
        held_by_torch = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return device.free_bytes() + int(held_by_torch)

    def release() -> None:
        torch.compiler.reset()  # it keeps what it has compiled, a model's weights included
        cupy.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()

    def tune_products(shape: ModelShape, dtype: FloatType, table: DataflowTable) -> DataflowTable:
        return tune(device, shape, dtype, table, bias=False, head_norm=False)

    with device.stream() as stream, on_torch_stream(stream):
        yield Machine(device, cupy, event_timer(stream), free_bytes, release, captured, "cuda", tune_products)


def description(device: CupyDevice) -> dict[str, Any]:
    """Device, driver and versions, for the result file."""
    runtime = import_module("cupy").cuda.runtime
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "device": device.name,
        "multiprocessors": device.multiprocessors,
        "compute_capability": device.compute_capability,
        "l2_bytes": device.l2_bytes,
        "driver_supports_cuda": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "versions": versions,
    }
