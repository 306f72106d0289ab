"""The next tokens from logits on the device: the largest of each row, or the largest k <= 64 in order.

A host that draws with top-k then reads k values a row, not the vocabulary.
"""

from collections.abc import Iterable

import numpy as np

from engine.backends.cuda.kernels import Array, Device, Kernel

KEPT = 64
_THREADS = 256
_WARPS = _THREADS // 32
_CAPACITY = 2048  # keys of 8 bytes that top_k holds, as in select.cu
_BLOCKS_PER_MULTIPROCESSOR = 8
# A block's least share of a row. For top_k the reading of the row and the merge of 64 keys a block take turns, and
# 64 * vocabulary / share = share balances them.
_LEAST_GREEDY_ELEMENTS = 1024
_LEAST_TOP_K_ELEMENTS = 4096

_DEFINES: tuple[tuple[str, str | int], ...] = (("THREADS", _THREADS),)
_GREEDY = Kernel("select.cu", "greedy", _DEFINES, _THREADS, shared_bytes=_WARPS * 8 + 16)
_TOP_K = Kernel("select.cu", "top_k", _DEFINES, _THREADS, shared_bytes=_CAPACITY * 8 + _WARPS * 4 + 16)


class Selection:
    """Selects from logits of up to `rows` rows, in workspace of its own, allocated once.

    One launch at a time: launches on one stream, or graphs replayed on it, may share it.
    """

    def __init__(self, device: Device, rows: int) -> None:
        self._device = device
        self._blocks = max(_BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors, rows)
        self._rows = rows
        self._partials = device.empty(self._blocks * KEPT, np.uint64)
        self._arrivals = device.zeros(rows, np.uint32)

    def greedy(self, logits: Array, tokens: Array) -> None:
        """tokens = the id of each row's largest logit, the lowest among equals; NaN never wins, an all-NaN row gives 0.

        logits: float32 [rows, vocabulary]; tokens: int32 [rows], written.
        """
        rows, vocabulary = self._shape(logits)
        grid = (self._chunks(rows, vocabulary, _LEAST_GREEDY_ELEMENTS), rows, 1)
        self._device.launch(_GREEDY, grid, (logits, np.int32(vocabulary), self._partials, self._arrivals, tokens))

    def top_k(self, logits: Array, values: Array, ids: Array) -> None:
        """The k largest of each row, value descending, then id ascending; a NaN comes after every number.

        logits: float32 [rows, vocabulary]; values: float32 [rows, k], ids: int32 [rows, k], both written; values are
        the logits' own (-0 is given as 0). Raises ValueError where k is above 64 or above the vocabulary.
        """
        rows, vocabulary = self._shape(logits)
        k = ids.shape[1]
        if not 1 <= k <= min(KEPT, vocabulary):
            raise ValueError(f"k: {k}, must be from 1 to {min(KEPT, vocabulary)}")
        grid = (self._chunks(rows, vocabulary, _LEAST_TOP_K_ELEMENTS), rows, 1)
        arguments = (logits, np.int32(vocabulary), np.int32(k), self._partials, self._arrivals, values, ids)
        self._device.launch(_TOP_K, grid, arguments)

    def _shape(self, logits: Array) -> tuple[int, int]:
        rows, vocabulary = logits.shape
        if rows > self._rows:
            raise ValueError(f"logits: {rows} rows, the workspace is for {self._rows}")
        return rows, vocabulary

    def _chunks(self, rows: int, vocabulary: int, least_elements: int) -> int:
        return max(1, min(self._blocks // rows, -(-vocabulary // least_elements)))


def instantiations() -> Iterable[Kernel]:
    """Every kernel that this module can launch."""
    return (_GREEDY, _TOP_K)
