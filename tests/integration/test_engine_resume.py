"""An answer goes on elsewhere as it would have gone on here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, inference_pb2

from engine.request import StopStrings
from tests.engine.tiny_model import byte_tokenizer
from tests.integration.served_engine import (
    Request,
    Served,
    fault_of,
    read_all,
    request_of,
    serving,
)

A, *E_ACUTE = byte_tokenizer().encode("aé").ids
RESUMED: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "greedy": {"temperature": 0},
    "characters of several bytes": {"temperature": 1.0, "logit_bias": dict.fromkeys([A, *E_ACUTE], 30.0)},
    "stop strings begun and reached": {
        "temperature": 1.0,
        "logit_bias": dict.fromkeys([A, *E_ACUTE], 30.0),
        "stop": ["aaé", "éé", "aaaaaaa"],
    },
    "a stop string held back at the limit": {"temperature": 0, "logit_bias": {A: 1e9}, "stop": ["a" * 30]},
    "penalty, min_p and suppressed words": {
        "temperature": 1.3,
        "repetition_penalty": 1.2,
        "min_p": 0.01,
        "suppressed_words": ["b", "xy"],
    },
}


@pytest.mark.parametrize("name", RESUMED)
async def test_an_answer_resumed_anywhere_goes_on_as_it_would_have(model_path: Path, name: str) -> None:
    settings = dict(RESUMED[name])
    stop = settings.pop("stop", [])
    request = request_of(tokens=24, seed=11, **settings)
    request.limits.stop.extend(stop)
    async with serving(model_path, delta_window_seconds=0) as served:
        whole = await served.inference.Generate(request)
        ids = whole.started.prompt_token_ids
        for position in range(len(whole.token_ids) + 1):
            # What the lost engine had sent with so many tokens.
            cut = request_of(tokens=position, seed=11, **settings)
            cut.ClearField("messages")
            cut.token_ids.ids.extend(ids)
            resumed = Request()
            resumed.CopyFrom(cut)
            resumed.limits.max_output_tokens = 24
            resumed.limits.stop.extend(stop)
            resumed.resume.model_digest = served.engine.card.digest
            resumed.resume.token_ids.extend(whole.token_ids[:position])
            text = released(served, whole.token_ids[:position], stop, ended=position == len(whole.token_ids))
            assert whole.text.startswith(text)
            for delivered in {len(text.encode()), 0}:
                resumed.resume.delivered_bytes = delivered
                rest = await served.inference.Generate(resumed)
                assert text.encode()[:delivered].decode() + rest.text == whole.text
                assert list(whole.token_ids[:position]) + list(rest.token_ids) == list(whole.token_ids)
                assert (rest.finished.reason, rest.finished.stop) == (whole.finished.reason, whole.finished.stop)
                assert rest.finished.usage.output_tokens == whole.finished.usage.output_tokens
                assert rest.finished.usage.prompt_tokens == whole.finished.usage.prompt_tokens
            stream = await read_all(served.inference.StreamGenerate(resumed))
            offsets = [event.delta.offset for event in stream if event.HasField("delta")]
            assert not offsets or offsets[0] == position


def released(served: Served, token_ids: Sequence[int], stop: Sequence[str], ended: bool) -> str:
    """The text that an engine has sent once it has chosen these tokens."""
    detokenizer, strings = served.engine.tokenizer.detokenizer(), StopStrings(stop)
    text = ""
    for token_id in token_ids:
        piece, found = strings.push(detokenizer.push(token_id))
        text += piece
        if found is not None:
            return text
    if ended:
        piece, found = strings.push(detokenizer.flush())
        text += piece + strings.flush()
    return text


def resuming(served: Served, **changes: Any) -> Request:
    request = Request(
        token_ids=text_pb2.TokenIds(ids=[1, 2, 3]),
        limits=text_pb2.Limits(max_output_tokens=5),
        sampling=text_pb2.Sampling(seed=1),
        resume=inference_pb2.Resume(token_ids=[A, *E_ACUTE], model_digest=served.engine.card.digest, delivered_bytes=3),
    )
    for path, value in changes.items():
        message: Any = request
        *parents, name = path.split("__")
        for parent in parents:
            message = getattr(message, parent)
        if isinstance(value, list):
            del getattr(message, name)[:]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return request


@pytest.mark.parametrize(
    ("changes", "field", "fact"),
    [
        ({"resume__model_digest": "0" * 64}, "resume.model_digest", "the loaded model's is"),
        ({"resume__model_digest": ""}, "resume.model_digest", "the loaded model's is"),
        ({"text": "hello"}, "resume", "needs the prompt as token_ids"),
        ({"resume__token_ids": [A, 260]}, "resume.token_ids", "holds 260"),
        ({"resume__token_ids": [A] * 6}, "resume.token_ids", "has 6 tokens; the answer may have 5"),
        ({"resume__delivered_bytes": 4}, "resume.delivered_bytes", "have released 3 bytes"),
        ({"resume__delivered_bytes": 2}, "resume.delivered_bytes", "inside of a character"),
        ({"resume__token_ids": []}, "resume.delivered_bytes", "without token_ids"),
        ({"limits__stop": ["a"]}, "resume.token_ids", "the answer ends with the first 1 (STOP_STRING)"),
    ],
)
async def test_a_resume_that_cannot_be_right_is_named(
    model_path: Path, changes: dict[str, Any], field: str, fact: str
) -> None:
    async with serving(model_path) as served:
        assert (await served.inference.Generate(resuming(served))).finished.usage.output_tokens == 5
        fault = await fault_of(served.inference.Generate(resuming(served, **changes)))
        assert (fault.code, fault.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
        assert [violation.field for violation in fault.violations] == [field]
        assert fact in fault.violations[0].description
        await served.until_idle()


async def test_tokens_that_another_engine_made_are_not_counted_again(model_path: Path) -> None:
    async with serving(model_path) as served:
        answer = await served.inference.Generate(resuming(served))
        assert (answer.finished.usage.output_tokens, len(answer.token_ids)) == (5, 2)
        assert served.sample("pith_engine_output_tokens_total") == 2
        assert (await served.control.GetLoad(control_pb2.GetLoadRequest())).output_tokens_total == 2


async def test_a_resume_needs_the_seed(model_path: Path) -> None:
    async with serving(model_path) as served:
        request = resuming(served)
        request.sampling.ClearField("seed")
        fault = await fault_of(served.inference.Generate(request))
        assert [violation.field for violation in fault.violations] == ["sampling.seed"]
