"""Records what the softmax's inputs do in a model, so that each head gets its unified maximum."""

from collections.abc import Sequence

import numpy as np
import torch

from engine.backends.cuda.phi import LogitStatistics
from engine.model import Llama, ModelConfig, Weights

MAX_TOKENS = 512
"""Of one prompt: a row's logits are float32 [heads, tokens, tokens]."""
CALIBRATION_TEXT = """\
The tide tables for the harbour were printed every March. Ferries left at 6:40, 9:15 and 13:05; a return ticket cost
12.50, or 9 with a card, and children under four travelled free. "Is the last boat late again?" asked the woman with the
bicycle. Nobody knew. To prepare the soup: peel 3 onions, cut them finely, and let them turn golden in 40 g of butter.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

1. Energy is power times time.  2. A kilowatt-hour is 3,600,000 joules.  3. Therefore 0.25 kWh = 900 kJ.
Die Brücke wurde 1887 gebaut. El tren sale a las ocho. 橋は川の上にある。 <note id="7">see page 31</note>
"""


@torch.inference_mode()
def record_logits(config: ModelConfig, weights: Weights, prompts: Sequence[Sequence[int]]) -> LogitStatistics:
    """Runs prompts of 1 to MAX_TOKENS tokens through the model, one by one, without a cache.

    Raises ValueError where a prompt has another length or there is none.
    """
    if not prompts or not all(1 <= len(prompt) <= MAX_TOKENS for prompt in prompts):
        raise ValueError(f"prompts must be of 1 to {MAX_TOKENS} tokens, and at least one")
    llama = Llama(config, weights, max(map(len, prompts)))
    group = config.shape.heads // config.shape.kv_heads
    scale = config.shape.head_dim**-0.5
    device = weights.embedding.device
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []  # a prompt and layer: [heads, tokens] each

    def attend(layer: int, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        keys, values = keys_values.float().repeat_interleave(group, dim=2).unbind(1)  # [tokens, heads, head_dim]
        logits = torch.einsum("qhd,khd->hqk", queries.float(), keys) * scale
        future = torch.ones(logits.shape[1:], dtype=torch.bool, device=device).triu(1)
        logits.masked_fill_(future, -torch.inf)
        context = torch.arange(1, len(queries) + 1, device=device)
        rows.append((logits.amax(dim=-1), logits.logsumexp(dim=-1) - context.log()))
        return torch.einsum("hqk,khd->qhd", logits.softmax(dim=-1), values).to(queries.dtype)

    for prompt in prompts:
        token_ids = torch.tensor(prompt, device=device)
        positions = torch.arange(len(prompt), device=device)
        llama.forward(token_ids, positions, positions[-1:], attend)
    layers = config.shape.layers
    maxima, log_means = (
        np.concatenate(
            [
                torch.stack([one[part] for one in rows[first : first + layers]]).permute(2, 0, 1).cpu().numpy()
                for first in range(0, len(rows), layers)
            ]
        )
        for part in (0, 1)
    )  # [rows, layers, heads]
    return LogitStatistics.of_rows(maxima, log_means)


def calibration_prompts(token_ids: Sequence[int], vocabulary: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """What the unified maxima are calibrated on: a text, and tokens drawn at random, which reach further out."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(0, vocabulary, tokens).tolist() for _ in range(2)]
    return [list(token_ids[:tokens]), *drawn] if token_ids else drawn
