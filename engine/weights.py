"""Reading a model from a Hugging Face directory: configuration, safetensors, digest.

Every fault is a ModelError: one line that names the file and what is wrong with it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.architecture.shape import ModelShape
from engine.model import Llama3RopeScaling, ModelConfig, Weights, assemble, expected_tensors

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
WEIGHT_TYPES = ("F32", "F16", "BF16", "F64")
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class ModelError(Exception):
    """The model directory cannot be used; the message names the file and the fault in one line."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"{file}: {' '.join(fault.split())}")


def read_config(directory: Path) -> ModelConfig:
    """Reads `config.json` (and the end tokens of `generation_config.json`, where there is one)."""
    file = directory / "config.json"
    values = read_json(file)
    try:
        architectures = values.get("architectures")
        if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in ARCHITECTURES:
            raise ValueError(f"architectures must be one of {', '.join(ARCHITECTURES)}, got {architectures!r}")
        (architecture,) = architectures
        context_tokens = int(_positive(values, "max_position_embeddings", 2048))
        _only(values, "hidden_act", "silu", default="silu")
        for switch in ("attention_bias", "mlp_bias"):
            _only(values, switch, False, default=False)
        _only(values, "quantization_config", None, default=None)
        _refuse_sliding_window(values, architecture, context_tokens)
        rope = _rope(values)
        return ModelConfig(
            architecture=architecture,
            shape=_shape(values),
            rope_theta=_positive(rope, "rope_theta", 10000.0),
            rms_norm_epsilon=_positive(values, "rms_norm_eps", 1e-6),
            max_context_tokens=context_tokens,
            end_token_ids=_end_token_ids(directory, values),
            rope_scaling=_rope_scaling(rope),
            qkv_bias=architecture == "Qwen2ForCausalLM",
            qk_norm=architecture == "Qwen3ForCausalLM",
        )
    except ValueError as fault:
        raise ModelError(file, str(fault)) from None


def read_weights(
    directory: Path, config: ModelConfig, dtype: torch.dtype = torch.float32, gate_columns: int | None = None
) -> Weights:
    """Reads the tensors of `model.safetensors` or of the shards that the index names; `gate_columns` as in Weights."""
    tensors: dict[str, torch.Tensor] = {}
    expected = expected_tensors(config.shape, config.qkv_bias, config.qk_norm)
    for file, names in _tensors_by_file(directory, expected).items():
        try:
            with safe_open(file, framework="pt") as opened:
                held = set(opened.keys())
                for name in names:
                    if name not in held:
                        raise ModelError(file, f"tensor {name} is missing")
                    actual = tuple(opened.get_slice(name).get_shape())
                    if actual != expected[name]:
                        raise ModelError(
                            file, f"tensor {name} has shape {list(actual)}, config.json says {list(expected[name])}"
                        )
                    kind = opened.get_slice(name).get_dtype()
                    if kind not in WEIGHT_TYPES:
                        raise ModelError(file, f"tensor {name} is {kind}; one of {', '.join(WEIGHT_TYPES)}")
                    tensors[name] = opened.get_tensor(name).to(dtype)
        except FileNotFoundError:
            raise ModelError(file, "file is missing") from None
        except (SafetensorError, OSError) as fault:
            raise ModelError(file, f"truncated or not a safetensors file ({fault})") from None
    return assemble(tensors, config, gate_columns)


def model_digest(directory: Path) -> str:
    """SHA-256 in hexadecimal over name, length and bytes of the configuration, tokenizer and weight files."""
    digest = hashlib.sha256()
    configs = ("config.json", "generation_config.json", *TOKENIZER_FILES)
    files = [directory / name for name in configs] + sorted(directory.glob("model*.safetensors"))
    for file in files:
        if file.exists():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError where it is missing or holds anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(file, "file is missing") from None
    except (OSError, ValueError) as fault:
        raise ModelError(file, f"not readable as JSON ({fault})") from None
    if not isinstance(values, dict):
        raise ModelError(file, "not a JSON object")
    return values


