"""The peer in torch: the same decode step with cuBLAS and SDPA, on the same weights, for a CUDA graph.

Weights are shared with ours, the KV cache is a contiguous copy, as torch wants it. The query heads of one KV head go
into SDPA as so many query positions: without a mask that is the same, and each key and value is read once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from engine.backends.cuda.kernels import Array, FloatType
from tests.bench.decoding.model import EPSILON, Workload
from tests.bench.decoding.timing import Work

TYPES: dict[FloatType, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


MOST_DIFFERENCE = 0.1
"""Of max|logit - torch's| / max|torch's logit|: more than 16-bit sums in another order explain is a wrong kernel."""


class WrongResultError(Exception):
    """The kernels' logits are not torch's: how fast they are does not matter."""


def as_tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """The same memory, on a GPU or of the emulator; 16-bit floats are uint16 there, which DLPack may not know."""
    integers = {2: np.int16, 4: np.int32}[array.dtype.itemsize]
    return torch.utils.dlpack.from_dlpack(cast(Any, array).view(integers)).view(dtype)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: torch.Tensor
    qkv: torch.Tensor
    attention_output: torch.Tensor
    feed_forward_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    keys: torch.Tensor  # [batch, kv_heads, context, head_dim]
    values: torch.Tensor


class TorchStep:
    """One step for the workload's batch; the same step again and again, as ours is timed."""

    def __init__(self, workload: Workload) -> None:
        dtype = TYPES[workload.dtype]
        model = workload.model

        def tensor(array: Array) -> torch.Tensor:
            return as_tensor(array, dtype)

        self._shape, self._workload = workload.shape, workload
        self._embedding, self._head, self._norm = tensor(model.embedding), tensor(model.head), tensor(model.norm)
        device = self._embedding.device
        self._tokens = torch.from_numpy(workload.token_ids).to(device)
        self._position = torch.tensor([workload.context_tokens - 1], device=device)
        self._tables = torch.from_numpy(workload.block_tables).to(device)
        cosines, sines = (as_tensor(table, torch.float32) for table in (model.cosines, model.sines))
        self._cosine, self._sine = (table[workload.context_tokens - 1].to(dtype) for table in (cosines, sines))
        self._layers = [
            _Layer(
                tensor(layer.attention_norm), tensor(layer.qkv), tensor(layer.attention_output),
                tensor(layer.feed_forward_norm), tensor(layer.gate_up), tensor(layer.down),
                *self._contiguous(tensor(layer.cache)),
            )
            for layer in model.layers
        ]  # fmt: skip

    @torch.inference_mode()
    def step(self, *, interleaved: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [batch, vocabulary] and the greatest one's token [batch].

        Args:
            interleaved: gate and up lie by eight rows, as our weights do, for the same result. Random weights serve as
                well where gate comes before up, which is how torch is fast, and how it is timed.
        """
        shape = self._shape
        hidden = functional.embedding(self._tokens, self._embedding)  # [batch, hidden]
        for layer in self._layers:
            normed = self._normed(hidden, layer.attention_norm)
            heads = (normed @ layer.qkv.t()).view(len(hidden), -1, shape.head_dim)
            rotated = self._rotated(heads[:, : shape.heads + shape.kv_heads])
            queries, keys = rotated[:, : shape.heads], rotated[:, shape.heads :]
            layer.keys.index_copy_(2, self._position, keys[:, :, None])
            layer.values.index_copy_(2, self._position, heads[:, shape.heads + shape.kv_heads :, None])
            attended = self.attend(layer.keys, layer.values, queries)
            hidden = torch.addmm(hidden, attended, layer.attention_output.t())
            gate_up = self._normed(hidden, layer.feed_forward_norm) @ layer.gate_up.t()
            if interleaved:
                gate, up = gate_up.view(len(hidden), -1, 2, 8).unbind(2)
            else:
                gate, up = gate_up.chunk(2, dim=1)
            inner = (functional.silu(gate) * up).reshape(len(hidden), -1)
            hidden = torch.addmm(hidden, inner, layer.down.t())
        logits = self._normed(hidden, self._norm) @ self._head.t()
        return logits, logits.argmax(dim=1)

    @torch.inference_mode()
    def attention(self) -> None:
        """The attention of every layer, on queries that are the same for all."""
        for layer in self._layers:
            self.attend(layer.keys, layer.values, self.queries)

    @property
    def queries(self) -> torch.Tensor:
        """Some queries [batch, heads, head_dim]: what they are does not change the time."""
        return (
            self._layers[0].qkv.view(-1, self._shape.head_dim)[: self._shape.heads].expand(self._workload.batch, -1, -1)
        )

    def attend(self, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """queries [batch, heads, head_dim] -> [batch, heads * head_dim]."""
        grouped = queries.reshape(len(queries), self._shape.kv_heads, -1, self._shape.head_dim)
        return functional.scaled_dot_product_attention(grouped, keys, values).reshape(len(queries), -1)

    def _contiguous(self, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[blocks, 2, kv_heads, 16, head_dim] -> keys and values [batch, kv_heads, context, head_dim]."""
        pages = cache[self._tables].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)  # [2, batch, kv_heads, tokens, head_dim]
        keys, values = pages[:, :, :, : self._workload.context_tokens].contiguous().unbind(0)
        return keys, values

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, (hidden.shape[1],), weight, EPSILON)

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        return torch.cat(
            (first * self._cosine - second * self._sine, second * self._cosine + first * self._sine), dim=-1
        )


def captured(work: Callable[[], object]) -> Work:
    """A CUDA graph of `work`, replayed on torch's current stream."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def difference(ours: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> dict[str, float]:
    """Of logits [batch, vocabulary] from torch's. Raises WrongResultError."""
    relative = float(np.abs(ours - reference).max() / np.abs(reference).max())
    if not relative <= MOST_DIFFERENCE:
        raise WrongResultError(
            f"logits differ from torch's by {relative:.3g} of the greatest; most is {MOST_DIFFERENCE}"
        )
    same = float((ours.argmax(axis=1) == reference.argmax(axis=1)).mean())
    return {"of_greatest_logit": round(relative, 5), "same_tokens": round(same, 4)}
