"""Brings a model to the strongest backend that this machine and the configuration allow."""

import os
from pathlib import Path

import structlog

from engine.backends.base import Backend
from engine.backends.cuda.attention import check_shape
from engine.backends.cuda.backend import GATE_COLUMNS, TORCH_TYPES, CudaBackend
from engine.backends.cuda.calibration import CALIBRATION_TEXT, MAX_TOKENS, calibration_prompts, record_logits
from engine.backends.cuda.cupy_device import CupyDevice, DeviceError
from engine.backends.cuda.dataflow import DataflowError, DataflowTable, kernels_version
from engine.backends.cuda.phi import PhiError, PhiTable, choose
from engine.backends.cuda.tuning import tune
from engine.backends.torch_cpu import TorchCpuBackend
from engine.config import EngineConfig
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.model import ModelConfig, Weights
from engine.tokenizer import Tokenizer
from engine.weights import ModelError, read_weights

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of Linux's control groups, version 2, as a container sees its own."""
_FREE_SHARE = 0.9
"""Of a GPU's free memory, what may be taken where kv_cache_bytes does not say: prefill and torch need the rest."""

log = structlog.get_logger("backend")


def memory_bytes(limit: Path = CGROUP_LIMIT) -> int:
    """Memory of this machine, or of this container where `limit` says that it may have less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(memory, int(text)) if text.isdigit() else memory


def load_backend(config: EngineConfig, model: ModelConfig, tokenizer: Tokenizer, digest: str) -> Backend:
    """A backend that is loaded and warm.

    Raises:
        ModelError: the model cannot be read, or has no room.
        DeviceError: the configuration insists on a GPU, and there is none that can run the model.
    """
    why = "configured"
    if config.backend != "torch_cpu":
        try:
            return _cuda(config, model, tokenizer, digest)
        except DeviceError as fault:
            if config.backend == "cuda":
                raise DeviceError(f"backend cuda: {fault}") from None
            why = str(fault)
    backend = _torch_cpu(config, model)
    log.info("decoding on the CPU", backend=backend.name, why=why)
    return backend


def _torch_cpu(config: EngineConfig, model: ModelConfig) -> Backend:
    directory, memory = config.model_path, memory_bytes()
    if config.kv_cache_bytes > memory:
        raise ModelError(
            directory, f"kv_cache_bytes {config.kv_cache_bytes} is more than the memory there is, {memory} bytes"
        )
    blocks = _blocks(config, config.kv_cache_bytes, TorchCpuBackend.block_bytes(model))
    return _warm(config, TorchCpuBackend(model, read_weights(directory, model), blocks, config.threads))


def _cuda(config: EngineConfig, model: ModelConfig, tokenizer: Tokenizer, digest: str) -> Backend:
    device = CupyDevice(config.gpu)
    shape, dtype = model.shape, config.dtype
    try:
        check_shape(dtype, shape.heads, shape.kv_heads, shape.head_dim)
        if shape.hidden_size % 8 or shape.intermediate_size % GATE_COLUMNS:
            raise ValueError(
                f"hidden_size and intermediate_size must be multiples of {GATE_COLUMNS}, "
                f"got {shape.hidden_size} and {shape.intermediate_size}"
            )
    except ValueError as fault:
        raise DeviceError(f"the CUDA kernels do not serve this model: {fault}") from None
    weights = read_weights(config.model_path, model, TORCH_TYPES[dtype], GATE_COLUMNS)
    dataflow = _dataflow(config, device, model)
    blocks = _blocks(config, _cache_bytes(config, device, model), CudaBackend.block_bytes(model))
    context_tokens = min(model.max_context_tokens, config.max_context_tokens or model.max_context_tokens)
    backend = CudaBackend(
        device,
        model,
        weights,
        dtype=dtype,
        blocks=blocks,
        max_batch=config.max_batch,
        max_context_tokens=min(context_tokens, blocks * BLOCK_SIZE_TOKENS),
        phi=_phi(config, model, weights, tokenizer, digest),
        dataflow=dataflow,
    )
    return _warm(config, backend)


def _warm(config: EngineConfig, backend: Backend) -> Backend:
    try:
        backend.warm_up(config.max_batch)
    except FloatingPointError as fault:
        raise ModelError(config.model_path, str(fault)) from None
    return backend


def _blocks(config: EngineConfig, cache_bytes: int, block_bytes: int) -> int:
    if cache_bytes < block_bytes:
        raise ModelError(config.model_path, f"kv_cache_bytes {cache_bytes} is less than a block's {block_bytes}")
    return cache_bytes // block_bytes


def _cache_bytes(config: EngineConfig, device: CupyDevice, model: ModelConfig) -> int:
    """As configured, where it was; else what the weights leave of the GPU's memory."""
    if "kv_cache_bytes" in config.model_fields_set:
        return config.kv_cache_bytes
    free_bytes, weight_bytes = device.free_bytes(), 2 * model.shape.parameters
    left = int(_FREE_SHARE * free_bytes) - weight_bytes
    missing_bytes = CudaBackend.block_bytes(model) - left
    if missing_bytes > 0:
        raise DeviceError(
            f"out of device memory: the weights take {weight_bytes / 2**30:.1f} GiB, and {device.name} has "
            f"{free_bytes / 2**30:.1f} GiB free, of which {_FREE_SHARE:.0%} may be used: "
            f"{missing_bytes / 2**20:,.1f} MiB are missing"
        )
    return left


def _dataflow(config: EngineConfig, device: CupyDevice, model: ModelConfig) -> DataflowTable:
    """The stored table; what it lacks of this model is measured and stored. Without a table there are defaults."""
    empty = DataflowTable(device.name, kernels_version(), {})
    try:
        stored = DataflowTable.load(config.cache_directory, device.name, kernels_version())
    except DataflowError as fault:
        log.warning("dataflow table not used, measuring anew", why=str(fault))
        stored = empty
    if not config.tune:
        return stored
    table = tune(device, model.shape, config.dtype, stored, bias=model.qkv_bias, head_norm=model.qk_norm)
    if table is not stored:
        device.release_unused()
        log.info("dataflow measured", device=device.name, products=len(table.choices) - len(stored.choices))
        try:
            table.save(config.cache_directory)
        except DataflowError as fault:
            log.warning("dataflow table not stored", why=str(fault))
    return table


def _phi(config: EngineConfig, model: ModelConfig, weights: Weights, tokenizer: Tokenizer, digest: str) -> PhiTable:
    """The stored unified maxima of this model; where there are none they are calibrated and stored."""
    shape = model.shape
    try:
        stored = PhiTable.load(config.cache_directory, digest, config.dtype, shape.layers, shape.heads)
    except PhiError as fault:
        log.warning("unified maxima not used, calibrating anew", why=str(fault))
        stored = None
    if stored is not None:
        return stored
    prompts = calibration_prompts(
        tokenizer.encode(CALIBRATION_TEXT), shape.vocab_size, min(MAX_TOKENS, model.max_context_tokens)
    )
    table = choose(record_logits(model, weights, prompts), digest, config.dtype)
    synchronised = [index for index, layer in enumerate(table.layers) if layer is None]
    log.info("unified maxima calibrated", layers=len(table.layers), synchronised_layers=synchronised)
    try:
        table.save(config.cache_directory)
    except PhiError as fault:
        log.warning("unified maxima not stored", why=str(fault))
    return table
