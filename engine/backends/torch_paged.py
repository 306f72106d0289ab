"""The forward pass in torch over the paged KV cache, on whatever device and in whatever type the weights are."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.backends.base import DecodeBatch, PrefillBatch
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.model import Attend, Llama, ModelConfig, Weights


@dataclass(frozen=True, slots=True)
class _Span:
    """One attention call: where its context lies in the cache, and what each query may see of it."""

    blocks: torch.Tensor  # [2 sequences kv_heads blocks], rows of a layer's cache: first all keys, then all values
    mask: torch.Tensor  # [sequences, 1, queries, context], 0 or minus infinity


class PagedLlama:
    """A decoder with its cache: logits for what `engine.backends.base` calls a batch."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        cache: list[torch.Tensor],  # a layer: [blocks, 2, kv_heads, block_size, head_dim], finite
    ) -> None:
        blocks = len(cache[0])
        self._shape = shape = config.shape
        self._llama = Llama(config, weights, min(config.max_context_tokens, blocks * BLOCK_SIZE_TOKENS))
        # A block of one head's keys (or values) is one row: gathering a context copies long rows, and what comes out
        # has the layout that attention wants.
        self._cache = [layer.view(-1, BLOCK_SIZE_TOKENS * shape.head_dim) for layer in cache]
        self._device = cache[0].device
        self._gathered = cache[0].new_empty(0)
        self._kv_head = torch.arange(2 * shape.kv_heads)

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
        last = torch.from_numpy(ends - 1).to(self._device)
        return self._forward(batch.token_ids, positions, last, attend)

    @torch.inference_mode()
    def decode_logits(self, batch: DecodeBatch) -> torch.Tensor:
        """Logits [sequences, vocabulary]."""
        positions = batch.context_tokens
        span = self._span(batch.block_tables, positions[:, None])
        attend = partial(
            self._attend_decode, self._written_rows(batch.block_tables, np.arange(len(positions)), positions), span
        )
        return self._forward(batch.token_ids, positions, None, attend)

    def _forward(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        last: torch.Tensor | None,
        attend: Attend,
    ) -> torch.Tensor:
        device = self._device
        return self._llama.forward(
            torch.from_numpy(token_ids).to(device), torch.from_numpy(positions).to(device), last, attend
        )

    def _written_rows(
        self, tables: npt.NDArray[np.int64], sequences: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """Where the keys and values of tokens, given by sequence and position, go in the cache.

        Rows of [blocks 2 kv_heads block_size, head_dim].
        """
        blocks = tables[sequences, positions // BLOCK_SIZE_TOKENS]
        heads = torch.from_numpy(blocks)[:, None] * len(self._kv_head) + self._kv_head
        rows = heads * BLOCK_SIZE_TOKENS + torch.from_numpy(positions % BLOCK_SIZE_TOKENS)[:, None]
        return rows.view(-1).to(self._device)

    def _span(self, tables: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> _Span:
        """tables: [sequences, blocks]; positions of the queries: [sequences, queries]."""
        blocks = int(positions.max()) // BLOCK_SIZE_TOKENS + 1
        used = torch.from_numpy(tables[:, :blocks]) * len(self._kv_head)
        kv_head = self._kv_head.view(2, 1, self._shape.kv_heads, 1)
        visible = torch.arange(blocks * BLOCK_SIZE_TOKENS) <= torch.from_numpy(positions)[:, None, :, None]
        mask = self._gathered.new_zeros(visible.shape).masked_fill_(~visible.to(self._device), -torch.inf)
        return _Span((used[None, :, None, :] + kv_head).view(-1).to(self._device), mask)

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
