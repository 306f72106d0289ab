"""Energy of engine steps, computed from the model's shape where no meter exists.

The form is that of SweetSpot (arXiv 2602.05695): a FLOPs term and a memory-traffic term, each linear in the
tokens processed plus one attention term that grows with the context. The paper counts them for multi-head
attention and a two-matrix feed-forward of four times the hidden size; here both are derived from the shape,
so that grouped-query attention and SwiGLU need no special case. With d = hidden size, L = layers,
q = heads x head_dim, V = vocabulary, P = parameters of a layer's matrices, a sequence that brings k new
tokens to c tokens in its cache costs in one step

    FLOPs     2 L P k             every matrix, one multiply and one add a parameter and token
            + 4 L q (k c + k(k+1)/2)    causal attention: scores and weighted values
            + 2 d V               the head, for the last position only
    KV bytes  (c + k) x bytes a token   the cache is read once, the new tokens are written once

and the step as a whole reads the weights once and dispatches every layer's kernels once, which on a small model
costs more than what they compute. Attention is taken as fused (scores never reach memory), and
activations and the gathered embedding rows are left out as small beside the weights.

Such an energy is always labelled MODELLED: the prices are assumptions, good for comparing requests on one
device, not for comparing devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.architecture.shape import ModelShape


@dataclass(frozen=True, slots=True)
class DevicePrices:
    """What a device pays, at the power that it draws while busy, for arithmetic and for memory traffic.

    The two prices contain the device's static power during the work; `idle_watts` is drawn while there is
    no work and belongs to no request. `source` says where the figures come from.

    Raises ValueError, naming the field, where a figure is negative or not finite.
    """

    joules_per_flop: float
    joules_per_byte: float
    joules_per_layer: float
    """Dispatching the kernels of one layer in one step, however little they compute."""
    idle_watts: float
    source: str

    def __post_init__(self) -> None:
        for name in ("joules_per_flop", "joules_per_byte", "joules_per_layer", "idle_watts"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}")


SERVER_CPU = DevicePrices(
    joules_per_flop=1.2e-10,
    joules_per_byte=2.4e-10,
    joules_per_layer=1.5e-3,
    idle_watts=3.0,
    source=(
        "assumption for two cores of a server CPU: about 15 W (300 W over 32 to 64 cores) at about 125 fp32 "
        "GFLOP/s; 30 pJ a bit of DRAM, the middle of the 1.3 to 2.6 nJ for 64 bits in Horowitz, ISSCC 2014; "
        "0.2 ms of one core at 7.5 W to dispatch a layer in eager mode, as a decode step of the demo model takes; "
        "idle at a fifth of that power"
    ),
)
"""Order of magnitude for fp32 on a CPU; a model that fits the caches pays less for its bytes than this."""

H100 = DevicePrices(
    joules_per_flop=1.2e-12,
    joules_per_byte=2.1e-10,
    joules_per_layer=0.0,
    idle_watts=70.0,
    source=(
        "assumption for an H100 SXM: 700 W (data sheet) at 600 of its 989 dense bf16 TFLOP/s; 700 W at 3.35 "
        "TB/s, which agrees with the 3.2 J of a decode step that do not grow with the batch (fitted to the "
        "ML.ENERGY leaderboard, Llama-3.1-8B) over the 15 GB of weights it reads; idle at a tenth of 700 W"
    ),
)
"""Order of magnitude for H100-class GPUs in bf16; a meter, where there is one, replaces it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one sequence brings to one step.

    new_tokens: tokens processed in the step: a prompt or a piece of it, or 1 in decode.
    context_tokens: tokens that the sequence's KV cache holds before the step.
    begins: whether it is the sequence's first step since it joined the batch, whatever it found in the cache.

    Raises ValueError, naming the field, for new_tokens below 1 or context_tokens below 0.
    """

    new_tokens: int
    context_tokens: int
    begins: bool = False

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens must be at least 1, got {self.new_tokens}")
        if self.context_tokens < 0:
            raise ValueError(f"context_tokens must be at least 0, got {self.context_tokens}")


def step_energy_joules(
    shape: ModelShape,
    prices: DevicePrices,
    work: Sequence[Work],
    bytes_per_parameter: float,
    bytes_per_kv: float,
) -> tuple[float, ...]:
    """Energy in joules of one step, for each sequence in the order of `work`.

    FLOPs and KV traffic are a sequence's own. The weights are read once for all, and that read is shared by
    new tokens; the dispatch is shared equally. So the parts add up to the step, and the more share a step the less
    each pays.

    bytes_per_parameter and bytes_per_kv are the storage sizes of a weight and of a cached value.
    """
    step_tokens = sum(sequence.new_tokens for sequence in work)
    weight_joules = prices.joules_per_byte * shape.weight_bytes_per_step(bytes_per_parameter)
    return tuple(
        _own_joules(
            shape,
            prices,
            bytes_per_kv,
            new_tokens=sequence.new_tokens,
            attended_tokens=sequence.new_tokens * sequence.context_tokens + _triangle(sequence.new_tokens),
            heads_computed=1,
            kv_tokens=sequence.context_tokens + sequence.new_tokens,
        )
        + weight_joules * sequence.new_tokens / step_tokens
        + prices.joules_per_layer * shape.layers / len(work)
        for sequence in work
    )


def request_energy_joules(
    shape: ModelShape,
    prices: DevicePrices,
    input_tokens: int,
    output_tokens: int,
    bytes_per_parameter: float,
    bytes_per_kv: float,
) -> float:
    """Energy in joules of a request that runs alone: E(n, m), the sum over its steps in closed form.

    One prefill of all input tokens yields the first output token, each further one takes a decode step. The
    result is the complete quadratic in (n, m) of SweetSpot's per-request form.

    Raises ValueError, naming the argument, for input_tokens or output_tokens below 1.
    """
    if input_tokens < 1:
        raise ValueError(f"input_tokens must be at least 1, got {input_tokens}")
    if output_tokens < 1:
        raise ValueError(f"output_tokens must be at least 1, got {output_tokens}")
    # The last output token is sampled and returned, but never processed.
    processed_tokens = input_tokens + output_tokens - 1
    own_joules = _own_joules(
        shape,
        prices,
        bytes_per_kv,
        new_tokens=processed_tokens,
        attended_tokens=_triangle(processed_tokens),
        heads_computed=output_tokens,
        kv_tokens=input_tokens * output_tokens + _triangle(output_tokens - 1),
    )
    weight_joules = prices.joules_per_byte * shape.weight_bytes_per_step(bytes_per_parameter)
    return own_joules + output_tokens * (weight_joules + prices.joules_per_layer * shape.layers)


def _own_joules(
    shape: ModelShape,
    prices: DevicePrices,
    bytes_per_kv: float,
    *,
    new_tokens: int,
    attended_tokens: int,
    heads_computed: int,
    kv_tokens: int,
) -> float:
    flops = (
        2 * shape.layers * shape.matrix_parameters_per_layer * new_tokens
        + 4 * shape.layers * shape.query_size * attended_tokens
        + 2 * shape.embedding_parameters * heads_computed
    )
    kv_bytes = shape.kv_bytes_per_token(bytes_per_kv) * kv_tokens
    return prices.joules_per_flop * flops + prices.joules_per_byte * kv_bytes


def _triangle(count: int) -> int:
    return count * (count + 1) // 2
