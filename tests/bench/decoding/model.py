"""A model of random weights on a device, and a batch in the middle of its answers to decode with it."""

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, cast

import numpy as np

from common.architecture.shape import ModelShape
from engine.backends.cuda.attention import BLOCK_TOKENS
from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.kernels import Array, Device, FloatType
from engine.backends.cuda.step import DecodeStep, LayerArrays, ModelArrays

PHI = 0.0
"""Unified maximum of every head. With weights of N(0, 1 / inputs) behind a norm the scaled logits are near N(0, 1),
whose rows stay far inside either type's range around 0; the rows that left it are counted with each result."""
EPSILON = 1e-5
_ROPE_BASE = 500_000.0
_CHUNK = 1 << 26  # float32 at a time, on their way to 16 bits


class DoesNotFitError(Exception):
    """The device's memory cannot hold a workload; the message says how much it takes and how much there is."""


class RandomBits:
    """Normal values as 16-bit floats, made where the arrays live: `xp` is CuPy for a GPU, numpy for the emulator."""

    def __init__(self, xp: ModuleType, device: Device, dtype: FloatType, seed: int) -> None:
        self._xp: Any = xp
        self._device, self._dtype = device, dtype
        self._generator = self._xp.random.default_rng(seed)

    def normal(self, shape: tuple[int, ...], scale: float) -> Array:
        """N(0, scale^2), rounded to the nearest."""
        array = self._device.empty(shape, np.uint16)
        flat = cast(Any, array).reshape(-1)
        for first in range(0, flat.size, _CHUNK):
            part = flat[first : first + _CHUNK]
            part[...] = self._bits(self._generator.standard_normal(part.size, dtype=np.float32) * np.float32(scale))
        return array

    def ones(self, size: int) -> Array:
        one = 0x3F80 if self._dtype == "bf16" else 0x3C00
        return self._device.asarray(np.full(size, one, np.uint16))

    def _bits(self, values: Any) -> Any:
        if self._dtype == "fp16":
            return values.astype(np.float16).view(np.uint16)
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def random_model(device: Device, shape: ModelShape, random: RandomBits, positions: int) -> ModelArrays:
    """Matrices of N(0, 1 / inputs), norms of one, no cache yet."""

    def matrix(rows: int, inputs: int) -> Array:
        return random.normal((rows, inputs), inputs**-0.5)

    no_cache = device.zeros((1, 2, shape.kv_heads, BLOCK_TOKENS, shape.head_dim), np.uint16)
    layers = tuple(
        LayerArrays(
            attention_norm=random.ones(shape.hidden_size),
            qkv=matrix(shape.query_size + 2 * shape.kv_size, shape.hidden_size),
            qkv_bias=None,
            query_norm=None,
            key_norm=None,
            attention_output=matrix(shape.hidden_size, shape.query_size),
            feed_forward_norm=random.ones(shape.hidden_size),
            gate_up=matrix(2 * shape.intermediate_size, shape.hidden_size),
            down=matrix(shape.hidden_size, shape.intermediate_size),
            cache=no_cache,
            phi=None,
        )
        for _ in range(shape.layers)
    )
    embedding = matrix(shape.vocab_size, shape.hidden_size)
    angles = np.arange(positions)[:, None] * _ROPE_BASE ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    return ModelArrays(
        embedding=embedding,
        layers=layers,
        norm=random.ones(shape.hidden_size),
        head=embedding if shape.tied_embeddings else matrix(shape.vocab_size, shape.hidden_size),
        cosines=device.asarray(np.cos(angles).astype(np.float32)),
        sines=device.asarray(np.sin(angles).astype(np.float32)),
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """A model with the KV cache of a batch, each sequence of it about to get its token `context_tokens`."""

    shape: ModelShape
    dtype: FloatType
    model: ModelArrays
    batch: int
    context_tokens: int
    token_ids: np.ndarray[Any, np.dtype[np.int64]]  # [batch]
    block_tables: np.ndarray[Any, np.dtype[np.int64]]  # [batch, blocks]

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[batch], the new token included."""
        return np.full(self.batch, self.context_tokens, np.int64)

    @classmethod
    def draw(
        cls,
        device: Device,
        shape: ModelShape,
        weights: ModelArrays,
        random: RandomBits,
        dtype: FloatType,
        batch: int,
        context_tokens: int,
        seed: int,
    ) -> "Workload":
        """Keys and values of N(0, 1) in shuffled blocks, no block shared; unified softmax in every layer."""
        host = np.random.default_rng(seed)
        blocks = math.ceil(context_tokens / BLOCK_TOKENS)
        phi = device.asarray(np.full(shape.heads, PHI, np.float32))
        cache_shape = (batch * blocks, 2, shape.kv_heads, BLOCK_TOKENS, shape.head_dim)
        layers = tuple(replace(layer, cache=random.normal(cache_shape, 1.0), phi=phi) for layer in weights.layers)
        return cls(
            shape,
            dtype,
            replace(weights, layers=layers),
            batch,
            context_tokens,
            host.integers(0, shape.vocab_size, batch),
            host.permutation(batch * blocks).reshape(batch, blocks),
        )

    def synchronised(self) -> "Workload":
        """The same with the synchronised softmax."""
        layers = tuple(replace(layer, phi=None) for layer in self.model.layers)
        return replace(self, model=replace(self.model, layers=layers))

    def step(self, device: Device, dataflow: DataflowTable) -> DecodeStep:
        """A decode step with this batch loaded; launch it with `padded_batch`."""
        step = DecodeStep(
            device,
            self.shape,
            self.dtype,
            self.model,
            epsilon=EPSILON,
            max_sequences=self.batch,
            max_blocks=self.block_tables.shape[1],
            dataflow=dataflow,
        )
        step.load(self.token_ids, self.lengths, self.block_tables)
        return step


def weight_bytes(shape: ModelShape) -> int:
    return 2 * shape.parameters


def cache_bytes(shape: ModelShape, batch: int, context_tokens: int) -> int:
    blocks = math.ceil(context_tokens / BLOCK_TOKENS)
    return int(shape.kv_bytes_per_token(2)) * batch * blocks * BLOCK_TOKENS


def step_bytes(shape: ModelShape, batch: int, context_tokens: int) -> int:
    """The fewest bytes that a step moves: every weight and every key and value read once."""
    return int(shape.weight_bytes_per_step(2) + batch * context_tokens * shape.kv_bytes_per_token(2))
