"""The decode step of whole small models on the emulated kernels: the tokens of torch_cpu, recompute path included."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.architecture.shape import ModelShape
from engine.backends.base import DecodeBatch, PrefillBatch
from engine.backends.cuda.backend import GATE_COLUMNS, TORCH_TYPES, CudaBackend
from engine.backends.cuda.calibration import record_logits
from engine.backends.cuda.dataflow import Choice, DataflowTable
from engine.backends.cuda.kernels import FloatType
from engine.backends.cuda.phi import PhiTable, choose
from engine.backends.cuda.step import DecodeStep
from engine.backends.cuda.tuning import blank_step
from engine.backends.torch_cpu import TorchCpuBackend
from engine.sampling import History, SamplingBatch, SamplingParams
from engine.weights import read_config, read_weights
from tests.engine.tiny_model import write_model
from tests.kernels.devices import emulator_only, make_device
from tests.kernels.emulator import Emulator

BLOCKS = 12
PROMPTS = [[5, 200, 31, 7, 7, 90, 14, 3, 250, 66, 1, 8, 9, 120, 33, 41, 77], [9, 8], [44, 61, 7, 19, 230]]
TABLES = [[7, 2, 9], [4, 0, 3], [11, 5, 8]]
STEPS = 4
NARROW = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 64}
WIDE = {"hidden_size": 48, "intermediate_size": 64, "head_dim": 128, "tie_word_embeddings": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "4 heads a KV head": NARROW,
    "head_dim 128, untied": WIDE | {"num_attention_heads": 3, "num_key_value_heads": 3},
    "biases, 7 heads a KV head": NARROW | {"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 7},
    "q/k norm": WIDE | {"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 2, "num_key_value_heads": 1},
}
# Largest error over the largest logit of a row: what two layers make of the rounding of each step.
TOLERANCE = {"bf16": 4e-2, "fp16": 5e-3}


class FixedDataflow(DataflowTable):
    """One implementation for every product and every batch."""

    def choice(self, rows: int, inner: int, fusion: str) -> Choice:
        return Choice((1,), (self.version,), "default")


def greedy(sequences: int) -> SamplingBatch:
    return SamplingBatch.of([SamplingParams()] * sequences, [0] * sequences)


def prefill(backend: CudaBackend | TorchCpuBackend) -> npt.NDArray[np.int64]:
    """Brings PROMPTS to the cache; their lengths [sequences]."""
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    backend.prefill(PrefillBatch(np.concatenate(PROMPTS), lengths, 0 * lengths, np.array(TABLES), greedy(len(PROMPTS))))
    return lengths


def generate(backend: CudaBackend | TorchCpuBackend) -> npt.NDArray[np.int64]:
    """Tokens [steps + 1, sequences] of PROMPTS, decoded together."""
    tables = np.array(TABLES)
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    tokens = [
        backend.prefill(PrefillBatch(np.concatenate(PROMPTS), lengths, 0 * lengths, tables, greedy(len(PROMPTS))))
    ]
    for step in range(STEPS):
        tokens.append(backend.decode(DecodeBatch(tokens[-1], lengths + step, tables, greedy(len(PROMPTS)))))
    return np.array(tokens)


def rounded_model(directory: Path, config: dict[str, Any], dtype: FloatType) -> None:
    """A model whose weights are 16-bit numbers, so that both backends have the same."""
    write_model(directory, seed=3, **config)
    file = directory / "model.safetensors"
    kind = TORCH_TYPES[dtype]
    # Logits as tame as a trained model's: fp16 has room for a factor of about 2^20 between a head's rows.
    tame = {name: tensor * (0.1 if "q_proj" in name else 1) for name, tensor in load_file(file).items()}
    save_file({name: tensor.to(kind).contiguous() for name, tensor in tame.items()}, file)


def cuda_backend(directory: Path, dtype: FloatType, implementation: str, phi: str, seed: int = 0) -> CudaBackend:
    config = read_config(directory)
    weights = read_weights(directory, config, TORCH_TYPES[dtype], GATE_COLUMNS)
    table = None
    if phi != "synchronised":
        table = choose(record_logits(config, weights, PROMPTS), "digest", dtype)
        assert all(layer is not None for layer in table.layers)
        if phi == "far off":
            far = tuple(tuple(value - 200.0 for value in layer) for layer in table.layers if layer is not None)
            table = PhiTable("digest", dtype, far)
    return CudaBackend(
        make_device(seed, multiprocessors=4), config, weights,
        dtype=dtype, blocks=BLOCKS, max_batch=4, max_context_tokens=48, phi=table,
        dataflow=FixedDataflow("emulator", implementation, {}),
    )  # fmt: skip


@pytest.mark.parametrize("implementation", ["flat", "gemv", "cublas"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_tokens_of_torch_cpu(tmp_path: Path, name: str, implementation: str) -> None:
    rounded_model(tmp_path, CONFIGS[name], "fp16")
    config = read_config(tmp_path)
    expected = generate(TorchCpuBackend(config, read_weights(tmp_path, config), BLOCKS, threads=1))
    backend = cuda_backend(tmp_path, "fp16", implementation, "calibrated")
    np.testing.assert_array_equal(generate(backend), expected)
    assert backend.recomputed_rows() == 0


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("phi", ["calibrated", "synchronised", "far off"])
def test_the_logits_of_torch_cpu_whatever_the_maximum(tmp_path: Path, dtype: FloatType, phi: str) -> None:
    """Every row that leaves the range is recomputed, and counted."""
    rounded_model(tmp_path, NARROW, dtype)
    config = read_config(tmp_path)
    reference = TorchCpuBackend(config, read_weights(tmp_path, config), BLOCKS, threads=1)
    backend = cuda_backend(tmp_path, dtype, "flat", phi)
    tokens = generate(reference)
    lengths = prefill(backend)
    prefill(reference)
    for step in range(STEPS):
        batch = DecodeBatch(tokens[step], lengths + step, np.array(TABLES), greedy(len(PROMPTS)))
        backend.decode(batch)
        expected = reference.decode_logits(batch)
        error = (backend.logits[: len(PROMPTS)] - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)
        assert error.max() <= TOLERANCE[dtype]
    rows = STEPS * config.shape.layers * config.shape.heads * len(PROMPTS)
    assert backend.recomputed_rows() == (rows if phi == "far off" else 0)


ALL = SamplingParams(temperature=0.8, top_p=0.9, seed=3)
FEW = SamplingParams(temperature=0.3, top_k=5, seed=9)
BIASED = SamplingParams(logit_bias=((17, 100.0),))


@pytest.mark.parametrize("params", [[ALL, BIASED, FEW], [FEW, SamplingParams(), FEW]], ids=["all logits", "candidates"])
def test_draws_are_made_from_the_device_s_logits(tmp_path: Path, params: list[SamplingParams]) -> None:
    rounded_model(tmp_path, NARROW, "fp16")
    config = read_config(tmp_path)
    histories = [History(one, PROMPTS[1]) if one is BIASED else None for one in params]
    sampling = SamplingBatch.of(params, [4, 4, 4], histories)
    chosen = []
    for backend in (
        TorchCpuBackend(config, read_weights(tmp_path, config), BLOCKS, threads=1),
        cuda_backend(tmp_path, "fp16", "flat", "calibrated"),
    ):
        lengths = prefill(backend)
        chosen.append(backend.decode(DecodeBatch(np.array([1, 2, 3]), lengths, np.array(TABLES), sampling)))
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert BIASED not in params or chosen[0][1] == 17


class CountingEmulator(Emulator):
    launches = 0

    def launch(self, *arguments: Any) -> None:
        self.launches += 1
        super().launch(*arguments)


@emulator_only
@pytest.mark.parametrize(("way", "each_layer", "once"), [("flat", 5, 2), ("cublas", 5, 3)])
def test_a_layer_is_five_launches_of_our_own(way: str, each_layer: int, once: int) -> None:
    """With cuBLAS: norm, rotation, attention, norm and SwiGLU stand beside its four products."""
    device = CountingEmulator(multiprocessors=4)
    shape = ModelShape(64, 3, 2, 1, 64, 32, 70, tied_embeddings=False)
    blank = blank_step(device, replace(shape, layers=1), "bf16")
    step = DecodeStep(
        device, shape, "bf16", replace(blank.model, layers=blank.model.layers * shape.layers),
        epsilon=1e-5, max_sequences=2, max_blocks=1, dataflow=FixedDataflow("emulator", way, {}),
    )  # fmt: skip
    device.launches = 0
    step.launch(step.load(np.array([1, 2]), np.array([1, 1]), np.array([[0], [0]])))
    assert device.launches == each_layer * shape.layers + once


def test_the_same_batch_twice_gives_the_same_bits(tmp_path: Path) -> None:
    rounded_model(tmp_path, NARROW, "bf16")
    logits = []
    for seed in (1, 2):
        backend = cuda_backend(tmp_path, "bf16", "flat", "calibrated", seed)
        batch = DecodeBatch(np.array([1, 2, 3]), prefill(backend), np.array(TABLES), greedy(len(PROMPTS)))
        for _ in range(2):  # the second is the replay
            backend.decode(batch)
            logits.append(backend.logits[: len(PROMPTS)].clone())
    assert all(torch.equal(one, logits[0]) for one in logits)
