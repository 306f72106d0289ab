"""What the engine refuses, by field and limit, and what it says of itself."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2

from engine.tokenizer import Tokenizer
from tests.integration.served_engine import (
    LONG_CONTEXT,
    Request,
    fault_of,
    request_of,
    serving,
)


def changed(change: Callable[[Request], object]) -> Request:
    request = request_of()
    change(request)
    return request


BAD_REQUESTS: dict[str, tuple[Request, list[str]]] = {
    "no input": (Request(), ["input"]),
    "no messages": (Request(messages=text_pb2.Messages()), ["messages"]),
    "empty message": (request_of(""), ["messages.messages[0].content"]),
    "no role": (
        changed(lambda r: r.messages.messages.add(content="x")),
        ["messages.messages[1].role"],
    ),
    "unknown role": (
        changed(lambda r: r.messages.messages.add(role=77, content="x")),
        ["messages.messages[1].role"],
    ),
    "empty text": (Request(text=""), ["text"]),
    "no tokens": (Request(token_ids=text_pb2.TokenIds()), ["token_ids.ids"]),
    "token out of range": (Request(token_ids=text_pb2.TokenIds(ids=[5, 260])), ["token_ids.ids"]),
    "too many tokens": (Request(token_ids=text_pb2.TokenIds(ids=[5] * 100)), ["token_ids.ids"]),
    "too long a prompt": (request_of("x" * 90), ["messages"]),
    "ten megabytes": (request_of("x" * 10_000_000), ["messages"]),
    "too many messages": (
        changed(lambda r: [r.messages.messages.add(role=text_pb2.ROLE_USER) for _ in range(200)]),
        ["messages"],
    ),
    "refused by the template": (request_of("refuse me"), ["messages"]),
    "NaN temperature": (request_of(temperature=math.nan), ["sampling.temperature"]),
    "infinite temperature": (request_of(temperature=math.inf), ["sampling.temperature"]),
    "temperature of minus infinity": (request_of(temperature=-math.inf), ["sampling.temperature"]),
    "temperature beyond all use": (request_of(temperature=10.1), ["sampling.temperature"]),
    "negative temperature": (request_of(temperature=-0.1), ["sampling.temperature"]),
    "NaN top_p": (request_of(top_p=math.nan), ["sampling.top_p"]),
    "top_p above 1": (request_of(top_p=1.01), ["sampling.top_p"]),
    "infinite top_p": (request_of(top_p=math.inf), ["sampling.top_p"]),
    "infinite min_p": (request_of(min_p=math.inf), ["sampling.min_p"]),
    "NaN min_p": (request_of(min_p=math.nan), ["sampling.min_p"]),
    "negative penalty": (request_of(repetition_penalty=-1), ["sampling.repetition_penalty"]),
    "NaN penalty": (request_of(repetition_penalty=math.nan), ["sampling.repetition_penalty"]),
    "infinite penalty": (request_of(repetition_penalty=math.inf), ["sampling.repetition_penalty"]),
    "a tiny penalty": (request_of(repetition_penalty=1e-9), ["sampling.repetition_penalty"]),
    "too many alternatives": (request_of(logprobs=21), ["sampling.logprobs"]),
    "all alternatives": (request_of(logprobs=2**32 - 1), ["sampling.logprobs"]),
    "too many words": (request_of(suppressed_words=["a"] * 513), ["sampling.suppressed_words"]),
    "empty and blank words": (
        request_of(suppressed_words=["", " "]),
        ["sampling.suppressed_words[0]", "sampling.suppressed_words[1]"],
    ),
    "too long a word": (request_of(suppressed_words=["x" * 65]), ["sampling.suppressed_words[0]"]),
    "a million biases": (
        request_of(logit_bias=dict.fromkeys(range(1_000_000), 1.0)),
        ["sampling.logit_bias"],
    ),
    "bias beyond the vocabulary": (request_of(logit_bias={260: 1.0}), ["sampling.logit_bias"]),
    "a bias for more than there is": (
        request_of(logit_bias=dict.fromkeys(range(1000), 1.0)),
        ["sampling.logit_bias"],
    ),
    "NaN bias": (request_of(logit_bias={1: math.nan}), ["sampling.logit_bias"]),
    "infinite bias": (request_of(logit_bias={1: math.inf}), ["sampling.logit_bias"]),
    "bias of minus infinity": (request_of(logit_bias={1: -math.inf}), ["sampling.logit_bias"]),
    "bias for the highest id": (request_of(logit_bias={2**32 - 1: 1.0}), ["sampling.logit_bias"]),
    "the highest token id": (Request(token_ids=text_pb2.TokenIds(ids=[2**32 - 1])), ["token_ids.ids"]),
    "too many stop strings": (changed(lambda r: r.limits.stop.extend("abcdefghijklmnopq")), ["limits.stop"]),
    "empty stop string": (changed(lambda r: r.limits.stop.extend(["ok", ""])), ["limits.stop[1]"]),
    "too long a stop string": (changed(lambda r: r.limits.stop.append("x" * 257)), ["limits.stop[0]"]),
    "too long a request id": (changed(lambda r: setattr(r, "request_id", "x" * 129)), ["request_id"]),
    "several at once": (
        request_of("", temperature=math.nan, top_p=-1),
        ["messages.messages[0].content", "sampling.temperature", "sampling.top_p"],
    ),
}


LIMIT = re.compile("at most|at least|from .* to|one of|below|no more than|fewer than|refuses")


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_bad_input_is_named(model_path: Path, name: str) -> None:
    request, fields = BAD_REQUESTS[name]
    async with serving(model_path, max_context_tokens=100) as served:
        fault = await fault_of(served.inference.Generate(request))
        streamed = await fault_of(served.inference.StreamGenerate(request).read())
        assert (fault.code, fault.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
        assert [violation.field for violation in fault.violations] == fields
        # The fault and the limit, beside the field.
        assert all(LIMIT.search(violation.description) for violation in fault.violations), fault.violations
        assert streamed.violations == fault.violations
        assert (await served.inference.Generate(request_of())).text
        await served.until_idle()


async def test_prompts_are_tokenised_off_the_event_loop_and_only_if_they_can_fit(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    original = Tokenizer.encode_messages

    def encode_messages(self: Tokenizer, *given: Any) -> list[int]:
        threads.append(threading.current_thread())
        return original(self, *given)

    monkeypatch.setattr(Tokenizer, "encode_messages", encode_messages)
    async with serving(model_path) as served:
        await served.inference.Generate(request_of())
        await fault_of(served.inference.Generate(request_of("x" * 10_000_000)))
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_answers_are_counted(model_path: Path) -> None:
    async with serving(model_path) as served:
        answers = [await served.inference.Generate(request_of(tokens=n)) for n in (3, 5)]
        assert served.sample("pith_engine_output_tokens_total") == 8
        assert served.sample("pith_engine_prompt_tokens_total") == sum(
            answer.finished.usage.prompt_tokens for answer in answers
        )
        assert served.sample("pith_engine_energy_joules_total", source="MODELLED") == pytest.approx(
            sum(answer.finished.energy.joules for answer in answers)
        )
        assert served.sample("pith_engine_finished_answers_total", reason="LENGTH") == 2
        assert served.sample("pith_engine_first_token_seconds_count") == 2
        assert served.sample("pith_engine_running_requests") == 0


async def test_a_limit_is_part_of_what_is_told(model_path: Path) -> None:
    async with serving(model_path, max_context_tokens=100) as served:
        for request, facts in (
            (request_of("x" * 90), ("107 tokens", "99")),
            (request_of("x" * 10_000_000), ("10000000 characters", "100 tokens")),
        ):
            fault = await fault_of(served.inference.Generate(request))
            assert all(fact in fault.violations[0].description for fact in facts), fault.violations


async def test_another_model_is_not_found(model_path: Path) -> None:
    async with serving(model_path, model_name="pith-demo") as served:
        request = request_of()
        request.model = "tiny"
        fault = await fault_of(served.inference.Generate(request))
        assert (fault.code, fault.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
        assert fault.metadata["name"] == "tiny"
        request.model = "pith-demo"
        assert (await served.inference.Generate(request)).started.model == "pith-demo"


async def test_bytes_that_are_no_message_are_refused(model_path: Path) -> None:
    async with serving(model_path) as served:
        call = served.channel.unary_unary("/pith.engine.v1.Inference/Generate")
        fault = await fault_of(call(b"\xff\xff\xff"))
        assert (fault.code, fault.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")
        assert (await served.inference.Generate(request_of())).text


async def test_model_info_describes_the_model(model_path: Path) -> None:
    async with serving(model_path) as served:
        info = await served.control.GetModelInfo(control_pb2.GetModelInfoRequest())
        assert (info.model, info.architecture, info.backend) == ("tiny", "LlamaForCausalLM", "torch_cpu")
        assert (info.vocabulary_size, info.max_context_tokens) == (260, LONG_CONTEXT)
        assert info.accepts_messages and info.accepts_resume and info.accepts_logprobs
        assert len(info.model_digest) == 64
        assert info.zone == ""


async def test_model_info_names_the_zone_that_the_engine_was_told(model_path: Path) -> None:
    async with serving(model_path, zone="eu-north-1") as served:
        assert (await served.control.GetModelInfo(control_pb2.GetModelInfoRequest())).zone == "eu-north-1"


async def test_a_watch_refuses_an_interval_out_of_range(model_path: Path) -> None:
    async with serving(model_path) as served:
        for interval in (Duration(nanos=1), Duration(seconds=61), Duration(seconds=-1)):
            fault = await fault_of(served.control.WatchLoad(control_pb2.WatchLoadRequest(interval=interval)).read())
            assert [violation.field for violation in fault.violations] == ["interval"]
