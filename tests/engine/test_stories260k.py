"""A real checkpoint (karpathy/tinyllamas, llama2.c format) converted here reproduces its published greedy text."""

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from common.energy.modelled import SERVER_CPU
from common.scheduling import SchedulingLimits
from engine.backends.torch_cpu import TorchCpuBackend
from engine.batching import ContinuousBatch
from engine.metering import ModelledMeter
from engine.request import GenerationRequest
from engine.sampling import SamplingParams
from engine.tokenizer import Tokenizer
from engine.weights import read_config, read_weights

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "stories260k"
BEGIN = 1

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="needs stories260k from PITH_DATA_DIR")


def half_split(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """llama2.c rotates neighbouring pairs, Hugging Face the two halves of a head."""
    rows = weight.reshape(heads, -1, 2, weight.shape[1])
    return rows.transpose(0, 2, 1, 3).reshape(weight.shape)


def convert(directory: Path) -> None:
    raw = (DATA / "stories260K.bin").read_bytes()
    hidden, inner, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", raw[:28])
    values = np.frombuffer(raw, np.float32, offset=28)
    head_dim = hidden // heads
    read = 0

    def take(*shape: int) -> npt.NDArray[np.float32]:
        nonlocal read
        count = int(np.prod(shape))
        read += count
        return values[read - count : read].reshape(shape)

    tensors = {"model.embed_tokens.weight": take(vocabulary, hidden)}
    # The file holds a kind of weight for all layers, then the next kind.
    kinds = [
        ("input_layernorm", (hidden,)),
        ("self_attn.q_proj", (hidden, hidden)),
        ("self_attn.k_proj", (kv_heads * head_dim, hidden)),
        ("self_attn.v_proj", (kv_heads * head_dim, hidden)),
        ("self_attn.o_proj", (hidden, hidden)),
        ("post_attention_layernorm", (hidden,)),
        ("mlp.gate_proj", (inner, hidden)),
        ("mlp.down_proj", (hidden, inner)),
        ("mlp.up_proj", (inner, hidden)),
    ]
    for name, shape in kinds:
        for layer in range(layers):
            weight = take(*shape)
            if name.endswith(("q_proj", "k_proj")):
                weight = half_split(weight, heads if name.endswith("q_proj") else kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ascontiguousarray(weight)
    tensors["model.norm.weight"] = take(hidden)
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": context,
        "eos_token_id": BEGIN,
    }
    (directory / "config.json").write_text(json.dumps(config))
    convert_tokenizer(directory, vocabulary)


def convert_tokenizer(directory: Path, vocabulary: int) -> None:
    raw = (DATA / "tok512.bin").read_bytes()
    pieces, read = {}, 4
    for token_id in range(vocabulary):
        _, length = struct.unpack("fi", raw[read : read + 8])
        pieces[raw[read + 8 : read + 8 + length].decode().replace(" ", "▁")] = token_id
        read += 8 + length
    library = Library(models.BPE(vocab=pieces, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.save(str(directory / "tokenizer.json"))


def test_the_published_greedy_text_comes_out(tmp_path: Path) -> None:
    convert(tmp_path)
    config = read_config(tmp_path)
    backend = TorchCpuBackend(config, read_weights(tmp_path, config), blocks=64, threads=1)
    batch = ContinuousBatch(
        backend,
        Tokenizer(tmp_path, config.shape.vocab_size),
        ModelledMeter(config.shape, SERVER_CPU, 4, 4),
        SchedulingLimits(max_batch=4, max_step_tokens=64),
        config.end_token_ids,
        time.monotonic,
    )
    texts = dict.fromkeys(range(4), "")
    # The same answer four times, each joining the batch a few steps after the last.
    for key in texts:
        batch.submit(GenerationRequest(key, [BEGIN], SamplingParams(), 200, (), 0.0))
        for _ in range(7):
            for update in batch.step():
                texts[update.key] += update.text
    while batch.running:
        for update in batch.step():
            texts[update.key] += update.text
    golden = (DATA / "golden_greedy_200.txt").read_text().rstrip("\n")
    assert set(texts.values()) == {golden}
