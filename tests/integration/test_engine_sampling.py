"""Sampling as a caller sees it: suppressed words, penalties, biases, log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path

from engine.suppression import spellings
from tests.integration.served_engine import (
    read_all,
    request_of,
    serving,
)


async def test_suppressed_words_do_not_appear(model_path: Path) -> None:
    async with serving(model_path) as served:
        free = await served.inference.Generate(request_of(tokens=200, temperature=1.0, seed=5))
        letters = [word for word in free.text if word.isascii() and word.isprintable() and word.strip()]
        words = ["".join(letters[:1]), free.text[40:43].strip() or "x"]
        asked = request_of(tokens=200, temperature=1.0, seed=5, suppressed_words=words)
        held = await served.inference.Generate(asked)
        assert any(word in free.text for word in words)
        assert not any(spelling in held.text for word in words for spelling in spellings(word))
        assert held.finished.usage.output_tokens == 200


async def test_penalty_bias_and_min_p_change_the_answer(model_path: Path) -> None:
    async with serving(model_path) as served:
        biased = await served.inference.Generate(request_of(tokens=20, temperature=1.0, logit_bias={65: 1e9}))
        assert set(biased.token_ids) == {65}
        certain = await served.inference.Generate(request_of(tokens=20, temperature=1.0, seed=3, min_p=1.0))
        greedy = await served.inference.Generate(request_of(tokens=20))
        assert certain.token_ids == greedy.token_ids
        fresh = await served.inference.Generate(request_of(tokens=60, repetition_penalty=100.0))
        prompt_and_answer = [*fresh.started.prompt_token_ids, *fresh.token_ids]
        # So high a penalty lets nothing repeat while anything else has a positive logit.
        assert len(set(fresh.token_ids)) > 50
        assert len(prompt_and_answer) - len(set(prompt_and_answer)) < len(prompt_and_answer) / 3


async def test_logprobs_come_with_their_tokens(model_path: Path) -> None:
    async with serving(model_path) as served:
        request = request_of(tokens=30, temperature=0, logprobs=3)
        whole = await served.inference.Generate(request)
        events = await read_all(served.inference.StreamGenerate(request))
        plain = await served.inference.Generate(request_of(tokens=30))
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert [one for delta in deltas for one in delta.logprobs] == list(whole.logprobs)
    assert len(whole.logprobs) == len(whole.token_ids) == 30
    for token_id, told in zip(whole.token_ids, whole.logprobs, strict=True):
        values = [one.logprob for one in told.alternatives]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        # Greedy: the most probable is the one chosen.
        assert (told.alternatives[0].token_id, told.alternatives[0].logprob) == (token_id, told.logprob)
        assert sum(map(math.exp, values)) <= 1
    assert whole.token_ids == plain.token_ids and not plain.logprobs
