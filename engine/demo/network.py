"""The demo's network: a small Llama in torch, saved and loaded in Hugging Face's format.

It exists for training and for evaluation apart from the engine; the engine serves the same files with its
own code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

Cache = list[tuple[Tensor, Tensor]]  # a layer each: keys and values, [batch, kv_heads, tokens, head_dim]


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's dimensions. The head dimension is its own number, as kernels want 64 or 128."""

    vocabulary: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 352
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    longest_tokens: int = 2048


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, tokens, _ = x.shape
        split = (batch, tokens, -1, self.shape.head_dim)
        q = _rotate(self.q_proj(x).view(split).transpose(1, 2), rope)  # [batch, heads, tokens, head_dim]
        k = _rotate(self.k_proj(x).view(split).transpose(1, 2), rope)  # [batch, kv_heads, tokens, head_dim]
        v = self.v_proj(x).view(split).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        groups = self.shape.heads // self.shape.kv_heads
        mixed = functional.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), attn_mask=mask
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)), (k, v)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, kept = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class DemoModel(nn.Module):
    """The network without its output head, which shares the embedding; parameter names are Hugging Face's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        self.register_buffer("frequency", frequency, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw new weights: normal, narrower where a layer adds to the residual stream."""
        narrow = (2 * self.shape.layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
            else:
                scale = narrow if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                deviation = 0.02 if "embed" in name else weight.shape[1] ** -0.5 * scale
                nn.init.normal_(weight, std=deviation, generator=generator)

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """Hidden states [batch, tokens, hidden] after the last norm, and the keys and values of every token
        so far.

        `ids` and `positions` are [batch, tokens]; `mask` is [batch, 1, tokens, all tokens], True where a
        token may look.
        """
        assert isinstance(self.frequency, Tensor)
        angle = positions[:, None, :, None] * self.frequency  # [batch, 1, tokens, head_dim / 2]
        angle = torch.cat([angle, angle], dim=-1)
        rope = (angle.cos(), angle.sin())
        x = self.embed_tokens(ids)
        kept: Cache = []
        for index, layer in enumerate(self.layers):
            x, now = layer(x, rope, mask, cache[index] if cache else None)
            kept.append(now)
        return self.norm(x), kept

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., vocabulary]."""
        return functional.linear(hidden, self.embed_tokens.weight)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions in Hugging Face's convention: the two halves of a head form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]


def save_model(state: dict[str, Tensor], shape: Shape, end_token: int, begin_token: int, directory: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16); the weights last and at
    once."""
    tokens = {"bos_token_id": begin_token, "eos_token_id": end_token, "pad_token_id": end_token}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.longest_tokens,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        **tokens,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps({**tokens, "do_sample": False}, indent=2) + "\n")
    weights = {f"model.{name}": weight.to(torch.bfloat16).contiguous() for name, weight in state.items()}
    partial = directory / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors lets only the owner read, and the engine may run as another user
    partial.replace(directory / "model.safetensors")


def load_model(directory: Path) -> DemoModel:
    """The saved network, computing in float32."""
    config = json.loads((directory / "config.json").read_text())
    model = DemoModel(
        Shape(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            feed_forward=config["intermediate_size"],
            rope_theta=config["rope_theta"],
            norm_epsilon=config["rms_norm_eps"],
            longest_tokens=config["max_position_embeddings"],
        )
    )
    weights = load_file(directory / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): weight.float() for name, weight in weights.items()})
    return model.eval()
