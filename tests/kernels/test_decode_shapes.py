"""The shapes that are benchmarked: their sizes, the bytes of a step, and that the kernels serve them."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.kernels import Kernel
from tests.bench.decoding import segments
from tests.bench.decoding.model import Workload, random_model, step_bytes
from tests.bench.decoding.pieces import ALL_BATCHES
from tests.bench.decoding.recording import PARTS, Recorder, moved_bytes, parts_of
from tests.bench.shapes import SHAPES


def test_bytes_of_the_parts_are_those_of_the_step_and_the_activations() -> None:
    for shape in SHAPES.values():
        parts = sum(moved_bytes(shape, part, 1, 1024) for part in PARTS)
        assert step_bytes(shape, 1, 1024) <= parts <= 1.01 * step_bytes(shape, 1, 1024)
    with pytest.raises(ValueError, match="part 'norm': must be one of"):
        moved_bytes(SHAPES["panda-1b"], "norm", 1, 1)


def test_shapes_have_the_sizes_that_their_names_say() -> None:
    # Millions of parameters of all layers' matrices.
    published = {"llama-3.2-1b": 973.1, "panda-1b": 975.2, "surefire-1b": 964.7}
    published |= {"llama-3.2-3b": 2818.6, "panda-3b": 2818.6, "surefire-3b": 2818.6}
    for name, millions in published.items():
        shape = SHAPES[name]
        assert shape.layers * shape.matrix_parameters_per_layer / 1e6 == pytest.approx(millions, abs=0.05)
    assert SHAPES["llama-3.1-8b"].parameters / 1e9 == pytest.approx(8.03, abs=0.005)
    assert SHAPES["llama-2-7b"].parameters / 1e9 == pytest.approx(6.74, abs=0.005)
    assert SHAPES["surefire-1b"].kv_bytes_per_token(2) == 16 * 1024


class Outline:
    """An array that has a shape and no memory."""

    def __init__(self, shape: int | tuple[int, ...], dtype: Any) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = np.dtype(dtype)

    @property
    def nbytes(self) -> int:
        return int(math.prod(self.shape) * self.dtype.itemsize)

    def __getitem__(self, key: slice) -> "Outline":
        return Outline((len(range(self.shape[0])[key]), *self.shape[1:]), self.dtype)


class OutlineDevice:
    """An H200 on which nothing happens."""

    name, multiprocessors = "NVIDIA H200", 132
    empty = zeros = staticmethod(Outline)

    def __init__(self) -> None:
        self.kernels: set[Kernel] = set()

    def asarray(self, host: Any) -> Outline:
        return Outline(host.shape, host.dtype)

    def upload(self, host: Any, array: Outline) -> None:
        assert host.shape == array.shape

    def launch(self, kernel: Kernel, grid: Any, arguments: Any) -> None:
        self.kernels.add(kernel)

    def matmul(self, dtype: str, inputs: Outline, weights: Outline, out: Outline, *, accumulate: bool = False) -> None:
        assert out.shape == (inputs.shape[0], weights.shape[0])

    def normal(self, shape: tuple[int, ...], scale: float) -> Outline:
        return Outline(shape, np.uint16)

    def ones(self, size: int) -> Outline:
        return Outline(size, np.uint16)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_can_be_launched_at_every_batch(name: str) -> None:
    device: Any = OutlineDevice()
    shape = SHAPES[name]
    weights = random_model(device, shape, device, 16)
    for batch in ALL_BATCHES:
        one = Workload.draw(device, shape, weights, device, "bf16", batch, 1024, seed=1)
        for table in (DataflowTable(device.name, "", {}), segments.StaticDataflow(device.name, "flat", {})):
            recorder = Recorder(device)
            step = one.step(recorder, table)
            calls = recorder.record(partial(step.launch, step.size(batch)))
            for part, own in parts_of(calls, one.model).items():
                assert len(own) >= (1 if part in ("embedding", "head") else shape.layers)
    assert max(kernel.shared_bytes for kernel in device.kernels) <= 227 * 1024
