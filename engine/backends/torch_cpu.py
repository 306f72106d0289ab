"""The embedded default and numerical reference: torch on a CPU, float32 throughout."""

import numpy as np
import numpy.typing as npt
import torch

from engine.backends.base import DecodeBatch, PrefillBatch
from engine.backends.processor import processor_name
from engine.backends.torch_paged import PagedLlama
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.model import ModelConfig, Weights
from engine.sampling import SamplingBatch, SamplingParams, sample

FLOAT_BYTES = 4


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
        self.device = f"{processor_name()}, threads: {threads}"
        shape = config.shape
        # Written once here, so that memory that is not there is missed at the start and not in the middle of a day.
        self._llama = PagedLlama(
            config,
            weights,
            [
                torch.empty(blocks, 2, shape.kv_heads, self.block_size, shape.head_dim).zero_()
                for _ in range(shape.layers)
            ],
        )

    @staticmethod
    def block_bytes(config: ModelConfig) -> int:
        """Memory that one block of the KV cache takes over all layers."""
        return int(config.shape.kv_bytes_per_token(FLOAT_BYTES)) * BLOCK_SIZE_TOKENS

    def prefill(self, batch: PrefillBatch) -> npt.NDArray[np.int64]:
        return sample(self.prefill_logits(batch), batch.sampling)

    def decode(self, batch: DecodeBatch) -> npt.NDArray[np.int64]:
        return sample(self.decode_logits(batch), batch.sampling)

    def prefill_logits(self, batch: PrefillBatch) -> torch.Tensor:
        """Logits [sequences, vocabulary] of each sequence's last token."""
        return self._llama.prefill_logits(batch)

    def decode_logits(self, batch: DecodeBatch) -> torch.Tensor:
        """Logits [sequences, vocabulary]."""
        return self._llama.decode_logits(batch)

    def warm_up(self, max_batch: int) -> None:
        for sequences in {1, max_batch}:
            ones = np.ones(sequences, np.int64)
            tables = np.zeros((sequences, 1), np.int64)
            sampling = SamplingBatch.of([SamplingParams()] * sequences, [0] * sequences)
            prefilled = self.prefill_logits(PrefillBatch(0 * ones, ones, 0 * ones, tables, sampling))
            decoded = self.decode_logits(DecodeBatch(0 * ones, ones, tables, sampling))
            if not (prefilled.isfinite().all() and decoded.isfinite().all()):
                raise FloatingPointError("the model's logits are not finite")
