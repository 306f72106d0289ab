"""Measures the heuristic dataflow of a model's products on the device at hand."""

from collections.abc import Callable, Iterator

import numpy as np

from common.architecture.shape import ModelShape
from engine.backends.cuda.cupy_device import CupyDevice
from engine.backends.cuda.dataflow import (
    IMPLEMENTATIONS,
    MEASURED_TOKENS,
    Candidate,
    DataflowTable,
    SegmentKey,
    Timer,
    cold_weight_sets,
    graph_timer,
    measure,
)
from engine.backends.cuda.kernels import Array, Device, FloatType
from engine.backends.cuda.step import CUBLAS, DecodeStep, LayerArrays, ModelArrays


def missing_products(step: DecodeStep, table: DataflowTable) -> list[str]:
    """Products of a step that the table has no measured choice for."""
    return [name for name, one in step.segments.items() if _key(step, name, table.device) not in table.choices]


def tune(
    device: CupyDevice,
    shape: ModelShape,
    dtype: FloatType,
    table: DataflowTable,
    *,
    bias: bool,
    head_norm: bool,
    timer: Timer | None = None,
) -> DataflowTable:
    """The table with every product of a model of this shape: what is missing is measured."""
    step = blank_step(device, shape, dtype, bias=bias, head_norm=head_norm)
    for name in missing_products(step, table):
        key = _key(step, name, table.device)
        candidates = list(_candidates(step, name))
        choice = measure(device, key, candidates, timer or graph_timer(device), cold_weight_sets)
        table = table.having(key, choice)
    return table


def blank_step(
    device: Device, shape: ModelShape, dtype: FloatType, *, bias: bool = False, head_norm: bool = False
) -> DecodeStep:
    """A step of one layer of zeros, large enough for every batch that is measured."""

    def zeros(*dimensions: int) -> Array:
        return device.zeros(dimensions, np.uint16)

    hidden, inner, positions = shape.hidden_size, shape.intermediate_size, 16
    norms = [zeros(shape.head_dim) if head_norm else None for _ in range(2)]
    layer = LayerArrays(
        attention_norm=zeros(hidden),
        qkv=zeros(shape.query_size + 2 * shape.kv_size, hidden),
        qkv_bias=zeros(shape.query_size + 2 * shape.kv_size) if bias else None,
        query_norm=norms[0],
        key_norm=norms[1],
        attention_output=zeros(hidden, shape.query_size),
        feed_forward_norm=zeros(hidden),
        gate_up=zeros(2 * inner, hidden),
        down=zeros(hidden, inner),
        cache=zeros(1, 2, shape.kv_heads, 16, shape.head_dim),
        phi=None,
    )
    head = zeros(shape.vocab_size, hidden)
    angles = np.zeros((positions, shape.head_dim // 2), np.float32)
    model = ModelArrays(head, (layer,), zeros(hidden), head, device.asarray(angles), device.asarray(angles))
    return DecodeStep(
        device,
        shape,
        dtype,
        model,
        epsilon=1e-5,
        max_sequences=MEASURED_TOKENS[-1],
        max_blocks=1,
        dataflow=DataflowTable(device.name, "", {}),
    )


def _key(step: DecodeStep, name: str, device: str) -> SegmentKey:
    segment = step.segments[name]
    return SegmentKey(device, segment.rows, segment.inner, segment.fusion)


def _candidates(step: DecodeStep, name: str) -> Iterator[Candidate]:
    """Every way that some batch size has, for the range of sizes that have it."""
    ranges: dict[str, tuple[int, int]] = {}
    smaller = 0
    for size in step.sizes:
        for way in step.ways(name, size):
            least, _ = ranges.get(way, (smaller + 1, size))
            ranges[way] = least, size
        smaller = size
    for implementation in IMPLEMENTATIONS:
        for way, (least, most) in sorted(ranges.items()):
            if way.partition("-")[0] == implementation:
                limit = None if way == CUBLAS else most
                yield Candidate(way, implementation, limit, _launch(step, name, way), least)


def _launch(step: DecodeStep, name: str, way: str) -> Callable[[Array, int], None]:
    return lambda weights, tokens: step.launch_product(name, way, step.size(tokens), weights)
