"""The contract between the decode loop and whatever computes: a CPU, a GPU, a test's fake.

The backend owns the weights and the tensors of the KV cache; the decode loop owns the block tables. Position p of a
sequence lives in block `block_table[p // block_size]`, at offset `p % block_size`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.sampling import SamplingBatch


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Prompts, or pieces of them. What is in the cache already, from an earlier piece or request, is not among them."""

    token_ids: npt.NDArray[np.int64]  # [tokens], the sequences one after another
    new_tokens: npt.NDArray[np.int64]  # [sequences], how many of `token_ids` are each one's, at least 1
    context_tokens: npt.NDArray[np.int64]  # [sequences], tokens in the cache before this call
    block_tables: npt.NDArray[np.int64]  # [sequences, blocks], rows padded with any valid block
    sampling: SamplingBatch


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Sequences that each go on by one token."""

    token_ids: npt.NDArray[np.int64]  # [sequences], the last token of each, not in the cache yet
    context_tokens: npt.NDArray[np.int64]  # [sequences], tokens in the cache before this call
    block_tables: npt.NDArray[np.int64]  # [sequences, blocks], rows padded with any valid block
    sampling: SamplingBatch


class Backend(Protocol):
    """One model on one device. Called from one thread at a time."""

    @property
    def name(self) -> str:
        """As ModelInfo.backend reports it, e.g. "torch_cpu"."""

    @property
    def device(self) -> str:
        """The device, in words."""

    @property
    def blocks(self) -> int:
        """Blocks in the KV cache."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    @property
    def bytes_per_parameter(self) -> int:
        """Storage of a weight, as the energy model counts memory traffic."""

    @property
    def bytes_per_kv(self) -> int:
        """Storage of one cached key or value component."""

    def prefill(self, batch: PrefillBatch) -> npt.NDArray[np.int64]:
        """Writes the new tokens' keys and values to the cache; returns each sequence's next token, [sequences].

        The token of a sequence whose prompt goes on after this piece means nothing.
        """

    def decode(self, batch: DecodeBatch) -> npt.NDArray[np.int64]:
        """Writes the last tokens' keys and values to the cache; returns each sequence's next token, [sequences]."""

    def warm_up(self, max_batch: int) -> None:
        """Runs every path once, so that the first request finds it ready; the cache may hold anything afterwards.

        Raises FloatingPointError where the model yields numbers that are not finite.
        """
