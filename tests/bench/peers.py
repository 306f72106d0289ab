"""transformers' `generate`: greedy, float32, its default attention (sdpa) and cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.bench.workload import BenchModel, Request


class Transformers:
    """Answers requests one by one, or in static batches: each runs until its longest answer is done."""

    def __init__(self, model: BenchModel, threads: int) -> None:
        quiet: Any = transformers.utils.logging
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
        torch.set_num_threads(threads)
        loaded: Any = AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float32)
        self._model = loaded.eval()
        # A configuration that names no end token gets Llama's by default.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def answer(self, asked: Sequence[Request], batch: int) -> None:
        """In the order of arrival. Prompts are of one length, so that no batch has padding."""
        for first in range(0, len(asked), batch):
            self._generate(asked[first : first + batch])

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request]) -> None:
        longest = max(request.output_tokens for request in batch)
        prompts = torch.tensor([request.prompt_token_ids for request in batch])  # [requests, tokens]
        tokens = self._model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=longest, do_sample=False
        )
        expected = (len(batch), prompts.shape[1] + longest)
        if tuple(tokens.shape) != expected:
            raise RuntimeError(f"transformers generated {list(tokens.shape)} tokens in place of {list(expected)}")
