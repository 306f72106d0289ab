"""The forward pass of a Llama-family decoder in torch: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Attention itself is a parameter: it depends on where keys and values are kept, which is the backend's business.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from common.architecture.shape import ModelShape

PACKED_ELEMENTS = 1 << 18
"""From this size on, a matrix is packed: in smaller ones the call itself costs more than the packing saves."""

_packed_linear: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default

Attend = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, queries [tokens, heads, head_dim], keys and values [tokens, 2, kv_heads, head_dim]) → as the queries.

Keys come rotated; the callee stores keys and values and attends over the whole context of each token.
"""


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """How Llama 3.1 and later stretch the rotations for contexts beyond those of the first training."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the forward pass must know of a model beside its weights."""

    architecture: str
    shape: ModelShape
    rope_theta: float
    rms_norm_epsilon: float
    max_context_tokens: int
    end_token_ids: frozenset[int]
    """Any of these ends the model's turn."""
    rope_scaling: Llama3RopeScaling | None = None
    qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen2)."""
    qk_norm: bool = False
    """Each head of the queries and keys is normalised before its rotation (Qwen3)."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; projections that read the same input are one matrix. All are stored [in, out]."""

    attention_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [hidden, (heads + 2 kv_heads) head_dim]
    qkv_bias: torch.Tensor | None  # [(heads + 2 kv_heads) head_dim]
    qk_norm: torch.Tensor | None  # [heads + kv_heads, head_dim]
    attention_output: torch.Tensor  # [heads head_dim, hidden]
    feed_forward_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [hidden, 2 intermediate], in turns of Weights.gate_columns
    down: torch.Tensor  # [intermediate, hidden]


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a model in the type that it computes in. The matrices are views of storage that is [out, in]."""

    embedding: torch.Tensor  # [vocabulary, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [hidden, vocabulary]
    gate_columns: int
    """So many columns of the gate are followed by as many of up in gate_up: all, or less where a kernel wants both
    halves of a product close together."""


def expected_tensors(shape: ModelShape, qkv_bias: bool = False, qk_norm: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this shape must hold, as Hugging Face names them."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        expected |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (shape.query_size, hidden),
            prefix + "self_attn.k_proj.weight": (shape.kv_size, hidden),
            prefix + "self_attn.v_proj.weight": (shape.kv_size, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, shape.query_size),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
        if qkv_bias:
            sizes = (("q", shape.query_size), ("k", shape.kv_size), ("v", shape.kv_size))
            expected |= {f"{prefix}self_attn.{name}_proj.bias": (size,) for name, size in sizes}
        if qk_norm:
            expected |= {f"{prefix}self_attn.{name}_norm.weight": (shape.head_dim,) for name in "qk"}
    expected["model.norm.weight"] = (hidden,)
    if not shape.tied_embeddings:
        expected["lm_head.weight"] = (shape.vocab_size, hidden)
    return expected


def assemble(tensors: Mapping[str, torch.Tensor], config: ModelConfig, gate_columns: int | None = None) -> Weights:
    """Weights from the tensors of `expected_tensors`, fused for the forward pass.

    `gate_columns` as in Weights; None is all. It must divide the intermediate size.
    """
    shape = config.shape
    gate_columns = gate_columns or shape.intermediate_size

    def columns(names: Sequence[str]) -> torch.Tensor:
        return torch.cat([tensors[name + ".weight"] for name in names]).t()

    def gate_up(feed_forward: str) -> torch.Tensor:
        halves = [tensors[f"{feed_forward}{name}_proj.weight"] for name in ("gate", "up")]
        turns = [half.view(-1, gate_columns, shape.hidden_size) for half in halves]
        return torch.stack(turns, dim=1).view(-1, shape.hidden_size).t()

    def qk_norm(attention: str) -> torch.Tensor:
        counts = (("q_norm", shape.heads), ("k_norm", shape.kv_heads))
        return torch.cat([tensors[f"{attention}{name}.weight"].expand(count, -1) for name, count in counts])

    layers = []
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        attention, feed_forward = prefix + "self_attn.", prefix + "mlp."
        layers.append(
            LayerWeights(
                attention_norm=tensors[prefix + "input_layernorm.weight"],
                qkv=columns([attention + name for name in ("q_proj", "k_proj", "v_proj")]),
                qkv_bias=torch.cat([tensors[f"{attention}{name}_proj.bias"] for name in "qkv"])
                if config.qkv_bias
                else None,
                qk_norm=qk_norm(attention) if config.qk_norm else None,
                attention_output=columns([attention + "o_proj"]),
                feed_forward_norm=tensors[prefix + "post_attention_layernorm.weight"],
                gate_up=gate_up(feed_forward),
                down=columns([feed_forward + "down_proj"]),
            )
        )
    embedding = tensors["model.embed_tokens.weight"]
    return Weights(
        embedding=embedding,
        layers=tuple(layers),
        norm=tensors["model.norm.weight"],
        head=embedding.t() if shape.tied_embeddings else columns(["lm_head"]),
        gate_columns=gate_columns,
    )


def rope_frequencies(config: ModelConfig) -> torch.Tensor:
    """Radians by which each pair of a head's components turns a position, [head_dim / 2], float32.

    Su et al., RoFormer (2021), eq. 15, in the half-split order of the Hugging Face checkpoints. With Llama 3's
    scaling (Meta, llama-models, `apply_scaling`) slow pairs turn `factor` times slower, fast ones as before, and those
    between are interpolated by how often they turn within the original context.
    """
    head_dim, scaling = config.shape.head_dim, config.rope_scaling
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    if scaling is None:
        return frequencies
    turns = scaling.original_context_tokens * frequencies / (2 * math.pi)
    band = scaling.high_frequency_factor - scaling.low_frequency_factor
    kept = ((turns - scaling.low_frequency_factor) / band).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


class Projection:
    """A matrix that rows are multiplied by. On a processor, a large one is laid out by oneDNN for its vector units."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """matrix: [in, out]; bias: [out]."""
        # torch may have been built without oneDNN; the operators below are not there then.
        embedded = matrix.is_cpu and matrix.dtype == torch.float32
        large = embedded and matrix.numel() >= PACKED_ELEMENTS
        self._packed = large and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if self._packed:
            self._matrix = torch.ops.mkldnn._reorder_linear_weight.default(matrix.t())
        else:
            # A GPU's library takes either order, and the storage is another kernel's too.
            self._matrix = matrix.contiguous() if embedded else matrix
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [rows, in]; returns [rows, out]."""
        if self._packed:
            return _packed_linear(x, self._matrix, self._bias, "none", [], "")
        return x @ self._matrix if self._bias is None else torch.addmm(self._bias, x, self._matrix)


