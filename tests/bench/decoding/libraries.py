"""Peers that are libraries: transformers' `generate`, and FlashInfer's decode attention where it imports."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from common.architecture.shape import ModelShape
from engine.backends.cuda.attention import BLOCK_TOKENS
from engine.backends.cuda.kernels import FloatType
from tests.bench.decoding.model import EPSILON, Workload
from tests.bench.decoding.timing import Work
from tests.bench.decoding.torch_step import TYPES, as_tensor, captured

NEW_TOKENS = 64
_RUNS = 3


class _Clock:
    """A streamer: generate hands it the prompt, then every step's tokens as soon as they are known."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        pass


class Transformers:
    """A Llama of transformers with random weights and a static cache; attention is its default, SDPA."""

    def __init__(self, shape: ModelShape, dtype: FloatType, positions: int, device: str = "cuda") -> None:
        transformers: Any = import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        config = transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=shape.tied_embeddings,
            max_position_embeddings=positions,
            rms_norm_eps=EPSILON,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        with torch.device(device):
            self._model = transformers.AutoModelForCausalLM.from_config(config, dtype=TYPES[dtype]).eval()
        self._vocabulary, self._device = shape.vocab_size, device

    @torch.inference_mode()
    def step_seconds(self, batch: int, context_tokens: int, *, compiled: bool, new_tokens: int = NEW_TOKENS) -> float:
        """Seconds a step of `generate`, greedy, whose contexts are `context_tokens` long in the mean: median run.

        The prefill is left out. A run before does not count: it compiles.
        """
        prompt_tokens = max(1, context_tokens - new_tokens // 2)
        prompts = torch.randint(0, self._vocabulary, (batch, prompt_tokens), device=self._device)
        taken = []
        for _ in range(_RUNS + 1 + compiled):
            clock = _Clock()
            self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                cache_implementation="static",
                disable_compile=not compiled,
                streamer=clock,
            )
            if len(clock.seconds) != new_tokens + 1:
                raise RuntimeError(f"transformers made {len(clock.seconds) - 1} tokens in place of {new_tokens}")
            taken.append((clock.seconds[-1] - clock.seconds[1]) / (new_tokens - 1))
        return statistics.median(taken[-_RUNS:])


def flashinfer_attention(workload: Workload, queries: torch.Tensor) -> Work:
    """FlashInfer's decode attention of every layer on our own cache, whose layout is its HND, in a CUDA graph.

    Args:
        queries: [batch, heads, head_dim].

    Raises ImportError where it does not import, and whatever it raises for a shape that it does not serve.
    """
    flashinfer: Any = import_module("flashinfer")
    shape, dtype = workload.shape, TYPES[workload.dtype]
    batch, blocks = workload.block_tables.shape
    device = queries.device
    plan_space = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    grouped = shape.heads > shape.kv_heads
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(plan_space, "HND", use_tensor_cores=grouped)
    last = (workload.context_tokens - 1) % BLOCK_TOKENS + 1
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32, device=device) * blocks,
        torch.from_numpy(workload.block_tables).to(device, torch.int32).flatten(),
        torch.full((batch,), last, dtype=torch.int32, device=device),
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        BLOCK_TOKENS,
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    caches = [as_tensor(layer.cache, dtype) for layer in workload.model.layers]
    contiguous = queries.contiguous()

    def attention() -> None:
        for cache in caches:
            wrapper.run(contiguous, cache)

    return captured(attention)


@contextmanager
def on_torch_stream(stream: Any) -> Iterator[None]:
    """Makes CuPy's `stream` torch's too, so that one pair of events times both."""
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, stream.device_id)):  # type: ignore[no-untyped-call]
        yield
