"""The engine through a real gRPC server on a free port, with a tiny random model."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc

from common.errors import PithError, from_rpc_error
from common.metrics import Metrics
from engine.__main__ import build_server
from engine.backends.loading import memory_bytes
from engine.backends.torch_cpu import TorchCpuBackend
from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import StopStrings
from engine.suppression import spellings
from engine.tokenizer import Tokenizer
from tests.engine.tiny_model import byte_tokenizer, write_model

LONG_CONTEXT = 65536
"""An answer of this length never ends within a test."""
TIMEOUT_SECONDS = 60

Request = inference_pb2.GenerateRequest


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Without an end token, answers are exactly as long as asked for.
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny", seed=1, max_position_embeddings=LONG_CONTEXT, eos_token_id=None
    )


@dataclass
class Served:
    engine: Engine
    address: str
    inference: inference_pb2_grpc.InferenceAsyncStub
    control: control_pb2_grpc.ControlAsyncStub
    health: health_pb2_grpc.HealthStub
    channel: grpc.aio.Channel
    metrics: Metrics

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    async def until_idle(self) -> control_pb2.Load:
        """The first load that shows no request."""
        watch = self.control.WatchLoad(control_pb2.WatchLoadRequest(interval=Duration(nanos=50_000_000)))
        async for load in watch:
            if load.running == load.waiting == 0 and load.kv_blocks_free == load.kv_blocks_total:
                watch.cancel()
                return load
        raise AssertionError("the watch ended")


@asynccontextmanager
async def serving(model_path: Path, **settings: Any) -> AsyncIterator[Served]:
    settings = {"listen": "127.0.0.1:0", "max_output_tokens": LONG_CONTEXT, "kv_cache_bytes": 64 << 20} | settings
    config = EngineConfig(model_path=model_path, **settings)
    engine = Engine(config)
    metrics = Metrics("engine")
    server = build_server(config, engine, metrics)
    port = await server.start()
    await server.set_serving(True)
    address = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(
                engine,
                address,
                inference_pb2_grpc.InferenceStub(channel),
                control_pb2_grpc.ControlStub(channel),
                health_pb2_grpc.HealthStub(channel),
                channel,
                metrics,
            )
    finally:
        await server.drain(grace_seconds=0)
        engine.stop()


def request_of(text: str = "tell me", tokens: int = 12, **sampling: Any) -> Request:
    return Request(
        messages=text_pb2.Messages(messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content=text)]),
        limits=text_pb2.Limits(max_output_tokens=tokens),
        sampling=text_pb2.Sampling(**sampling),
    )


async def fault_of(call: Awaitable[object]) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def read_all(stream: Any) -> list[inference_pb2.StreamGenerateResponse]:
    events = []
    while (event := await stream.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def started_and_first_delta(stream: Any) -> None:
    assert (await stream.read()).WhichOneof("event") == "started"
    assert (await stream.read()).WhichOneof("event") == "delta"


async def test_a_stream_is_started_then_deltas_then_finished(model_path: Path) -> None:
    async with serving(model_path, delta_window_seconds=0) as served:
        request = request_of(tokens=40, temperature=1.0, seed=7)
        request.request_id = "mine"
        events = await read_all(served.inference.StreamGenerate(request, timeout=TIMEOUT_SECONDS))
        whole = await served.inference.Generate(request, timeout=TIMEOUT_SECONDS)

        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[0] == "started" and kinds[-1] == "finished"
        assert set(kinds[1:-1]) == {"delta"}
        started, finished = events[0].started, events[-1].finished
        assert (started.request_id, started.model, started.seed) == ("mine", "tiny", 7)
        assert started.model_digest == served.engine.card.digest
        assert bytes(started.prompt_token_ids[1:6]) != b"" and started.prompt_token_ids[0] == 258
        token_ids: list[int] = []
        for event in events[1:-1]:
            assert event.delta.offset == len(token_ids)
            assert event.delta.token_ids
            token_ids += event.delta.token_ids
        assert token_ids == list(whole.token_ids)
        assert "".join(event.delta.text for event in events[1:-1]) == whole.text
        assert finished.reason == text_pb2.FINISH_REASON_LENGTH
        assert finished.usage.output_tokens == len(token_ids) == 40
        assert finished.usage.prompt_tokens == len(started.prompt_token_ids)
        assert finished.energy.joules > 0
        assert finished.energy.source in (2, 3)  # ATTRIBUTED where the machine has a counter, else MODELLED
        assert finished.busy_seconds > 0
        timings = finished.timings
        assert 0 <= timings.queue_seconds <= timings.first_token_seconds
        # The same prompt again: its full block is in the cache.
        assert (finished.usage.cached_tokens, whole.finished.usage.cached_tokens) == (0, 16)
        assert whole.finished.usage.output_tokens == 40
        assert finished.energy.source == 2 or 0 < whole.finished.energy.joules < finished.energy.joules


async def test_the_first_delta_leaves_at_once_and_the_rest_is_coalesced(model_path: Path) -> None:
    async with serving(model_path, delta_window_seconds=10) as served:
        events = await read_all(served.inference.StreamGenerate(request_of(tokens=200), timeout=TIMEOUT_SECONDS))
        # Had the window held back the first delta, or the last, there would be one delta, or the test would time out.
        assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "finished"]
        assert len(events[1].delta.token_ids) < 200


async def test_all_three_inputs_are_understood(model_path: Path) -> None:
    async with serving(model_path) as served:
        by_messages = await served.inference.Generate(request_of("hé"))
        by_ids = await served.inference.Generate(
            Request(
                token_ids=text_pb2.TokenIds(ids=by_messages.started.prompt_token_ids),
                limits=text_pb2.Limits(max_output_tokens=12),
            )
        )
        by_text = await served.inference.Generate(
            Request(text="<|turn|>user:hé<|turn|>assistant:", limits=text_pb2.Limits(max_output_tokens=12))
        )
        assert by_messages.started.prompt_token_ids == by_text.started.prompt_token_ids
        assert by_messages.token_ids == by_ids.token_ids == by_text.token_ids


async def test_a_request_without_a_seed_is_told_one_that_repeats_the_answer(model_path: Path) -> None:
    async with serving(model_path) as served:
        request = request_of(tokens=30, temperature=1.5)
        first, second = [await served.inference.Generate(request) for _ in range(2)]
        assert first.started.seed != second.started.seed
        request.sampling.seed = first.started.seed
        again = await served.inference.Generate(request)
        assert again.token_ids == first.token_ids


async def test_an_answer_is_the_same_alone_and_in_a_batch(model_path: Path) -> None:
    requests = [
        request_of(f"prompt {n} " + "x" * 7 * n, tokens=20 + n, temperature=t, top_p=p, top_k=k, seed=n)
        for n, (t, p, k) in enumerate([(0, 0, 0), (1, 0, 0), (0.8, 0.9, 0), (1.3, 0, 5), (1, 0.5, 9), (0, 0, 3)])
    ]
    async with serving(model_path) as served:
        alone = [await served.inference.Generate(request) for request in requests]
        batched = await asyncio.gather(*(served.inference.Generate(request) for request in requests))
    assert [answer.token_ids for answer in batched] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in batched] == [answer.text for answer in alone]
    # Sharing a step makes it cheaper, never dearer.
    assert all(
        one.finished.energy.joules <= other.finished.energy.joules * (1 + 1e-9)
        for one, other in zip(batched, alone, strict=True)
    )


async def test_a_stop_string_ends_the_answer_before_it(model_path: Path) -> None:
    async with serving(model_path) as served:
        free = await served.inference.Generate(request_of(tokens=60, temperature=1.0, seed=3))
        stop = free.text[10:13]
        request = request_of(tokens=60, temperature=1.0, seed=3)
        request.limits.stop.append(stop)
        stopped = await served.inference.Generate(request)
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.finished.reason == text_pb2.FINISH_REASON_STOP_STRING
        assert stopped.finished.stop == stop


async def test_the_end_token_ends_the_answer_and_has_no_text(model_path: Path, tmp_path: Path) -> None:
    async with serving(model_path) as served:
        free = await served.inference.Generate(request_of())
    end = free.token_ids[5]
    ending = write_model(tmp_path / "tiny", seed=1, max_position_embeddings=LONG_CONTEXT, eos_token_id=[259, end])
    async with serving(ending) as served:
        stopped = await served.inference.Generate(request_of())
    assert stopped.finished.reason == text_pb2.FINISH_REASON_STOP
    expected = list(free.token_ids)
    assert list(stopped.token_ids) == expected[: expected.index(end) + 1]
    assert stopped.finished.usage.output_tokens == len(stopped.token_ids)


async def test_an_answer_ends_where_the_context_does(model_path: Path) -> None:
    async with serving(model_path, max_context_tokens=40) as served:
        answer = await served.inference.Generate(request_of("12345678", tokens=1000))
        assert answer.finished.reason == text_pb2.FINISH_REASON_LENGTH
        assert answer.finished.usage.prompt_tokens + answer.finished.usage.output_tokens == 40


async def endless(served: Served, request_id: str = "") -> Any:
    """A stream that decodes until it is stopped."""
    request = request_of(tokens=LONG_CONTEXT)
    request.request_id = request_id
    stream = served.inference.StreamGenerate(request)
    await started_and_first_delta(stream)
    return stream


async def test_a_cancel_frees_the_blocks(model_path: Path) -> None:
    async with serving(model_path) as served:
        stream = await endless(served)
        load = await served.control.GetLoad(control_pb2.GetLoadRequest())
        assert load.kv_blocks_free < load.kv_blocks_total
        stream.cancel()
        load = await served.until_idle()
        assert load.output_tokens_total < LONG_CONTEXT // 2
        assert load.requests_total == 1
        # What nobody waits for was spent all the same.
        while served.sample("pith_engine_finished_answers_total", reason="ABORTED") != 1:
            await served.control.GetLoad(control_pb2.GetLoadRequest())
        assert served.sample("pith_engine_output_tokens_total") == load.output_tokens_total


async def test_a_client_that_vanishes_frees_the_blocks(model_path: Path) -> None:
    async with serving(model_path) as served:
        async with grpc.aio.insecure_channel(served.address) as other:
            stream = inference_pb2_grpc.InferenceStub(other).StreamGenerate(request_of(tokens=LONG_CONTEXT))
            await started_and_first_delta(stream)
        await served.until_idle()


async def test_a_deadline_frees_the_blocks(model_path: Path) -> None:
    async with serving(model_path) as served:
        fault = await fault_of(served.inference.Generate(request_of(tokens=LONG_CONTEXT), timeout=0.3))
        assert fault.code == grpc.StatusCode.DEADLINE_EXCEEDED
        await served.until_idle()
        expired = await fault_of(served.inference.Generate(request_of(), timeout=0))
        assert expired.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await served.inference.Generate(request_of())).text


async def test_a_client_that_does_not_read_holds_nothing_up(model_path: Path) -> None:
    async with serving(model_path, delta_window_seconds=0) as served:
        stream = served.inference.StreamGenerate(request_of(tokens=3000))
        await started_and_first_delta(stream)
        load = await served.until_idle()
        assert load.output_tokens_total == 3000
        events = await read_all(stream)
        last = events[-2].delta
        assert last.offset + len(last.token_ids) == 3000
        assert events[-1].finished.usage.output_tokens == 3000


async def test_abort_ends_a_stream_as_aborted(model_path: Path) -> None:
    async with serving(model_path) as served:
        stream = await endless(served, "the-one")
        assert (await served.control.Abort(control_pb2.AbortRequest(request_id="the-one"))).found
        events = await read_all(stream)
        assert events[-1].finished.reason == text_pb2.FINISH_REASON_ABORTED
        assert not (await served.control.Abort(control_pb2.AbortRequest(request_id="the-one"))).found
        fault = await fault_of(served.control.Abort(control_pb2.AbortRequest()))
        assert [violation.field for violation in fault.violations] == ["request_id"]
        await served.until_idle()


async def test_a_full_queue_turns_requests_away_and_a_waiting_one_can_be_cancelled(model_path: Path) -> None:
    async with serving(model_path, max_batch=1, max_queue=1) as served:
        running = await endless(served)
        waiting = served.inference.StreamGenerate(request_of())
        assert (await waiting.read()).WhichOneof("event") == "started"
        load = await served.control.GetLoad(control_pb2.GetLoadRequest())
        assert (load.running, load.waiting, load.max_running, load.max_waiting) == (1, 1, 1, 1)
        fault = await fault_of(served.inference.Generate(request_of()))
        assert (fault.code, fault.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert fault.retry_after_seconds is not None and fault.retry_after_seconds > 0
        waiting.cancel()
        running.cancel()
        await served.until_idle()
        assert (await served.inference.Generate(request_of())).text


async def test_a_request_waits_for_free_blocks(model_path: Path) -> None:
    # Room for 64 tokens: not for two of these answers beside one another.
    async with serving(model_path, kv_cache_bytes=4 * 4096) as served:
        answers = await asyncio.gather(*(served.inference.Generate(request_of(tokens=30)) for _ in range(4)))
        assert len({answer.text for answer in answers}) == 1
        load = await served.until_idle()
        assert load.kv_blocks_total == 4


async def test_answers_that_outgrow_the_cache_together_are_as_they_are_alone(model_path: Path) -> None:
    requests = [request_of(text, tokens=100, temperature=1.0, seed=3) for text in ("one", "two", "three", "four")]
    # Each of them grows to 8 blocks.
    async with serving(model_path, kv_cache_bytes=12 * 4096, max_batch=4, max_step_tokens=8) as served:
        alone = [(await served.inference.Generate(request)).text for request in requests]
        together = await asyncio.gather(*(served.inference.Generate(request) for request in requests))
        assert [answer.text for answer in together] == alone
        assert {answer.finished.usage.output_tokens for answer in together} == {100}
        await served.until_idle()
        preempted = served.sample("pith_engine_preempted_answers_total")
        assert preempted is not None and preempted > 0


async def test_prompts_that_come_together_are_computed_once(model_path: Path) -> None:
    request = request_of("x" * 400, tokens=10, temperature=1.0, seed=3)
    async with serving(model_path, max_batch=8, max_step_tokens=64) as served:
        answers = await asyncio.gather(*(served.inference.Generate(request) for _ in range(8)))
        assert len({answer.text for answer in answers}) == 1
        usages = [answer.finished.usage for answer in answers]
        shareable_tokens = (usages[0].prompt_tokens - 1) // 16 * 16
        assert sorted(usage.cached_tokens for usage in usages) == [0] + [shareable_tokens] * 7
        assert served.sample("pith_engine_cached_tokens_total") == 7 * shareable_tokens
        assert served.sample("pith_engine_prompt_tokens_total") == 8 * usages[0].prompt_tokens
        await served.until_idle()


def broken(*_: object) -> None:
    raise ValueError("secret")


async def test_a_fault_while_decoding_fails_its_requests_only(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(model_path) as served:
        with monkeypatch.context() as patch:
            patch.setattr(TorchCpuBackend, "decode", broken)
            fault = await fault_of(served.inference.Generate(request_of()))
        assert (fault.code, fault.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in fault.message
        assert (await served.inference.Generate(request_of())).text
        await served.until_idle()


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

    def encode_messages(self: Tokenizer, messages: Any) -> list[int]:
        threads.append(threading.current_thread())
        return original(self, messages)

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


async def test_a_watch_refuses_an_interval_out_of_range(model_path: Path) -> None:
    async with serving(model_path) as served:
        for interval in (Duration(nanos=1), Duration(seconds=61), Duration(seconds=-1)):
            fault = await fault_of(served.control.WatchLoad(control_pb2.WatchLoadRequest(interval=interval)).read())
            assert [violation.field for violation in fault.violations] == ["interval"]


async def test_a_drain_lets_answers_end_and_takes_no_more(model_path: Path) -> None:
    async with serving(model_path) as served:
        check = health_pb2.HealthCheckRequest(service="pith.engine.v1.Inference")
        assert (await served.health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
        stream = await endless(served, "last")
        drain = served.control.Drain(control_pb2.DrainRequest())
        watch = served.health.Watch(check)
        async for told in watch:
            if told.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
        while not (await served.control.GetLoad(control_pb2.GetLoadRequest())).draining:
            pass
        fault = await fault_of(served.inference.Generate(request_of()))
        assert (fault.code, fault.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert not drain.done()
        await served.control.Abort(control_pb2.AbortRequest(request_id="last"))
        assert (await read_all(stream))[-1].HasField("finished")
        assert (await drain).finished == 1


@asynccontextmanager
async def engine_process(model_path: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "engine",
        env={"PITH_ENGINE_MODEL_PATH": str(model_path), "OMP_NUM_THREADS": "1", "PATH": ""} | environment,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_process_serves_when_it_is_ready_and_drains_on_sigterm(model_path: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/engine.sock"
    async with (
        engine_process(model_path, PITH_ENGINE_LISTEN=address, PITH_ENGINE_MAX_OUTPUT_TOKENS="500") as process,
        grpc.aio.insecure_channel(address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        told = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=TIMEOUT_SECONDS)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        stream = inference_pb2_grpc.InferenceStub(channel).StreamGenerate(request_of(tokens=500))
        await started_and_first_delta(stream)
        process.send_signal(signal.SIGTERM)
        events = await read_all(stream)
        assert events[-1].finished.usage.output_tokens == 500
        assert await process.wait() == 0


async def test_a_cache_that_memory_has_no_room_for_is_refused_in_one_line(model_path: Path) -> None:
    async with engine_process(model_path, PITH_ENGINE_KV_CACHE_BYTES=str(10**16)) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 1
    (line,) = stderr.decode().splitlines()
    assert f"kv_cache_bytes {10**16} is more than the memory there is" in line


@pytest.mark.parametrize(("told", "limited"), [("4096\n", True), ("max\n", False), (None, False)])
def test_a_containers_memory_is_what_its_limit_says(tmp_path: Path, told: str | None, limited: bool) -> None:
    limit = tmp_path / "memory.max"
    if told is not None:
        limit.write_text(told)
    assert (memory_bytes(limit) == 4096) == limited
    assert memory_bytes(limit) <= memory_bytes(tmp_path / "none")


async def test_a_broken_model_is_refused_in_one_line(model_path: Path, tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    async with engine_process(tmp_path) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 1
    lines = stderr.decode().splitlines()
    assert len(lines) == 1 and str(tmp_path / "model.safetensors") in lines[0] and "truncated" in lines[0]
