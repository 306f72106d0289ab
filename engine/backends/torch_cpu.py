"""The embedded default and numerical reference: torch on a CPU, float32 throughout."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.backends.base import DecodeBatch, PrefillBatch
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.model import Llama, ModelConfig, Weights
from engine.sampling import SamplingBatch, SamplingParams, sample

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Span:
    """One attention call: where its context lies in the cache, and what each query may see of it."""

    blocks: torch.Tensor  # [2 sequences kv_heads blocks], rows of a layer's cache: first all keys, then all values
    mask: torch.Tensor  # [sequences, 1, queries, context], 0 or minus infinity


class TorchCpuBackend:
    """Implements `engine.backends.base.Backend`."""

    name = "torch_cpu"
    block_size = BLOCK_SIZE_TOKENS
    bytes_per_parameter = FLOAT_BYTES
    bytes_per_kv = FLOAT_BYTES

    def __init__(self, config: ModelConfig, weights: Weights, blocks: int, threads: int) -> None:
        """`blocks`: size of the KV cache; `threads`: of torch, for the whole process."""
        torch.set_num_threads(threads)
        self.blocks = blocks
        self.device = f"CPU, threads: {threads}"
        self._shape = shape = config.shape
        self._llama = Llama(config, weights, min(config.max_context_tokens, blocks * self.block_size))
        # A block of one head's keys (or values) is one row: gathering a context copies long rows, and what comes out
        # has the layout that attention wants.
        rows = blocks * 2 * shape.kv_heads
        # Written once here, so that memory that is not there is missed at the start and not in the middle of a day.
        self._cache = [torch.empty(rows, self.block_size * shape.head_dim).zero_() for _ in range(shape.layers)]
        self._gathered = torch.empty(0)
        self._kv_head = torch.arange(2 * shape.kv_heads)

    @staticmethod
    def block_bytes(config: ModelConfig) -> int:
        """Memory that one block of the KV cache takes over all layers."""
        return int(config.shape.kv_bytes_per_token(FLOAT_BYTES)) * BLOCK_SIZE_TOKENS

    def prefill(self, batch: PrefillBatch) -> npt.NDArray[np.int64]:
        return sample(self.prefill_logits(batch), batch.sampling)

    def decode(self, batch: DecodeBatch) -> npt.NDArray[np.int64]:
        return sample(self.decode_logits(batch), batch.sampling)

    @torch.inference_mode()
    def prefill_logits(self, batch: PrefillBatch) -> torch.Tensor:
        """Logits [sequences, vocabulary] of each sequence's last token."""
        ends = np.cumsum(batch.new_tokens)
        within = np.arange(ends[-1]) - np.repeat(ends - batch.new_tokens, batch.new_tokens)
        positions = np.repeat(batch.context_tokens, batch.new_tokens) + within
        sequences = np.repeat(np.arange(len(ends)), batch.new_tokens)
        # A sequence at a time: prompts differ too much in length for padding, and each call has work enough.
        spans = [
            self._span(table[None], positions[None, end - count : end])
            for table, count, end in zip(batch.block_tables, batch.new_tokens, ends, strict=True)
        ]
        attend = partial(
            self._attend_prefill,
            self._written_rows(batch.block_tables, sequences, positions),
            spans,
            batch.new_tokens.tolist(),
        )
        return self._llama.forward(
            torch.from_numpy(batch.token_ids), torch.from_numpy(positions), torch.from_numpy(ends - 1), attend
        )

    @torch.inference_mode()
    def decode_logits(self, batch: DecodeBatch) -> torch.Tensor:
        """Logits [sequences, vocabulary]."""
        positions = batch.context_tokens
        span = self._span(batch.block_tables, positions[:, None])
        attend = partial(
            self._attend_decode, self._written_rows(batch.block_tables, np.arange(len(positions)), positions), span
        )
        return self._llama.forward(torch.from_numpy(batch.token_ids), torch.from_numpy(positions), None, attend)

    def warm_up(self, max_batch: int) -> None:
        for sequences in {1, max_batch}:
            ones = np.ones(sequences, np.int64)
            tables = np.zeros((sequences, 1), np.int64)
            sampling = SamplingBatch.of([SamplingParams()] * sequences, [0] * sequences)
            prefilled = self.prefill_logits(PrefillBatch(0 * ones, ones, 0 * ones, tables, sampling))
            decoded = self.decode_logits(DecodeBatch(0 * ones, ones, tables, sampling))
            if not (prefilled.isfinite().all() and decoded.isfinite().all()):
                raise FloatingPointError("the model's logits are not finite")

    def _written_rows(
        self, tables: npt.NDArray[np.int64], sequences: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """Where the keys and values of tokens, given by sequence and position, go in the cache.

        Rows of [blocks 2 kv_heads block_size, head_dim].
        """
        blocks = tables[sequences, positions // self.block_size]
        heads = torch.from_numpy(blocks)[:, None] * len(self._kv_head) + self._kv_head
        return (heads * self.block_size + torch.from_numpy(positions % self.block_size)[:, None]).view(-1)

    def _span(self, tables: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> _Span:
        """tables: [sequences, blocks]; positions of the queries: [sequences, queries]."""
        blocks = int(positions.max()) // self.block_size + 1
        used = torch.from_numpy(tables[:, :blocks]) * len(self._kv_head)
        kv_head = self._kv_head.view(2, 1, self._shape.kv_heads, 1)
        visible = torch.arange(blocks * self.block_size) <= torch.from_numpy(positions)[:, None, :, None]
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return _Span((used[None, :, None, :] + kv_head).view(-1), mask)

    def _write(self, layer: int, rows: torch.Tensor, keys_values: torch.Tensor) -> None:
        head_dim = self._shape.head_dim
        self._cache[layer].view(-1, head_dim).index_copy_(0, rows, keys_values.reshape(-1, head_dim))

    def _gather(self, layer: int, span: _Span) -> torch.Tensor:
        """Keys and values [2, sequences, kv_heads, context, head_dim]."""
        rows = len(span.blocks)
        if rows > len(self._gathered):
            self._gathered = self._cache[layer].new_empty(rows, self._cache[layer].shape[1])
        # One buffer for all calls: fresh memory of this size would be mapped and zeroed by the system every time.
        gathered = torch.index_select(self._cache[layer], 0, span.blocks, out=self._gathered[:rows])
        return gathered.view(2, len(span.mask), self._shape.kv_heads, -1, self._shape.head_dim)

    def _attend_decode(
        self, rows: torch.Tensor, span: _Span, layer: int, queries: torch.Tensor, keys_values: torch.Tensor
    ) -> torch.Tensor:
        self._write(layer, rows, keys_values)
        keys, values = self._gather(layer, span)
        # The query heads that share a kv head become rows of one small matrix: no copy of keys for each of them.
        grouped = queries.view(len(queries), self._shape.kv_heads, -1, self._shape.head_dim)
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=span.mask).view(queries.shape)

    def _attend_prefill(
        self,
        rows: torch.Tensor,
        spans: list[_Span],
        new_tokens: list[int],
        layer: int,
        queries: torch.Tensor,
        keys_values: torch.Tensor,
    ) -> torch.Tensor:
        self._write(layer, rows, keys_values)
        attended = []
        for own, span in zip(torch.split(queries, new_tokens), spans, strict=True):
            keys, values = self._gather(layer, span)
            own = own.transpose(0, 1)[None]  # [1, heads, queries, head_dim]
            out = scaled_dot_product_attention(own, keys, values, attn_mask=span.mask, enable_gqa=True)
            attended.append(out[0].transpose(0, 1))
        return torch.cat(attended)