def _tensors_by_file(directory: Path, expected: Mapping[str, object]) -> dict[Path, list[str]]:
    index_file = directory / INDEX_FILE
    if not index_file.exists():
        return {directory / SINGLE_FILE: list(expected)}
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(index_file, "weight_map is missing")
    files: dict[Path, list[str]] = {}
    for name in expected:
        shard = weight_map.get(name)
        if not isinstance(shard, str):
            raise ModelError(index_file, f"tensor {name} is missing")
        # An index must not reach out of its directory.
        if Path(shard).name != shard:
            raise ModelError(index_file, f"{shard!r} is not a plain file name")
        files.setdefault(directory / shard, []).append(name)
    return files


def _shape(values: Mapping[str, Any]) -> ModelShape:
    shape = ModelShape.from_hf_config(values)
    if shape.head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {shape.head_dim}")
    return shape


def _refuse_sliding_window(values: Mapping[str, Any], architecture: str, context_tokens: int) -> None:
    window = values.get("sliding_window")
    layer_types = values.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list) or not set(layer_types) <= {"full_attention", "sliding_attention"}:
            raise ValueError(f"layer_types must be full_attention or sliding_attention, got {layer_types!r}")
        slides = "sliding_attention" in layer_types
    elif architecture.startswith("Qwen"):
        slides = bool(values.get("use_sliding_window", False))
    else:
        slides = window is not None
    # A window that the whole context fits into hides nothing.
    if slides and (not isinstance(window, int) or window < context_tokens):
        raise ValueError(
            f"sliding_window must be null or at least max_position_embeddings, {context_tokens}, got {window!r}"
        )


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """All that the file says of rotary positions: newer exports nest it in rope_parameters, older in rope_scaling."""
    nested = {name: values.get(name) or {} for name in ("rope_parameters", "rope_scaling")}
    for name, inner in nested.items():
        if not isinstance(inner, dict):
            raise ValueError(f"{name} must be an object or null, got {inner!r}")
    outer = {name: values[name] for name in ("rope_theta", "partial_rotary_factor") if name in values}
    rope = outer | nested["rope_scaling"] | nested["rope_parameters"]
    _only(rope, "partial_rotary_factor", 1.0, default=1.0)
    return rope


def _rope_scaling(rope: Mapping[str, Any]) -> Llama3RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type must be default or llama3, got {kind!r}")
    low, high = _positive(rope, "low_freq_factor"), _positive(rope, "high_freq_factor")
    if low >= high:
        raise ValueError(f"low_freq_factor must be below high_freq_factor ({high:g}), got {low:g}")
    return Llama3RopeScaling(
        factor=_positive(rope, "factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_context_tokens=int(_positive(rope, "original_max_position_embeddings")),
    )


def _end_token_ids(directory: Path, values: Mapping[str, Any]) -> frozenset[int]:
    end: Any = values.get("eos_token_id")
    generation = directory / "generation_config.json"
    if generation.exists():
        end = read_json(generation).get("eos_token_id", end)
    ids = end if isinstance(end, list) else [] if end is None else [end]
    vocabulary = values["vocab_size"]
    for token_id in ids:
        if not isinstance(token_id, int) or not 0 <= token_id < vocabulary:
            raise ValueError(f"eos_token_id must be token ids below {vocabulary}, got {end!r}")
    return frozenset(ids)


def _only(values: Mapping[str, Any], name: str, allowed: object, default: object) -> None:
    if values.get(name, default) != allowed:
        raise ValueError(f"{name} must be {json.dumps(allowed)}, got {values[name]!r}")


def _positive(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number above 0. Without a default it must be there."""
    value = values.get(name, default)
    if value is None:
        raise ValueError(f"{name} is missing from the model's configuration")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)
