"""What the benchmark asks: two models that never end an answer early, and requests of mixed lengths."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.served import ROOT
from tests.engine.tiny_model import write_model

PROMPT_TOKENS = 32
SHORTEST_TOKENS, LONGEST_TOKENS = 16, 256
CONCURRENCIES = (1, 16)
DEMO_MODEL = ROOT / "engine" / "demo" / "model"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model directory that both sides load, and how much is asked of it in a round."""

    name: str
    directory: Path
    vocabulary: int
    requests: dict[int, int]
    """By concurrency."""
    static_batches: int
    """Of the round's batches, how many transformers answers: they do not depend on one another."""


@dataclass(frozen=True, slots=True)
class Request:
    prompt_token_ids: list[int]
    output_tokens: int


def llama_100m(folder: Path, quick: bool) -> BenchModel:
    """Random weights in the proportions of a small Llama: 100.1 million with the tied embedding."""
    directory = write_model(
        folder / "llama-100m",
        seed=1,
        model_type="llama",
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=32000,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    return BenchModel("random Llama, 100 M", directory, 32000, {1: 2, 16: 16 if quick else 48}, static_batches=1)


def demo_model(folder: Path, quick: bool) -> BenchModel:
    """The model of the demo, without its end token."""
    directory = folder / "demo"
    shutil.copytree(DEMO_MODEL, directory)
    (directory / "generation_config.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    del config["eos_token_id"]
    (directory / "config.json").write_text(json.dumps(config))
    batches = 1 if quick else 3
    return BenchModel("demo model, 1 M", directory, config["vocab_size"], {1: 8, 16: 16 * batches}, batches)


def requests(model: BenchModel, concurrency: int, seed: int, round_number: int) -> list[Request]:
    """A round's requests, the same for all who are measured, with prompts that no other round has.

    Lengths are log-uniform, evenly spread so that every round asks for as many tokens, and in random order.
    """
    generator = random.Random(f"{seed} {round_number} {concurrency}")
    count = model.requests[concurrency]
    ratio = LONGEST_TOKENS / SHORTEST_TOKENS
    lengths = [round(SHORTEST_TOKENS * ratio ** ((index + 0.5) / count)) for index in range(count)]
    generator.shuffle(lengths)
    return [
        Request([generator.randrange(2, model.vocabulary) for _ in range(PROMPT_TOKENS)], length) for length in lengths
    ]


def output_tokens(asked: Sequence[Request]) -> int:
    return sum(request.output_tokens for request in asked)
