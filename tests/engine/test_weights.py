"""Model directories, whole and broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.architecture.shape import ModelShape
from engine.model import Llama3RopeScaling, Weights
from engine.weights import ModelError, model_digest, read_config, read_weights
from tests.engine.tiny_model import hf_config, write_model

SINGLE = "model.safetensors"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}


def load(path: Path) -> Weights:
    return read_weights(path, read_config(path))


def shard(path: Path) -> None:
    """Splits the weights in two, as large checkpoints come."""
    tensors = load_file(path / SINGLE)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, path / file)
    (path / SINGLE).unlink()
    weight_map = {name: file for file, held in parts.items() for name in held}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_configuration_is_read(tmp_path: Path) -> None:
    config = read_config(write_model(tmp_path, rope_theta=500.0, eos_token_id=[3, 4]))
    assert config.shape == ModelShape.from_hf_config(hf_config())
    assert (config.rope_theta, config.rms_norm_epsilon, config.max_context_tokens) == (500.0, 1e-5, 256)
    assert config.end_token_ids == {3, 4}


def test_rope_parameters_may_be_nested_and_end_tokens_elsewhere(tmp_path: Path) -> None:
    write_model(tmp_path, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9]}')
    config = read_config(tmp_path)
    assert config.rope_theta == 7.0
    assert config.end_token_ids == {9}


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MistralForCausalLM"], "sliding_window": 256},
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": 64},
        {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"] * 2, "sliding_window": 64},
    ],
)
def test_a_sliding_window_that_hides_nothing_is_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(**changes)))
    assert read_config(tmp_path).max_context_tokens == 256


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_the_scaling_of_rotations_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(**{name: LLAMA3})))
    assert read_config(tmp_path).rope_scaling == Llama3RopeScaling(8, 1, 4, 64)


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [("Qwen2ForCausalLM", "self_attn.q_proj.bias"), ("Qwen3ForCausalLM", "self_attn.q_norm.weight")],
)
def test_a_family_needs_its_own_tensors(tmp_path: Path, architecture: str, missing: str) -> None:
    write_model(tmp_path)  # a Llama's
    (tmp_path / "config.json").write_text(json.dumps(hf_config(architectures=[architecture])))
    with pytest.raises(ModelError, match=rf"tensor model\.layers\.0\.{missing} is missing"):
        load(tmp_path)


def test_sharded_weights_equal_single_ones(tmp_path: Path) -> None:
    single = load(write_model(tmp_path))
    shard(tmp_path)
    sharded = load(tmp_path)
    for one, other in zip(single.layers, sharded.layers, strict=True):
        torch.testing.assert_close(one.qkv, other.qkv, rtol=0, atol=0)
        torch.testing.assert_close(one.down, other.down, rtol=0, atol=0)
    torch.testing.assert_close(single.embedding, sharded.embedding, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures must be one of LlamaForCausalLM"),
        ({"architectures": None}, "architectures must be one of"),
        ({"hidden_act": "gelu"}, "hidden_act must be"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"mlp_bias": True}, "mlp_bias must be false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be null"),
        ({"sliding_window": 255}, "sliding_window must be null or at least max_position_embeddings, 256, got 255"),
        ({"layer_types": ["linear_attention"]}, "layer_types must be full_attention or sliding_attention"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 64},
            "sliding_window must be null or at least",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type must be default or llama3, got 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type must be default or llama3, got 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor must be below high_freq_factor"),
        ({"rope_scaling": 3}, "rope_scaling must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0, got 0.5"),
        ({"rope_theta": float("inf")}, "rope_theta must be a positive number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"eos_token_id": 260}, "eos_token_id must be token ids below 260"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_named(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(**changes)))
    with pytest.raises(ModelError) as raised:
        read_config(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ") and fault in message and "\n" not in message


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path / SINGLE)
        del tensors[name]
        save_file(tensors, path / SINGLE)

    return change


def truncated(path: Path) -> None:
    (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:-1])


def header_only(path: Path) -> None:
    (path / SINGLE).write_bytes(b"\xff" * 20)


def narrower(path: Path) -> None:
    tensors = load_file(path / SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, path / SINGLE)


def quantised(path: Path) -> None:
    tensors = load_file(path / SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, path / SINGLE)


def shard_gone(path: Path) -> None:
    shard(path)
    (path / "model-00002-of-00002.safetensors").unlink()


def index_escapes(path: Path) -> None:
    shard(path)
    index = path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = "../model.safetensors"
    index.write_text(json.dumps(values))


def index_incomplete(path: Path) -> None:
    shard(path)
    index = path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("breaks", "file", "fault"),
    [
        (without("model.layers.1.mlp.up_proj.weight"), SINGLE, "tensor model.layers.1.mlp.up_proj.weight is missing"),
        (narrower, SINGLE, "tensor model.norm.weight has shape [31], config.json says [32]"),
        (quantised, SINGLE, "tensor model.norm.weight is I8; one of F32, F16, BF16, F64"),
        (truncated, SINGLE, "truncated or not a safetensors file"),
        (header_only, SINGLE, "truncated or not a safetensors file"),
        (lambda path: (path / SINGLE).unlink(), SINGLE, "file is missing"),
        (shard_gone, "model-00002-of-00002.safetensors", "file is missing"),
        (index_escapes, "model.safetensors.index.json", "'../model.safetensors' is not a plain file name"),
        (index_incomplete, "model.safetensors.index.json", "tensor model.norm.weight is missing"),
    ],
)
def test_weights_that_cannot_be_served_are_named(
    tmp_path: Path, breaks: Callable[[Path], object], file: str, fault: str
) -> None:
    write_model(tmp_path)
    breaks(tmp_path)
    with pytest.raises(ModelError) as raised:
        load(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / file}: ") and fault in message and "\n" not in message


def test_the_digest_is_of_the_content_and_of_all_of_it(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    digest = model_digest(first)
    assert model_digest(second) == digest
    assert len(digest) == 64
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", SINGLE):
        content = (second / file).read_bytes()
        (second / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_digest(second) != digest, file
        (second / file).write_bytes(content)
    (second / "chat_template.jinja").write_text("x")
    assert model_digest(second) != digest
