"""An answer is the same in any company: prefixes from the cache, prompts in pieces, preemption, aborts beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common.energy.modelled import SERVER_CPU
from common.scheduling import SchedulingLimits
from engine.backends.torch_cpu import TorchCpuBackend
from engine.batching import ContinuousBatch
from engine.metering import ModelledMeter
from engine.model import ModelConfig, Weights
from engine.request import GenerationRequest
from engine.sampling import SamplingParams
from engine.tokenizer import Tokenizer
from engine.weights import read_config, read_weights
from tests.engine.tiny_model import write_model

OUTPUT_TOKENS = 40
PROMPT_TOKENS = (3, 33, 70, 16, 90, 49, 48, 1)
DRAWN = SamplingParams(temperature=0.8, top_k=20, top_p=0.95, seed=7)
PENALISED = SamplingParams(temperature=0.8, repetition_penalty=1.5, seed=8)
SAMPLINGS = pytest.mark.parametrize(
    "sampling", [SamplingParams(), DRAWN, PENALISED], ids=["greedy", "drawn", "penalised"]
)


class Model:
    """A tiny model that serves through caches and steps of any size."""

    def __init__(self, directory: Path) -> None:
        write_model(directory, seed=3)
        self.config: ModelConfig = read_config(directory)
        self.weights: Weights = read_weights(directory, self.config)
        self.tokenizer = Tokenizer(directory, self.config.shape.vocab_size)

    def batch(self, blocks: int, limits: SchedulingLimits) -> ContinuousBatch:
        return ContinuousBatch(
            TorchCpuBackend(self.config, self.weights, blocks, threads=1),
            self.tokenizer,
            ModelledMeter(self.config.shape, SERVER_CPU, 4, 4),
            limits,
            frozenset(),
            now_seconds=lambda: 0.0,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("exactness"))


def requests(sampling: SamplingParams, shared_tokens: int) -> list[GenerationRequest]:
    """Prompts of mixed lengths, the long ones beginning alike."""
    generator = np.random.default_rng(5)
    shared = generator.integers(0, 256, shared_tokens).tolist()
    prompts = [
        [*shared, *generator.integers(0, 256, tokens).tolist()][: max(tokens, 1)]
        if tokens > shared_tokens
        else generator.integers(0, 256, tokens).tolist()
        for tokens in PROMPT_TOKENS
    ]
    return [GenerationRequest(key, prompt, sampling, OUTPUT_TOKENS, (), 0.0) for key, prompt in enumerate(prompts)]


def run(batch: ContinuousBatch, tokens: dict[int, list[int]], texts: dict[int, str], most_steps: int = 10_000) -> int:
    """Steps until all is done, or as often as asked; tokens found in the cache by those that ended."""
    cached_tokens = 0
    while (batch.running or batch.waiting) and most_steps:
        most_steps -= 1
        for update in batch.step():
            tokens.setdefault(update.key, []).extend(update.token_ids)
            texts[update.key] = texts.get(update.key, "") + update.text
            cached_tokens += update.finished.cached_tokens if update.finished else 0
    return cached_tokens


def alone(model: Model, asked: Sequence[GenerationRequest]) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Each request on an engine that has nothing else to do and nothing in its cache, its prompt in one piece."""
    tokens: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for request in asked:
        batch = model.batch(16, SchedulingLimits(1, 256))
        batch.submit(request)
        run(batch, tokens, texts)
        assert len(tokens[request.key]) == OUTPUT_TOKENS
    return tokens, texts


@SAMPLINGS
def test_answers_are_the_same_in_any_company(model: Model, sampling: SamplingParams) -> None:
    asked = requests(sampling, shared_tokens=32)
    expected = alone(model, asked)
    # Eleven blocks are less than two of the long answers, and seven tokens a step cut every prompt.
    batch = model.batch(11, SchedulingLimits(4, 7))
    tokens: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for request in asked:
        batch.submit(request)
        run(batch, tokens, texts, most_steps=4)
    cached_tokens = run(batch, tokens, texts)
    assert batch.preemptions > 1
    assert cached_tokens > 32
    assert (tokens, texts) == expected


@SAMPLINGS
def test_an_answer_from_the_cache_is_the_same(model: Model, sampling: SamplingParams) -> None:
    asked = requests(sampling, shared_tokens=0)
    expected = alone(model, asked)
    batch = model.batch(100, SchedulingLimits(8, 64))
    for _ in range(2):
        tokens: dict[int, list[int]] = {}
        texts: dict[int, str] = {}
        for request in asked:
            batch.submit(request)
        cached_tokens = run(batch, tokens, texts)
        assert (tokens, texts) == expected
    assert cached_tokens == sum((len(one.prompt_token_ids) - 1) // 16 * 16 for one in asked)
    assert batch.preemptions == 0


def test_aborts_beside_it_leave_an_answer_as_it_is(model: Model) -> None:
    asked = requests(DRAWN, shared_tokens=32)
    tokens_alone, _ = alone(model, asked[:6])
    batch = model.batch(11, SchedulingLimits(4, 7))
    tokens: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for request in asked[:6]:
        batch.submit(request)
    for key in (1, 3, 5):
        run(batch, tokens, texts, most_steps=9)
        batch.abort(key)
    run(batch, tokens, texts)
    assert {key: tokens[key] for key in (0, 2, 4)} == {key: tokens_alone[key] for key in (0, 2, 4)}
    assert batch.allocator.free_blocks == 11
