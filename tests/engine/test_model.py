"""The torch forward pass and the paged backend against a numpy forward written from the papers, in float64."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine.backends.base import DecodeBatch, PrefillBatch
from engine.backends.torch_cpu import TorchCpuBackend
from engine.sampling import SamplingBatch, SamplingParams
from engine.weights import read_config, read_weights
from tests.engine.tiny_model import hf_config, random_tensors, write_model

Floats = npt.NDArray[np.float64]
ATOL = 2e-4


def reference_logits(config: dict, tensors: dict, token_ids: list[int]) -> Floats:  # [tokens, vocabulary]
    """One sequence, no cache, a head at a time."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    tokens = len(token_ids)

    def norm(x: Floats, name: str) -> Floats:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]

    def rotate(x: Floats) -> Floats:  # [tokens, head_dim]
        half = head_dim // 2
        out = np.empty_like(x)
        for position in range(tokens):
            for pair in range(half):
                angle = position * config["rope_theta"] ** (-2 * pair / head_dim)
                a, b = x[position, pair], x[position, pair + half]
                out[position, pair] = a * np.cos(angle) - b * np.sin(angle)
                out[position, pair + half] = b * np.cos(angle) + a * np.sin(angle)
        return out

    hidden = weights["model.embed_tokens.weight"][token_ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        x = norm(hidden, prefix + "input_layernorm.weight")
        queries, keys, values = (x @ weights[f"{prefix}self_attn.{name}_proj.weight"].T for name in "qkv")
        attended = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            query = rotate(queries[:, head * head_dim : (head + 1) * head_dim])
            key = rotate(keys[:, shared * head_dim : (shared + 1) * head_dim])
            scores = query @ key.T / np.sqrt(head_dim)
            scores[np.triu_indices(tokens, 1)] = -np.inf
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            attended.append(weight @ values[:, shared * head_dim : (shared + 1) * head_dim])
        hidden = hidden + np.concatenate(attended, -1) @ weights[prefix + "self_attn.o_proj.weight"].T
        x = norm(hidden, prefix + "post_attention_layernorm.weight")
        gate, up = (x @ weights[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ weights[prefix + "mlp.down_proj.weight"].T
    head_name = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(hidden, "model.norm.weight") @ weights[head_name].T


def greedy(sequences: int) -> SamplingBatch:
    return SamplingBatch.of([SamplingParams()] * sequences, [0] * sequences)


def prefill(parts: list[list[int]], context: list[int], tables: list[list[int]]) -> PrefillBatch:
    return PrefillBatch(
        np.concatenate([np.array(part) for part in parts]),
        np.array([len(part) for part in parts]),
        np.array(context),
        np.array(tables),
        greedy(len(parts)),
    )


def backend_of(path: Path, blocks: int = 32) -> TorchCpuBackend:
    config = read_config(path)
    return TorchCpuBackend(config, read_weights(path, config), blocks, threads=1)


CONFIGS = [
    hf_config(),
    hf_config(num_key_value_heads=4),
    hf_config(num_key_value_heads=1, tie_word_embeddings=False),
    hf_config(num_key_value_heads=2, head_dim=16, rope_theta=500.0),
    hf_config(hidden_size=30, num_attention_heads=3, num_key_value_heads=1, head_dim=10, num_hidden_layers=3),
    # Large enough for matrices that are packed.
    hf_config(hidden_size=256, intermediate_size=1024),
]


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_prefill_and_decode_equal_the_full_forward(tmp_path: Path, index: int) -> None:
    config = CONFIGS[index]
    write_model(tmp_path, seed=index, **config)
    backend = backend_of(tmp_path)
    token_ids = np.random.default_rng(index).integers(0, 256, 40).tolist()
    expected = reference_logits(config, random_tensors(config, index), token_ids)
    # Blocks in no order: positions follow the table, not the block ids.
    table = [7, 3, 30]
    prompt = 19
    logits = backend.prefill_logits(prefill([token_ids[:prompt]], [0], [table]))
    np.testing.assert_allclose(logits[0], expected[prompt - 1], atol=ATOL)
    for position in range(prompt, len(token_ids)):
        batch = DecodeBatch(np.array([token_ids[position]]), np.array([position]), np.array([table]), greedy(1))
        np.testing.assert_allclose(backend.decode_logits(batch)[0], expected[position], atol=ATOL)


def test_a_prompt_in_pieces_equals_the_prompt_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, seed=3)
    backend = backend_of(tmp_path)
    token_ids = list(range(50, 90))
    at_once = backend.prefill_logits(prefill([token_ids], [0], [[0, 1, 2]]))
    backend.prefill_logits(prefill([token_ids[:5]], [0], [[5, 9, 4]]))
    backend.prefill_logits(prefill([token_ids[5:33]], [5], [[5, 9, 4]]))
    in_pieces = backend.prefill_logits(prefill([token_ids[33:]], [33], [[5, 9, 4]]))
    torch.testing.assert_close(in_pieces, at_once, atol=ATOL, rtol=0)


def test_a_ragged_batch_equals_each_sequence_alone(tmp_path: Path) -> None:
    write_model(tmp_path, seed=4, num_key_value_heads=1)
    batched, alone = backend_of(tmp_path), backend_of(tmp_path)
    generator = np.random.default_rng(0)
    lengths = [1, 16, 33, 7]
    prompts = [generator.integers(0, 256, length).tolist() for length in lengths]
    tables = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    steps = generator.integers(0, 256, (5, len(prompts)))

    together = batched.prefill_logits(prefill(prompts, [0] * 4, tables))
    for row, (prompt, table) in enumerate(zip(prompts, tables, strict=True)):
        own = alone.prefill_logits(prefill([prompt], [0], [table]))
        torch.testing.assert_close(own[0], together[row], atol=ATOL, rtol=0)
    for step, token_ids in enumerate(steps):
        context = np.array(lengths) + step
        together = batched.decode_logits(DecodeBatch(token_ids, context, np.array(tables), greedy(4)))
        for row in range(4):
            only = np.array([row])
            own = alone.decode_logits(DecodeBatch(token_ids[only], context[only], np.array(tables)[only], greedy(1)))
            torch.testing.assert_close(own[0], together[row], atol=ATOL, rtol=0)


def test_sequences_do_not_see_one_another(tmp_path: Path) -> None:
    write_model(tmp_path, seed=5)
    backend = backend_of(tmp_path)
    table, other = [2, 8], [4, 6]
    backend.prefill_logits(prefill([list(range(20))], [0], [table]))
    step = DecodeBatch(np.array([65]), np.array([20]), np.array([table]), greedy(1))
    before = backend.decode_logits(step)
    backend.prefill_logits(prefill([list(range(100, 130))], [0], [other]))
    torch.testing.assert_close(backend.decode_logits(step), before, atol=0, rtol=0)


def test_bfloat16_weights_are_read_as_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path, seed=6)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    rounded = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    token_ids = list(range(10))
    logits = backend_of(tmp_path).prefill_logits(prefill([token_ids], [0], [[0]]))
    np.testing.assert_allclose(logits[0], reference_logits(config, rounded, token_ids)[-1], atol=ATOL)
    assert logits.dtype == torch.float32
