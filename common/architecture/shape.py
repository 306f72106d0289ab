"""Shape of a dense Llama-family decoder (grouped-query attention, SwiGLU, RMSNorm)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that decide a decoder's size, its FLOPs and its memory traffic.

    Biases and the per-head query and key norms of some families (Qwen2, Qwen3) are not counted: they are
    below 0.01 % of the parameters.

    Raises ValueError, naming the field, for a size below 1 or heads that kv_heads does not divide.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "tied_embeddings":
                _positive_integer(field.name, getattr(self, field.name))
        if not isinstance(self.tied_embeddings, bool):
            raise ValueError(f"tied_embeddings must be true or false, got {self.tied_embeddings!r}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads ({self.heads}), got {self.kv_heads}")

    @property
    def query_size(self) -> int:
        """Width of all query heads together; differs from hidden_size in some families."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def matrix_parameters_per_layer(self) -> int:
        """Parameters of a layer's seven matrices: query, key, value, output, gate, up, down."""
        attention = 2 * self.hidden_size * (self.query_size + self.kv_size)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        return attention + feed_forward

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one token table: the embedding, and again the head where it is not tied."""
        return self.vocab_size * self.hidden_size

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without embedding and head: the layers with their two norms each, and the last norm."""
        norms = (2 * self.layers + 1) * self.hidden_size
        return self.layers * self.matrix_parameters_per_layer + norms

    @property
    def parameters(self) -> int:
        """All parameters; a tied table counts once."""
        tables = 1 if self.tied_embeddings else 2
        return self.non_embedding_parameters + tables * self.embedding_parameters

    def weight_bytes_per_step(self, bytes_per_parameter: float) -> float:
        """Bytes of weights that one step reads, however many sequences it serves.

        The head is read whole (tied or not); of the embedding only the rows of the new tokens are, which
        is left out.
        """
        return (self.non_embedding_parameters + self.embedding_parameters) * bytes_per_parameter

    def kv_bytes_per_token(self, bytes_per_value: float) -> float:
        """Bytes of KV cache that one token occupies over all layers."""
        return 2 * self.layers * self.kv_size * bytes_per_value

    @classmethod
    def from_hf_config(cls, config: Mapping[str, object]) -> ModelShape:
        """Read the shape from the parsed `config.json` of a Hugging Face model directory.

        `num_key_value_heads` defaults to `num_attention_heads`, `head_dim` to hidden_size / heads,
        `tie_word_embeddings` to false, as in the families' own configuration classes.

        Raises ValueError that names the field of the file, its value and what is allowed.
        """
        hidden_size = _required(config, "hidden_size")
        heads = _required(config, "num_attention_heads")
        kv_heads = _optional(config, "num_key_value_heads")
        if kv_heads is None:
            kv_heads = heads
        if heads % kv_heads:
            raise ValueError(f"num_key_value_heads must divide num_attention_heads ({heads}), got {kv_heads}")
        head_dim = _optional(config, "head_dim")
        if head_dim is None:
            if hidden_size % heads:
                raise ValueError(
                    f"hidden_size must be a multiple of num_attention_heads ({heads}) where head_dim is "
                    f"absent, got {hidden_size}"
                )
            head_dim = hidden_size // heads
        tied_embeddings = config.get("tie_word_embeddings", False)
        if not isinstance(tied_embeddings, bool):
            raise ValueError(f"tie_word_embeddings must be true or false, got {tied_embeddings!r}")
        return cls(
            hidden_size=hidden_size,
            layers=_required(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=_required(config, "intermediate_size"),
            vocab_size=_required(config, "vocab_size"),
            tied_embeddings=tied_embeddings,
        )


def _required(config: Mapping[str, object], name: str) -> int:
    if name not in config:
        raise ValueError(f"{name} is missing from the model's configuration")
    return _positive_integer(name, config[name])


def _optional(config: Mapping[str, object], name: str) -> int | None:
    # Some exporters write null for "use the default".
    value = config.get(name)
    return None if value is None else _positive_integer(name, value)


def _positive_integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value
