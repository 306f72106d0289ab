"""Bad requests: the right code, a violation that names the field, nothing sent and nothing written."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from pith.common.v1 import text_pb2
from pith.router.v1 import generation_pb2

from common.errors import PithError, from_rpc_error
from router.validation import RequestLimits, check
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, ask

LIMITS = RequestLimits(max_messages=4, max_prompt_characters=1_000)


def user(content: str = "Hi") -> text_pb2.Message:
    return text_pb2.Message(role=text_pb2.ROLE_USER, content=content)


def sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling": text_pb2.Sampling(**fields)}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least one"),
    ({"messages": [user()] * 5}, "messages", "at most 4"),
    ({"messages": [user("x" * 600), user("x" * 600)]}, "messages", "1,200 characters; at most 1,000"),
    ({"messages": [user(), user("")]}, "messages[1].content", "empty"),
    ({"messages": [text_pb2.Message(content="Hi"), user()]}, "messages[0].role", "ROLE_USER"),
    ({"messages": [text_pb2.Message(role=9, content="Hi"), user()]}, "messages[0].role", "is 9"),
    (
        {"messages": [user(), text_pb2.Message(role=text_pb2.ROLE_ASSISTANT, content="Yes")]},
        "messages[1].role",
        "last message",
    ),
    ({"request_id": "x" * 129}, "request_id", "129 characters; at most 128"),
    ({"request_id": "a\x1fb"}, "request_id", "control"),
    ({"tenant": "x" * 129}, "tenant", "at most 128"),
    ({"tenant": "a\nb"}, "tenant", "control"),
    ({"task": "x" * 129}, "task", "at most 128"),
    ({"conversation_id": "x" * 129}, "conversation_id", "at most 128"),
    ({"model": "a\x00"}, "model", "control"),
    (sampling(temperature=math.nan), "sampling.temperature", "finite"),
    (sampling(temperature=math.inf), "sampling.temperature", "finite"),
    (sampling(temperature=-0.1), "sampling.temperature", "[0, 10]"),
    (sampling(temperature=10.1), "sampling.temperature", "[0, 10]"),
    (sampling(top_p=1.1), "sampling.top_p", "[0, 1]"),
    (sampling(top_p=math.nan), "sampling.top_p", "finite"),
    (sampling(min_p=-1), "sampling.min_p", "[0, 1]"),
    (sampling(repetition_penalty=-1), "sampling.repetition_penalty", "[0.01, 100]"),
    (sampling(repetition_penalty=1e-9), "sampling.repetition_penalty", "[0.01, 100]"),
    (sampling(repetition_penalty=101), "sampling.repetition_penalty", "[0.01, 100]"),
    (sampling(logprobs=21), "sampling.logprobs", "[0, 20]"),
    (sampling(repetition_penalty=math.inf), "sampling.repetition_penalty", "finite"),
    (sampling(logit_bias={7: math.nan}), "sampling.logit_bias[7]", "finite"),
    (sampling(logit_bias=dict.fromkeys(range(4097), 1.0)), "sampling.logit_bias", "at most 4,096"),
    (sampling(suppressed_words=["ok", ""]), "sampling.suppressed_words[1]", "empty"),
    (sampling(suppressed_words=["ok", " \t"]), "sampling.suppressed_words[1]", "blank"),
    (sampling(suppressed_words=["w" * 65]), "sampling.suppressed_words[0]", "65 characters; at most 64"),
    (sampling(suppressed_words=["w"] * 257), "sampling.suppressed_words", "at most 256"),
    ({"limits": text_pb2.Limits(stop=["x"] * 17)}, "limits.stop", "at most 16"),
    ({"limits": text_pb2.Limits(stop=["x" * 257])}, "limits.stop[0]", "at most 256"),
    ({"floor": 0.0}, "floor", "above 0"),
    ({"floor": 1.01}, "floor", "at most 1"),
    ({"floor": math.nan}, "floor", "above 0"),
    ({"reference": "x" * 8193}, "reference", "8,193 characters; at most 8,192"),
    ({"evaluation": generation_pb2.EvaluationPurpose(directive="L1")}, "evaluation.sample_id", "empty"),
    ({"evaluation": generation_pb2.EvaluationPurpose(sample_id="s")}, "evaluation.directive", "1 to 64"),
]


@pytest.mark.parametrize(("fields", "field", "fault"), BAD, ids=[f"{field}: {fault}" for _, field, fault in BAD])
def test_the_field_its_fault_and_the_limit_are_named(fields: dict[str, Any], field: str, fault: str) -> None:
    with pytest.raises(PithError) as error:
        check(ask(**fields), LIMITS)
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
    (violation,) = error.value.violations
    assert violation.field == field
    assert fault in violation.description


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(PithError) as error:
        check(ask(messages=[], floor=2, **sampling(temperature=math.nan, top_p=7)), LIMITS)
    assert {violation.field for violation in error.value.violations} == {
        "messages",
        "floor",
        "sampling.temperature",
        "sampling.top_p",
    }


def test_the_limits_themselves_are_allowed() -> None:
    check(
        ask(
            messages=[user("x" * 250)] * 4,
            request_id="ä" * 128,
            floor=1.0,
            reference="x" * 8192,
            limits=text_pb2.Limits(stop=["x" * 256] * 16),
            **sampling(
                temperature=10,
                top_p=1,
                min_p=1,
                top_k=2**32 - 1,
                repetition_penalty=0.01,
                logprobs=20,
                logit_bias=dict.fromkeys(range(4096), -100.0),
                suppressed_words=["w" * 64] * 256,
            ),
        ),
        LIMITS,
    )
    # 0 stands for the default.
    check(ask(**sampling(repetition_penalty=0)), LIMITS)


async def refused(call: Any) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


async def nothing_happened(router: Running, engine: FakeEngine) -> bool:
    return not engine.requests and (await router.report()).total.requests == 0


@pytest.mark.parametrize("rpc", ["Generate", "StreamGenerate", "Decide"])
async def test_over_the_wire_too(router: Running, engine: FakeEngine, rpc: str) -> None:
    request: Any = ask(**sampling(temperature=math.nan))
    if rpc == "Decide":
        request = generation_pb2.DecideRequest(request=request)
    call = getattr(router.generation, rpc)(request)
    error = await refused(call.read() if rpc == "StreamGenerate" else call)
    assert (error.code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature")
    assert await nothing_happened(router, engine)


async def test_a_prompt_of_ten_megabytes_is_refused_by_its_size(router: Running, engine: FakeEngine) -> None:
    error = await refused(router.generation.Generate(ask("x" * 10_000_000)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations[0].description == "hold 10,000,000 characters; at most 1,000,000"
    assert await nothing_happened(router, engine)


async def test_bytes_that_are_no_request_are_refused(router: Running, engine: FakeEngine) -> None:
    call = router.channel.unary_unary("/pith.router.v1.Generation/Generate")
    error = await refused(call(b"\xff\xff\xff"))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")
    assert await nothing_happened(router, engine)


async def test_the_id_of_a_refused_request_stays_free(router: Running) -> None:
    await refused(router.generation.Generate(ask(request_id="r1", floor=3)))
    reply = await router.generation.Generate(ask(request_id="r1"))
    assert not reply.started.replayed