class _Layer:
    """A decoder layer as `Llama.forward` runs it."""

    def __init__(self, weights: LayerWeights) -> None:
        self.attention_norm = weights.attention_norm
        self.qkv = Projection(weights.qkv, weights.qkv_bias)
        self.qk_norm = weights.qk_norm
        self.attention_output = Projection(weights.attention_output)
        self.feed_forward_norm = weights.feed_forward_norm
        self.gate_up = Projection(weights.gate_up)
        self.down = Projection(weights.down)


class Llama:
    """A decoder ready to run. Stateless between calls: keys and values are kept by whoever attends."""

    def __init__(self, config: ModelConfig, weights: Weights, context_tokens: int) -> None:
        """`context_tokens`: positions to prepare rotations for. Of a matrix it keeps a copy or the storage."""
        self.config = config
        self._embedding = weights.embedding
        self._layers = [_Layer(layer) for layer in weights.layers]
        self._norm = weights.norm
        self._head = Projection(weights.head)
        self._gate_columns = weights.gate_columns
        # In float32, as the checkpoints were trained: over a long context the rounding of the angles tells.
        angle = torch.outer(torch.arange(context_tokens).float(), rope_frequencies(config))  # [positions, head_dim / 2]
        device = weights.embedding.device
        self._cos = torch.cat([angle.cos(), angle.cos()], dim=-1).to(device)
        # The minus of rotate-half lives in the table: the halves then only swap places.
        self._sin = torch.cat([-angle.sin(), angle.sin()], dim=-1).to(device)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, last: torch.Tensor | None, attend: Attend
    ) -> torch.Tensor:
        """Logits [len(last), vocabulary] of the tokens at the indices `last`; of all tokens where it is None.

        token_ids, positions: int64 [tokens]; the tokens of all sequences of the batch one after another.
        """
        shape, epsilon = self.config.shape, self.config.rms_norm_epsilon
        cos, sin = self._cos[positions, None], self._sin[positions, None]  # [tokens, 1, head_dim]
        rotated = shape.heads + shape.kv_heads
        hidden = self._embedding[token_ids]  # [tokens, hidden]
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(_rms_norm(hidden, layer.attention_norm, epsilon))
            qkv = qkv.view(-1, rotated + shape.kv_heads, shape.head_dim)
            if layer.qk_norm is not None:
                heads = qkv[:, :rotated]
                torch.mul(functional.rms_norm(heads, (shape.head_dim,), eps=epsilon), layer.qk_norm, out=heads)
            _rotate(qkv[:, :rotated], cos, sin)
            keys_values = qkv[:, shape.heads :].view(-1, 2, shape.kv_heads, shape.head_dim)
            attended = attend(index, qkv[:, : shape.heads], keys_values)
            hidden = hidden + layer.attention_output(attended.reshape(-1, shape.query_size))
            gate_up = layer.gate_up(_rms_norm(hidden, layer.feed_forward_norm, epsilon))
            gate, up = gate_up.view(len(hidden), -1, 2, self._gate_columns).unbind(2)
            hidden = hidden + layer.down(functional.silu(gate).mul_(up).flatten(1))
        if last is not None:
            hidden = hidden[last]
        return self._head(_rms_norm(hidden, self._norm, epsilon))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight, epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotates x [tokens, heads, head_dim] in place."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    x.mul_(cos).addcmul_(swapped, sin)
