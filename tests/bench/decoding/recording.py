"""The launches of a step, taken apart: which serve which part of it, how long each part takes, what it moves.

A part is replayed with the very launches and operands that the step gave it, over all layers, so that the weights that
it reads have left the L2 before their next turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.architecture.shape import ModelShape
from engine.backends.cuda.kernels import Array, Device, Kernel
from engine.backends.cuda.step import ModelArrays

PARTS = ("embedding", "qkv", "attention", "attention_output", "gate_up", "down", "head")
PRODUCTS = ("qkv", "attention_output", "gate_up", "down", "head")
_PRODUCT_KERNELS = ("gemv", "flat_gemm")
# What a product by cuBLAS needs before it; all else that stands alone comes after one.
_BEFORE = ("rms_norm",)


@dataclass(frozen=True, slots=True)
class Call:
    """One launch; `weights` is the matrix of a product, None for all else."""

    name: str
    weights: Array | None
    run: Callable[[], None]


class Recorder:
    """A device that remembers what it launches while it records."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._calls: list[Call] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def record(self, work: Callable[[], None]) -> list[Call]:
        """Runs `work` and returns its launches in order."""
        calls: list[Call] = []
        self._calls = calls
        try:
            work()
        finally:
            self._calls = None
        return calls

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Array | np.generic]) -> None:
        kept = tuple(arguments)
        weights = kept[0] if kernel.entry in _PRODUCT_KERNELS else None
        self._call(kernel.entry, weights, lambda: self._device.launch(kernel, grid, kept))

    def matmul(self, dtype: str, inputs: Array, weights: Array, out: Array, *, accumulate: bool = False) -> None:
        self._call("cublas", weights, lambda: self._device.matmul(dtype, inputs, weights, out, accumulate=accumulate))

    def _call(self, name: str, weights: Any, run: Callable[[], None]) -> None:
        run()
        if self._calls is not None:
            self._calls.append(Call(name, weights, run))


def parts_of(calls: Sequence[Call], model: ModelArrays) -> dict[str, list[Call]]:
    """A step's launches by the part that they serve, in PARTS' names.

    Raises ValueError where a product's weights are not the model's.
    """
    names = {id(model.head): "head"}
    for layer in model.layers:
        names |= {id(getattr(layer, name)): name for name in PRODUCTS[:-1]}
    parts: dict[str, list[Call]] = {name: [] for name in PARTS}
    current, before = "embedding", []
    for call in calls:
        if call.name in _BEFORE:
            before.append(call)
            continue
        if call.weights is not None:
            if id(call.weights) not in names:
                raise ValueError(f"{call.name} multiplies a matrix that is none of the model's")
            current = names[id(call.weights)]
        elif call.name.startswith("attention"):
            current = "attention"
        parts[current] += [*before, call]
        before = []
    return parts


def run_all(calls: Sequence[Call]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call.run()

    return run


def implementation(calls: Sequence[Call]) -> str:
    """The kernels of one layer's part, in their order."""
    return " + ".join(dict.fromkeys(call.name for call in calls))


def moved_bytes(shape: ModelShape, part: str, batch: int, context_tokens: int) -> int:
    """Bytes that a part moves in a step, over all layers: each operand read once, each result written once.

    A residual is read and written. 16-bit values, logits in float32.
    """
    hidden, queries, inner = shape.hidden_size, shape.query_size, shape.intermediate_size
    qkv = queries + 2 * shape.kv_size

    def product(rows: int, inputs: int, out_bytes: int) -> int:
        return 2 * rows * inputs + batch * (2 * inputs + out_bytes)

    match part:
        case "embedding":
            return 4 * batch * hidden
        case "head":
            return product(shape.vocab_size, hidden, 4 * shape.vocab_size)
        case "qkv":
            a_layer = product(qkv, hidden, 2 * qkv)
        case "attention":
            a_layer = batch * (4 * context_tokens * shape.kv_size + 4 * queries)
        case "attention_output":
            a_layer = product(hidden, queries, 4 * hidden)
        case "gate_up":
            a_layer = product(2 * inner, hidden, 2 * inner)
        case "down":
            a_layer = product(hidden, inner, 4 * hidden)
        case _:
            raise ValueError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    return shape.layers * a_layer
