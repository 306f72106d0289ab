"""The engine's own loop on the CUDA backend, and what an engine does to get to it, on the emulated device."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from common.energy.modelled import SERVER_CPU
from common.scheduling import SchedulingLimits
from engine.backends import loading
from engine.backends.base import Backend
from engine.backends.cuda.cupy_device import DeviceError
from engine.batching import ContinuousBatch
from engine.config import EngineConfig
from engine.metering import ModelledMeter
from engine.request import GenerationRequest
from engine.sampling import SamplingParams
from engine.tokenizer import Tokenizer
from engine.weights import ModelError, model_digest, read_config
from tests.kernels.emulator import Emulator
from tests.kernels.test_decode_step import NARROW, rounded_model

SHARED = list(range(40, 60))
PROMPTS = [[*SHARED, 7, 9, 3], [*range(200, 212)], [*SHARED, 8, 1], [*range(100, 134)]]
OUTPUT_TOKENS = 14


class EmulatedGpu(Emulator):
    """As much of a CupyDevice as loading asks for."""

    def free_bytes(self) -> int:
        return 1 << 24


@pytest.fixture
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "CupyDevice", lambda ordinal: EmulatedGpu(seed=ordinal, multiprocessors=4))


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logs:
        yield logs


def settings(directory: Path, **changes: Any) -> EngineConfig:
    rounded_model(directory, NARROW, "fp16")
    given: dict[str, Any] = {"backend": "cuda", "dtype": "fp16", "max_batch": 4, "max_context_tokens": 64}
    return EngineConfig(
        model_path=directory, cache_directory=directory / "cache", **({"tune": False} | given | changes)
    )


def load(config: EngineConfig) -> Backend:
    model = read_config(config.model_path)
    tokenizer = Tokenizer(config.model_path, model.shape.vocab_size)
    return loading.load_backend(config, model, tokenizer, model_digest(config.model_path))


def answers(config: EngineConfig, backend: Backend, max_step_tokens: int) -> tuple[dict[int, list[int]], int]:
    """What the loop makes of PROMPTS, and how often it had to preempt."""
    model = read_config(config.model_path)
    batch = ContinuousBatch(
        backend,
        Tokenizer(config.model_path, model.shape.vocab_size),
        ModelledMeter(model.shape, SERVER_CPU, 2, 2),
        SchedulingLimits(3, max_step_tokens),
        frozenset(),
        now_seconds=lambda: 0.0,
    )
    for key, prompt in enumerate(PROMPTS):
        batch.submit(GenerationRequest(key, prompt, SamplingParams(), OUTPUT_TOKENS, (), 0.0))
    tokens: dict[int, list[int]] = {key: [] for key in range(len(PROMPTS))}
    while batch.running or batch.waiting:
        for update in batch.step():
            tokens[update.key] += update.token_ids
    assert batch.allocator.free_blocks == backend.blocks
    return tokens, batch.preemptions


@pytest.mark.usefixtures("emulated_gpu")
def test_the_loop_gives_the_answers_of_torch_cpu_with_chunks_shared_blocks_and_preemption(tmp_path: Path) -> None:
    block_bytes = 2 * 64 * 2 * 2 * 16  # keys and values, head_dim, layers, bytes, tokens
    config = settings(tmp_path, kv_cache_bytes=4 * block_bytes)
    backend = load(config)
    assert (backend.name, backend.blocks) == ("cuda", 4)
    reference = load(settings(tmp_path, backend="torch_cpu", kv_cache_bytes=64 * block_bytes))
    tokens, preemptions = answers(config, backend, max_step_tokens=9)
    expected, _ = answers(config, reference, max_step_tokens=256)
    assert tokens == expected
    assert preemptions > 0


@pytest.mark.usefixtures("emulated_gpu")
def test_without_a_size_the_cache_takes_what_the_weights_leave(tmp_path: Path) -> None:
    config = settings(tmp_path)
    backend = load(config)
    block_bytes = 2 * 64 * 2 * 2 * 16
    weight_bytes = 2 * read_config(tmp_path).shape.parameters
    assert backend.blocks == (int(0.9 * (1 << 24)) - weight_bytes) // block_bytes


@pytest.mark.usefixtures("emulated_gpu")
def test_maxima_are_calibrated_once_and_a_damaged_file_anew(tmp_path: Path, logged: list[Any]) -> None:
    config = settings(tmp_path)
    load(config)
    load(config)
    assert [line["event"] for line in logged].count("unified maxima calibrated") == 1
    (file,) = config.cache_directory.glob("phi-*.json")
    stored = json.loads(file.read_text())
    file.write_text('{"format"')
    load(config)
    assert "unified maxima not used, calibrating anew" in [line["event"] for line in logged]
    assert json.loads(file.read_text()) == stored


@pytest.mark.usefixtures("emulated_gpu")
def test_a_cache_directory_that_takes_nothing_is_a_warning(tmp_path: Path, logged: list[Any]) -> None:
    (tmp_path / "cache").write_text("not a directory")
    assert load(settings(tmp_path)).name == "cuda"
    warnings = [line for line in logged if line["log_level"] == "warning"]
    assert {"unified maxima not stored"} <= {line["event"] for line in warnings}
    assert all("\n" not in line["why"] for line in warnings)


@pytest.mark.usefixtures("emulated_gpu")
@pytest.mark.parametrize(
    ("changes", "fault"),
    [({"head_dim": 48}, "head_dim must be one of 64, 128"), ({"intermediate_size": 100}, "multiples of 8")],
)
def test_a_model_that_the_kernels_do_not_serve(
    tmp_path: Path, changes: dict[str, Any], fault: str, logged: list[Any]
) -> None:
    config = settings(tmp_path)
    rounded_model(tmp_path, NARROW | changes, "fp16")
    with pytest.raises(DeviceError, match=fault):
        load(config)
    assert load(config.model_copy(update={"backend": "auto"})).name == "torch_cpu"
    (line,) = [line for line in logged if line["event"] == "decoding on the CPU"]
    assert fault in line["why"]


@pytest.mark.usefixtures("emulated_gpu")
def test_weights_beyond_the_device_s_memory_say_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmulatedGpu, "free_bytes", lambda self: 1000)
    with pytest.raises(DeviceError, match=r"the weights take .* GiB, and emulator has .* GiB free.* MiB are missing"):
        load(settings(tmp_path))
    with pytest.raises(ModelError, match="less than a block's"):
        load(settings(tmp_path, kv_cache_bytes=100))


def test_no_gpu_is_a_reason_in_the_log_or_a_refusal(
    tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(ordinal: int) -> Any:
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr(loading, "CupyDevice", missing)
    assert load(settings(tmp_path, backend="auto")).name == "torch_cpu"
    assert [line["why"] for line in logged] == ["no NVIDIA driver on this machine"]
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        load(settings(tmp_path, backend="cuda"))
