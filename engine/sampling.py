"""Choosing the next token: greedy, temperature, top-k, top-p.

The draw for a token is a function of (seed, output index) alone, so that an answer comes out the same whether its
request runs alone, in a batch, or goes on at another engine after this one died.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

CANDIDATES = 128
"""Most likely tokens looked at first where top-k or top-p is asked for."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request chooses its tokens."""

    temperature: float = 0.0
    """0 is greedy: the most likely token, the lowest id among equals."""
    top_k: int = 0
    """Only the k most likely tokens; 0 is no limit."""
    top_p: float = 1.0
    """Only the most likely tokens whose probabilities first reach this sum; 1 is no limit."""
    seed: int = 0
    """Unsigned 64 bits."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The parameters of the sequences of a batch, one entry a sequence."""

    temperature: npt.NDArray[np.float64]  # [sequences]
    top_k: npt.NDArray[np.int64]  # [sequences]
    top_p: npt.NDArray[np.float64]  # [sequences]
    seed: npt.NDArray[np.uint64]  # [sequences]
    output_index: npt.NDArray[np.uint64]  # [sequences], 0 for the first output token

    @staticmethod
    def of(params: Sequence[SamplingParams], output_index: Sequence[int]) -> "SamplingBatch":
        return SamplingBatch(
            temperature=np.array([one.temperature for one in params], np.float64),
            top_k=np.array([one.top_k for one in params], np.int64),
            top_p=np.array([one.top_p for one in params], np.float64),
            seed=np.array([one.seed for one in params], np.uint64),
            output_index=np.array(output_index, np.uint64),
        )

    def rows(self, index: npt.NDArray[np.intp]) -> "SamplingBatch":
        return SamplingBatch(
            self.temperature[index], self.top_k[index], self.top_p[index], self.seed[index], self.output_index[index]
        )


def uniforms(seed: npt.NDArray[np.uint64], output_index: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, output index): two rounds of the splitmix64 finaliser as a counter hash."""
    mixed = _splitmix64(_splitmix64(seed) ^ output_index)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Steele, Lea and Flood, Fast splittable pseudorandom number generators (2014), mix function of figure 16."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: torch.Tensor, batch: SamplingBatch) -> npt.NDArray[np.int64]:
    """Token ids [sequences] chosen from `logits` [sequences, vocabulary], float32.

    Top-k applies before top-p, and top-p to the probabilities renormalised after it. Every row takes a path that
    depends on its own parameters only, never on its neighbours'.
    """
    greedy = batch.temperature == 0
    if greedy.all():
        return logits.argmax(dim=-1).numpy()
    limited = ~greedy & ((batch.top_k > 0) | (batch.top_p < 1))
    plain = ~greedy & ~limited
    token_ids = np.empty(len(greedy), np.int64)
    for rows, choose in ((greedy, _most_likely), (plain, _draw), (limited, _draw_limited)):
        index = np.flatnonzero(rows)
        if len(index):
            token_ids[index] = choose(logits[torch.from_numpy(index)], batch.rows(index)).numpy()
    return token_ids


def _most_likely(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _draw(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """One draw a row, by inversion over the tokens in the order of their ids."""
    return _invert(_probabilities(logits, batch), batch)


def _draw_limited(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """One draw a row among the tokens that top-k and top-p leave, by inversion from the most likely down."""
    probabilities = _probabilities(logits, batch)
    likely, token_ids = probabilities.topk(min(CANDIDATES, logits.shape[-1]))
    # Sorting a whole vocabulary costs more than the rest of sampling: only rows that need more candidates pay for it.
    enough = ((batch.top_k > 0) & (batch.top_k <= CANDIDATES)) | (likely.sum(dim=-1).numpy() >= batch.top_p)
    chosen = torch.empty(len(enough), dtype=torch.int64)
    for index, whole in ((np.flatnonzero(enough), False), (np.flatnonzero(~enough), True)):
        if len(index):
            rows = torch.from_numpy(index)
            ordered, ids = (
                probabilities[rows].sort(dim=-1, descending=True, stable=True)
                if whole
                else (likely[rows], token_ids[rows])
            )
            position = _invert(_limit(ordered, batch.rows(index)), batch.rows(index))
            chosen[rows] = ids.gather(-1, position[:, None])[:, 0]
    return chosen


def _limit(ordered: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """The falling probabilities `ordered`, with 0 where top-k or top-p leaves a token out."""
    rank = torch.arange(ordered.shape[-1])
    top_k = torch.from_numpy(np.where(batch.top_k > 0, batch.top_k, ordered.shape[-1]))[:, None]
    ordered = ordered.masked_fill(rank >= top_k, 0.0)
    # Where there is no top-k, top-p is a share of all probability, also of what is not among the candidates.
    all_of_it = torch.where(torch.from_numpy(batch.top_k > 0), ordered.sum(dim=-1), 1.0)[:, None]
    before = ordered.cumsum(dim=-1) - ordered
    # The most likely token stays whatever top_p says.
    return ordered.masked_fill((before >= torch.from_numpy(batch.top_p)[:, None] * all_of_it) & (rank > 0), 0.0)


def _probabilities(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    # The maximum is taken away first: a tiny temperature would make infinities, and infinity minus itself is NaN.
    logits = (logits - logits.amax(dim=-1, keepdim=True)).double()
    return torch.softmax(logits / torch.from_numpy(batch.temperature)[:, None], dim=-1)


def _invert(weights: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """The first position of each row whose cumulative weight exceeds uniform × total."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    threshold = torch.from_numpy(uniforms(batch.seed, batch.output_index))[:, None] * total
    # Rounding may lift the threshold to the total itself, beyond the last position that has weight.
    threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
