"""Choosing the next token: penalties, biases and suppressed words, then temperature, top-k, top-p and min-p.

The draw for a token is a function of (seed, output index) alone, so that an answer comes out the same whether its
request runs alone, in a batch, or goes on at another engine after this one died.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.suppression import Suppression

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
    min_p: float = 0.0
    """Only tokens at least this share as probable as the most probable one; 0 is no limit."""
    seed: int = 0
    """Unsigned 64 bits."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of the tokens of prompt and answer so far.

    Keskar et al., CTRL (2019), section 4.1; 1 is none.
    """
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what to add to its logit), after the penalty."""
    suppression: Suppression | None = None
    logprobs: int | None = None
    """How many alternatives to report with each token's log-probability; None reports nothing."""

    @property
    def depends_on_history(self) -> bool:
        """Whether more than logits, seed and output index is needed to choose, or more than a token comes out."""
        plain = self.repetition_penalty == 1 and not self.logit_bias and self.suppression is None
        return not plain or self.logprobs is not None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability, as the model gives it: before penalty, bias and temperature."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the most probable tokens, from the top; the chosen one may be among them."""


class History:
    """What the tokens of one answer so far mean for the choice of its next. Its answer feeds it."""

    def __init__(self, params: SamplingParams, prompt_token_ids: Iterable[int]) -> None:
        self.params = params
        self.chosen: TokenLogprob | None = None
        """Of the token chosen last, where logprobs are asked for; `sample` writes it."""
        self.bias_ids = np.array([token_id for token_id, _ in params.logit_bias], np.int64)
        self.biases = np.array([bias for _, bias in params.logit_bias], np.float32)
        self._seen = dict.fromkeys(prompt_token_ids) if params.repetition_penalty != 1 else None
        self._end = b""

    def push(self, token_id: int) -> None:
        """Takes the answer's next token."""
        if self._seen is not None:
            self._seen[token_id] = None
        if suppression := self.params.suppression:
            end = self._end + suppression.index.token_bytes[token_id]
            self._end = end[max(0, len(end) - suppression.memory_bytes) :]

    @property
    def penalised(self) -> npt.NDArray[np.int64]:
        """Ids of the tokens that the repetition penalty falls on."""
        seen = self._seen or {}
        return np.fromiter(seen, np.int64, len(seen))

    @property
    def forbidden(self) -> npt.NDArray[np.int64]:
        """Ids of the tokens that would complete a suppressed word."""
        suppression = self.params.suppression
        return np.empty(0, np.int64) if suppression is None else suppression.forbidden(self._end)


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The parameters of the sequences of a batch, one entry a sequence."""

    temperature: npt.NDArray[np.float64]  # [sequences]
    top_k: npt.NDArray[np.int64]  # [sequences]
    top_p: npt.NDArray[np.float64]  # [sequences]
    min_p: npt.NDArray[np.float64]  # [sequences]
    seed: npt.NDArray[np.uint64]  # [sequences]
    output_index: npt.NDArray[np.uint64]  # [sequences], 0 for the first output token
    histories: tuple[tuple[int, History], ...] = ()
    """(row, its history) of those sequences that have one."""

    @staticmethod
    def of(
        params: Sequence[SamplingParams], output_index: Sequence[int], histories: Sequence[History | None] = ()
    ) -> "SamplingBatch":
        return SamplingBatch(
            temperature=np.array([one.temperature for one in params], np.float64),
            top_k=np.array([one.top_k for one in params], np.int64),
            top_p=np.array([one.top_p for one in params], np.float64),
            min_p=np.array([one.min_p for one in params], np.float64),
            seed=np.array([one.seed for one in params], np.uint64),
            output_index=np.array(output_index, np.uint64),
            histories=tuple((row, one) for row, one in enumerate(histories) if one is not None),
        )

    @property
    def is_greedy(self) -> bool:
        """Whether each sequence takes its most likely token, and nothing more is asked of the logits."""
        return not self.histories and not self.temperature.any()

    def is_within(self, candidates: int) -> bool:
        """Whether each sequence chooses among so many most likely tokens at most, and nothing more is asked."""
        limited = (self.top_k > 0) & (self.top_k <= candidates)
        return not self.histories and bool((limited | (self.temperature == 0)).all())

    def rows(self, index: npt.NDArray[np.intp]) -> "SamplingBatch":
        """These sequences alone, without their histories."""
        return SamplingBatch(
            self.temperature[index],
            self.top_k[index],
            self.top_p[index],
            self.min_p[index],
            self.seed[index],
            self.output_index[index],
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
    """Token ids [sequences] chosen from `logits` [sequences, vocabulary], float32 on any device.

    Repetition penalty, logit bias and suppressed words change the logits, in this order, before anything else. Top-k
    applies before top-p, and top-p to the probabilities renormalised after it. Every row takes a path that depends on
    its own parameters only, never on its neighbours'.
    """
    if not logits.is_cpu:
        # What is made of the requests' parameters goes to where the logits are.
        with torch.device(logits.device):
            return _sample(logits, batch)
    return _sample(logits, batch)


def _sample(logits: torch.Tensor, batch: SamplingBatch) -> npt.NDArray[np.int64]:
    if not batch.histories:
        return _choose(logits, batch)
    token_ids = _choose(_with_history(logits, batch.histories), batch)
    _report(logits, token_ids, batch.histories)
    return token_ids


def _with_history(logits: torch.Tensor, histories: Sequence[tuple[int, History]]) -> torch.Tensor:
    """A copy of `logits` with each history's penalties, biases and suppressed words."""
    logits = logits.clone()
    rows, ids = _entries([(row, one.penalised) for row, one in histories])
    if len(ids):
        penalty = torch.ones(len(logits))
        penalty[[row for row, _ in histories]] = torch.tensor([one.params.repetition_penalty for _, one in histories])
        found = logits[rows, ids]
        logits[rows, ids] = torch.where(found > 0, found / penalty[rows], found * penalty[rows])
    rows, ids = _entries([(row, one.bias_ids) for row, one in histories])
    if len(ids):
        logits[rows, ids] += torch.as_tensor(np.concatenate([one.biases for _, one in histories]))
    rows, ids = _entries([(row, one.forbidden) for row, one in histories])
    if len(ids):
        without = logits.index_put((rows, ids), torch.tensor(-torch.inf))
        # A row that has no other token keeps all: there is nothing better to choose.
        logits = torch.where((without == -torch.inf).all(dim=-1, keepdim=True), logits, without)
    return logits


