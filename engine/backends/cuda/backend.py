"""The backend on an NVIDIA GPU: prefill in torch, decoding in our own kernels, one captured graph a batch size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.backends.base import DecodeBatch, PrefillBatch
from engine.backends.cuda.cupy_device import DeviceError
from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.kernels import Array, Device, FloatType
from engine.backends.cuda.phi import PhiTable
from engine.backends.cuda.step import DecodeStep, LayerArrays, ModelArrays
from engine.backends.torch_paged import PagedLlama
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.model import LayerWeights, ModelConfig, Weights, rope_frequencies
from engine.sampling import SamplingBatch, SamplingParams, sample

GATE_COLUMNS = 8
"""Rows of the gate beside as many of up: one tile of the tensor cores holds both (see `Weights.gate_columns`)."""
FLOAT_BYTES = 2
TORCH_TYPES: dict[FloatType, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CudaBackend:
    """Implements `engine.backends.base.Backend` on any `Device`: a GPU, or the emulator of the tests."""

    name = "cuda"
    block_size = BLOCK_SIZE_TOKENS
    bytes_per_parameter = FLOAT_BYTES
    bytes_per_kv = FLOAT_BYTES

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        weights: Weights,
        *,
        dtype: FloatType,
        blocks: int,
        max_batch: int,
        max_context_tokens: int,
        phi: PhiTable | None = None,
        dataflow: DataflowTable,
    ) -> None:
        """Moves a model to the device.

        Args:
            weights: in host memory, of the type `dtype`, with GATE_COLUMNS.
            blocks: size of the KV cache.
            phi: unified maxima; None: every layer uses the synchronised softmax.

        Raises:
            ValueError: a shape that the kernels do not serve.
            DeviceError: the device cannot hold or run it.
        """
        if weights.gate_columns != GATE_COLUMNS:
            raise ValueError(f"weights.gate_columns: {weights.gate_columns}, must be {GATE_COLUMNS}")
        shape = config.shape
        self.blocks = blocks
        self.device = device.name
        self._device = device
        self._dtype = TORCH_TYPES[dtype]
        cache_shape = (blocks, 2, shape.kv_heads, BLOCK_SIZE_TOKENS, shape.head_dim)
        caches = [device.zeros(cache_shape, np.uint16) for _ in range(shape.layers)]
        angles = torch.outer(torch.arange(max_context_tokens).float(), rope_frequencies(config)).numpy()
        embedding = self._upload(weights.embedding)
        arrays = ModelArrays(
            embedding=embedding,
            layers=tuple(
                self._layer(layer, cache, None if phi is None else phi.of_layer(index), shape.heads)
                for index, (layer, cache) in enumerate(zip(weights.layers, caches, strict=True))
            ),
            norm=self._upload(weights.norm),
            head=embedding if shape.tied_embeddings else self._upload(weights.head.t()),
            cosines=device.asarray(np.cos(angles)),
            sines=device.asarray(np.sin(angles)),
        )
        self._step = DecodeStep(
            device,
            shape,
            dtype,
            arrays,
            epsilon=config.rms_norm_epsilon,
            max_sequences=max_batch,
            max_blocks=-(-max_context_tokens // BLOCK_SIZE_TOKENS),
            dataflow=dataflow,
        )
        self._prefill = PagedLlama(
            config, self._on_device(weights, arrays), [self._torch(cache, self._dtype) for cache in caches]
        )
        self.logits = self._torch(self._step.logits, torch.float32)
        """Of the last decode step, [sequences, vocabulary] float32; the next one writes over them."""
        self._replays: dict[int, Callable[[], None]] = {}

    @staticmethod
    def block_bytes(config: ModelConfig) -> int:
        """Memory that one block of the KV cache takes over all layers."""
        return int(config.shape.kv_bytes_per_token(FLOAT_BYTES)) * BLOCK_SIZE_TOKENS

    def prefill(self, batch: PrefillBatch) -> npt.NDArray[np.int64]:
        with self._on_stream():
            return sample(self._prefill.prefill_logits(batch).float(), batch.sampling)

    def decode(self, batch: DecodeBatch) -> npt.NDArray[np.int64]:
        sequences = len(batch.token_ids)
        with self._on_stream():
            size = self._step.load(batch.token_ids, batch.context_tokens + 1, batch.block_tables)
            self._replay(size)
            if batch.sampling.is_greedy:
                return self._device.to_host(self._step.next_tokens[:sequences]).astype(np.int64)
            if batch.sampling.is_within(self._step.most_likely):
                # The host reads a few candidates a row, not the vocabulary.
                self._step.launch_top(size)
                logits = self._device.to_host(self._step.top_logits[:sequences])
                ids = self._device.to_host(self._step.top_tokens[:sequences])
                chosen = sample(torch.from_numpy(logits), batch.sampling)
                return ids[np.arange(sequences), chosen].astype(np.int64)
            return sample(self.logits[:sequences], batch.sampling)

    def warm_up(self, max_batch: int) -> None:
        """Compiles, runs and captures every batch size up to `max_batch`, before anybody waits for it."""
        one = np.ones(1, np.int64)
        greedy = SamplingBatch.of([SamplingParams()], [0])
        table = np.zeros((1, 1), np.int64)
        with self._on_stream():
            prefilled = self._prefill.prefill_logits(PrefillBatch(0 * one, one, 0 * one, table, greedy))
            for size in self._step.sizes:
                # A sequence of one token, the others padded.
                self._step.load(np.zeros(size, np.int64), np.arange(size) == 0, np.zeros((size, 1), np.int64))
                for _ in range(2):  # the first compiles, the second captures
                    self._replay(size)
                if not self.logits[:1].isfinite().all():
                    raise FloatingPointError("the model's logits are not finite")
                if size >= max_batch:
                    break
        if not prefilled.isfinite().all():
            raise FloatingPointError("the model's logits are not finite")

    def recomputed_rows(self) -> int:
        """Rows of attention that left the range of the unified maximum, since the start."""
        return self._step.recomputed_rows()

    def _replay(self, size: int) -> None:
        """The step that was loaded: launched at its first use, which compiles, and replayed as a graph ever after."""
        if replay := self._replays.get(size):
            replay()
            return
        self._step.launch(size)
        self._replays[size] = self._device.capture(lambda: self._step.launch(size))

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Torch and our kernels on one stream, in order; what was asked for is done at the end."""
        with self._device.stream() as stream:
            if stream is None:
                yield
                return
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, stream.device_id)):  # type: ignore[no-untyped-call]
                yield

    def _layer(self, layer: LayerWeights, cache: Array, phi: npt.NDArray[np.float32] | None, heads: int) -> LayerArrays:
        upload = self._upload
        return LayerArrays(
            attention_norm=upload(layer.attention_norm),
            qkv=upload(layer.qkv.t()),
            qkv_bias=None if layer.qkv_bias is None else upload(layer.qkv_bias),
            query_norm=None if layer.qk_norm is None else upload(layer.qk_norm[0]),
            key_norm=None if layer.qk_norm is None else upload(layer.qk_norm[heads]),
            attention_output=upload(layer.attention_output.t()),
            feed_forward_norm=upload(layer.feed_forward_norm),
            gate_up=upload(layer.gate_up.t()),
            down=upload(layer.down.t()),
            cache=cache,
            phi=None if phi is None else self._device.asarray(phi),
        )

    def _upload(self, tensor: torch.Tensor) -> Array:
        """A 16-bit tensor in host memory as the kernels take it: its bits."""
        return self._device.asarray(tensor.contiguous().view(torch.int16).numpy().view(np.uint16))

    def _torch(self, array: Array, dtype: torch.dtype) -> torch.Tensor:
        """The same memory, as torch sees it."""
        bits: Any = array
        if array.dtype == np.uint16:  # which torch knows only in part
            bits = bits.view(np.int16)
        if isinstance(bits, np.ndarray):
            return torch.from_numpy(bits).view(dtype)
        if not torch.cuda.is_available():
            raise DeviceError(f"this torch ({torch.__version__}) cannot use the GPU, which prefill needs")
        # Any other device than the array's own would be a copy.
        return torch.as_tensor(bits, device=f"cuda:{bits.device.id}").view(dtype)

    def _on_device(self, host: Weights, arrays: ModelArrays) -> Weights:
        """The weights that prefill reads: the very memory that the kernels read."""

        def matrix(array: Array) -> torch.Tensor:
            return self._torch(array, self._dtype).t()

        def vector(array: Array) -> torch.Tensor:
            return self._torch(array, self._dtype)

        layers = [
            replace(
                layer,
                attention_norm=vector(own.attention_norm),
                qkv=matrix(own.qkv),
                qkv_bias=None if own.qkv_bias is None else vector(own.qkv_bias),
                qk_norm=None if layer.qk_norm is None else layer.qk_norm.to(self._torch(own.qkv, self._dtype).device),
                attention_output=matrix(own.attention_output),
                feed_forward_norm=vector(own.feed_forward_norm),
                gate_up=matrix(own.gate_up),
                down=matrix(own.down),
            )
            for layer, own in zip(host.layers, arrays.layers, strict=True)
        ]
        return replace(
            host,
            embedding=vector(arrays.embedding),
            layers=tuple(layers),
            norm=vector(arrays.norm),
            head=matrix(arrays.head),
        )
