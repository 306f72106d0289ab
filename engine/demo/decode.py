"""Greedy decoding of many prompts at once, for measuring the demo model apart from the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from engine.demo.network import DemoModel
from engine.demo.vocabulary import ASSISTANT, BEGIN, END, USER


@torch.no_grad()
def greedy(
    model: DemoModel, tokenizer: Tokenizer, messages: Sequence[str], longest_tokens: int = 96
) -> list[tuple[str, int]]:
    """The answer to each user message and its tokens, the end token counted as the engine counts it."""
    end = tokenizer.token_to_id(END)
    prompts = [
        tokenizer.encode(f"{BEGIN}{USER} {text.strip()}{END}{ASSISTANT}", add_special_tokens=False).ids
        for text in messages
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts])  # [prompts, width]
    real = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    sees = real[:, None, :] & torch.ones(width, width, dtype=torch.bool).tril()
    mask = sees | torch.eye(width, dtype=torch.bool)  # padding sees itself: a row that sees nothing would be NaN
    hidden, cache = model(ids, positions, mask[:, None])
    answers: list[list[int]] = [[] for _ in prompts]
    done = torch.zeros(len(prompts), dtype=torch.bool)
    position = positions[:, -1:]
    for _ in range(longest_tokens):
        token = model.logits(hidden[:, -1]).argmax(-1)
        for row in (~done).nonzero().flatten().tolist():
            answers[row].append(int(token[row]))
        done |= token == end
        if done.all():
            break
        position = position + 1
        real = torch.cat([real, torch.ones(len(prompts), 1, dtype=torch.bool)], dim=1)
        hidden, cache = model(token[:, None], position, real[:, None, None, :], cache)
    return [(tokenizer.decode(answer, skip_special_tokens=True).strip(), len(answer)) for answer in answers]
