"""A model directory as Hugging Face writes it, tiny and random, with a byte-level tokenizer of 256 + 3 tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from common.architecture.shape import ModelShape
from engine.model import expected_tensors

BEGIN, END, TURN = 256, 257, 258
CHAT_TEMPLATE = (
    "{%- for message in messages %}\n"
    "{%- if message.content == 'refuse me' %}{{ raise_exception('not this') }}{% endif %}\n"
    "{{- '<|turn|>' + message.role + ':' + message.content }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)


def hf_config(**changes: Any) -> dict[str, Any]:
    """`config.json` of a small Llama; a change to None takes the key away."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 260,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "eos_token_id": END,
    } | changes
    return {key: value for key, value in config.items() if value is not None}


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Weights large enough that attention and rotation matter, and that answers vary."""
    generator = np.random.default_rng(seed)
    tensors = {}
    (architecture,) = config["architectures"]
    qkv_bias, qk_norm = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
    for name, shape in expected_tensors(ModelShape.from_hf_config(config), qkv_bias, qk_norm).items():
        if len(shape) == 1:
            tensors[name] = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            tensors[name] = (generator.standard_normal(shape) * 2 / np.sqrt(shape[1])).astype(np.float32)
    return tensors


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: n for n, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|begin|>", "<|end|>", "<|turn|>")])
    return tokenizer


def write_tokenizer(directory: Path) -> None:
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a complete model directory and returns it."""
    config = hf_config(**changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config, seed), directory / "model.safetensors")
    write_tokenizer(directory)
    return directory