def _entries(ids_by_row: Sequence[tuple[int, npt.NDArray[np.int64]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the named entries of the logits, as indices of the same length."""
    rows = np.repeat([row for row, _ in ids_by_row], [len(ids) for _, ids in ids_by_row])
    return torch.as_tensor(rows), torch.as_tensor(np.concatenate([ids for _, ids in ids_by_row]))


def _report(logits: torch.Tensor, token_ids: npt.NDArray[np.int64], histories: Sequence[tuple[int, History]]) -> None:
    """Writes the log-probabilities of the chosen tokens to the histories that ask for them."""
    asked = [(row, one, one.params.logprobs) for row, one in histories if one.params.logprobs is not None]
    if not asked:
        return
    rows = [row for row, _, _ in asked]
    logprobs = torch.log_softmax(logits[rows].double(), dim=-1)
    chosen = logprobs.gather(-1, torch.as_tensor(token_ids[rows])[:, None])[:, 0].tolist()
    most = min(max(count for _, _, count in asked), logits.shape[-1])
    values, ids = logprobs.topk(most, dim=-1)
    for (_, history, count), logprob, best, best_ids in zip(asked, chosen, values.tolist(), ids.tolist(), strict=True):
        alternatives = zip(best_ids[:count], best[:count], strict=True)
        history.chosen = TokenLogprob(logprob, tuple(alternatives))


def _choose(logits: torch.Tensor, batch: SamplingBatch) -> npt.NDArray[np.int64]:
    greedy = batch.temperature == 0
    if greedy.all():
        return logits.argmax(dim=-1).cpu().numpy()
    limited = ~greedy & ((batch.top_k > 0) | (batch.top_p < 1))
    plain = ~greedy & ~limited
    token_ids = np.empty(len(greedy), np.int64)
    for rows, choose in ((greedy, _most_likely), (plain, _draw), (limited, _draw_limited)):
        index = np.flatnonzero(rows)
        if len(index):
            token_ids[index] = choose(logits[torch.as_tensor(index)], batch.rows(index)).cpu().numpy()
    return token_ids


def _most_likely(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _draw(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """One draw a row among the tokens that min-p leaves, by inversion over them in the order of their ids."""
    probabilities = _probabilities(logits, batch)
    if batch.min_p.any():
        least = probabilities.amax(dim=-1, keepdim=True) * torch.as_tensor(batch.min_p)[:, None]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return _invert(probabilities, batch)


def _draw_limited(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """One draw a row among the tokens that top-k, top-p and min-p leave.

    By inversion from the most likely down; where more are left than the candidates hold, in the order of the ids: a
    whole vocabulary would take longer to sort than all the rest of sampling.
    """
    probabilities = _probabilities(logits, batch)
    likely, token_ids = probabilities.topk(min(CANDIDATES, logits.shape[-1]))
    top_p_within = (batch.top_p < 1) & (likely.sum(dim=-1).cpu().numpy() >= batch.top_p)
    min_p_within = (likely[:, -1] < likely[:, 0] * torch.as_tensor(batch.min_p)).cpu().numpy()
    # Of a larger top-k, top-p needs the whole sum.
    enough = np.where(batch.top_k > 0, batch.top_k <= CANDIDATES, top_p_within | min_p_within)
    chosen = torch.empty(len(enough), dtype=torch.int64)
    if len(index := np.flatnonzero(enough)):
        position = _invert(_limit(likely[index], batch.rows(index)), batch.rows(index))
        chosen[index] = token_ids[index].gather(-1, position[:, None])[:, 0]
    if len(index := np.flatnonzero(~enough)):
        left = probabilities[index]
        for row, own in zip(left.cpu().numpy(), index, strict=True):
            row *= _kept(row, int(batch.top_k[own]), float(batch.top_p[own]), float(batch.min_p[own]))
        chosen[index] = _invert(left, batch.rows(index))
    return chosen


def _kept(probabilities: npt.NDArray[np.float64], top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.bool_]:
    """Which tokens [vocabulary] top-k, then top-p, then min-p leave; of equals, those with the lowest ids."""
    least, equals, likely, total = 0.0, len(probabilities), probabilities, 1.0
    if 0 < top_k < len(probabilities):
        likely = np.partition(probabilities, -top_k)[-top_k:]
        least, equals = likely[0], int(np.count_nonzero(likely == likely[0]))
        total = likely.sum()
    if top_p < 1:
        least, equals = _nucleus_end(likely, top_p * total)
    kept: npt.NDArray[np.bool_] = probabilities >= max(least, probabilities.max() * min_p)
    kept[np.flatnonzero(probabilities == least)[equals:]] = False
    return kept


def _nucleus_end(probabilities: npt.NDArray[np.float64], mass: float) -> tuple[float, int]:
    """The least of the most likely that together first reach `mass`, and how many of its equals are among them.

    Looks for it as quickselect does: each round leaves out the part, above or below a pivot, that it is not in.
    """
    while len(probabilities) > CANDIDATES:
        pivot = np.median(probabilities[:: len(probabilities) // CANDIDATES])
        above = probabilities > pivot
        mass_above = float(probabilities @ above)
        beyond = mass_above < mass
        if not (above if beyond else ~above).any():
            break
        probabilities = probabilities[~above] if beyond else probabilities[above]
        mass -= mass_above if beyond else 0.0
    falling = np.sort(probabilities)[::-1]
    last = min(int(np.searchsorted(falling.cumsum(), mass)), len(falling) - 1)
    return falling[last], int(np.count_nonzero(falling[: last + 1] == falling[last]))


def _limit(ordered: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """The falling probabilities `ordered`, with 0 where top-k, top-p or min-p leaves a token out."""
    rank = torch.arange(ordered.shape[-1])
    top_k = torch.as_tensor(np.where(batch.top_k > 0, batch.top_k, ordered.shape[-1]))[:, None]
    ordered = ordered.masked_fill(rank >= top_k, 0.0)
    rare = ordered < ordered[:, :1] * torch.as_tensor(batch.min_p)[:, None]
    # Where there is no top-k, top-p is a share of all probability, also of what is not among the candidates.
    all_of_it = torch.where(torch.as_tensor(batch.top_k > 0), ordered.sum(dim=-1), 1.0)[:, None]
    before = ordered.cumsum(dim=-1) - ordered
    # The most likely token stays whatever top_p says.
    beyond = before >= torch.as_tensor(batch.top_p)[:, None] * all_of_it
    return ordered.masked_fill((beyond & (rank > 0)) | rare, 0.0)


def _probabilities(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    # The maximum is taken away first: a tiny temperature would make infinities, and infinity minus itself is NaN.
    logits = (logits - logits.amax(dim=-1, keepdim=True)).double()
    return torch.softmax(logits / torch.as_tensor(batch.temperature)[:, None], dim=-1)


def _invert(weights: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """The first position of each row whose cumulative weight exceeds uniform × total."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    threshold = torch.as_tensor(uniforms(batch.seed, batch.output_index))[:, None] * total
    # Rounding may lift the threshold to the total itself, beyond the last position that has weight.
    threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
