"""Clients that do not read, vanish, flood or send as much as the wire takes: the engine goes on for all others."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, inference_pb2, inference_pb2_grpc

from common.errors import from_rpc_error
from engine.backends.torch_cpu import TorchCpuBackend
from engine.worker import Worker
from tests.engine.tiny_model import write_model
from tests.integration.raw_http2 import raw_call
from tests.integration.served_engine import (
    LONG_CONTEXT,
    TIMEOUT_SECONDS,
    Request,
    Served,
    fault_of,
    request_of,
    serving,
    started_and_first_delta,
)

STREAM_GENERATE = "/pith.engine.v1.Inference/StreamGenerate"
GENERATE = "/pith.engine.v1.Inference/Generate"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny", seed=1, max_position_embeddings=LONG_CONTEXT, eos_token_id=None
    )


async def test_a_client_that_reads_byte_by_byte_holds_nothing_up_and_gets_all(model_path: Path) -> None:
    async with serving(model_path, delta_window_seconds=0) as served:
        message = request_of(tokens=3000).SerializeToString()
        async with raw_call(served.address, STREAM_GENERATE, message, window=1) as slow:
            assert await slow.read(1)
            other = await served.inference.Generate(request_of("another", tokens=100), timeout=TIMEOUT_SECONDS)
            assert len(other.token_ids) == 100
            load = await served.until_idle()
            assert load.output_tokens_total == 3100
            for count in range(2, 40):
                slow.grant(1)
                assert await slow.read(count)
                assert len(slow.received) == count
                # As much as one byte a second: others are served between any two.
                await served.control.GetLoad(control_pb2.GetLoadRequest())
            slow.grant(1 << 20)
            assert not await slow.read(1 << 30)
        events = [inference_pb2.StreamGenerateResponse.FromString(message) for message in slow.messages()]
        kinds = [event.WhichOneof("event") for event in events]
        # What was not read is kept once, merged, and not as three thousand messages.
        assert kinds[0] == "started" and kinds[-1] == "finished" and len(kinds) < 20
        token_ids: list[int] = []
        for event in events[1:-1]:
            assert event.delta.offset == len(token_ids)
            token_ids += event.delta.token_ids
        whole = await served.inference.Generate(request_of(tokens=3000), timeout=TIMEOUT_SECONDS)
        assert token_ids == list(whole.token_ids)
        assert "".join(event.delta.text for event in events[1:-1]) == whole.text


async def test_a_client_that_stops_reading_is_cut_by_its_deadline(model_path: Path) -> None:
    async with serving(model_path) as served:
        message = request_of(tokens=LONG_CONTEXT).SerializeToString()
        headers = {"grpc-timeout": "500m"}
        async with raw_call(served.address, STREAM_GENERATE, message, window=1, headers=headers) as slow:
            assert not await slow.read(2)
            load = await served.until_idle()
        assert slow.messages() == []
        assert load.output_tokens_total < LONG_CONTEXT // 2
        assert (await served.inference.Generate(request_of())).text


class Gate:
    """Lets the decode loop into so many decode steps, and says when it stands in the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self.calls = 0
        self.held, self.aborted = threading.Event(), threading.Event()
        self._free = threading.Semaphore(steps)
        decode, abort = TorchCpuBackend.decode, Worker.abort

        def held_decode(backend: TorchCpuBackend, batch: Any) -> Any:
            self.calls += 1
            if not self._free.acquire(blocking=False):
                self.held.set()
                self._free.acquire()
            return decode(backend, batch)

        def told_abort(worker: Worker, key: int) -> None:
            abort(worker, key)
            self.aborted.set()

        monkeypatch.setattr(TorchCpuBackend, "decode", held_decode)
        monkeypatch.setattr(Worker, "abort", told_abort)

    def open(self) -> None:
        self._free.release(LONG_CONTEXT)


Vanish = Callable[[], object]


@asynccontextmanager
async def streaming(served: Served) -> AsyncIterator[Vanish]:
    stream = served.inference.StreamGenerate(request_of(tokens=LONG_CONTEXT))
    await started_and_first_delta(stream)
    yield stream.cancel


@asynccontextmanager
async def waiting_for_the_whole(served: Served) -> AsyncIterator[Vanish]:
    call = served.inference.Generate(request_of(tokens=LONG_CONTEXT))
    yield call.cancel
    assert call.cancelled()


@asynccontextmanager
async def on_a_channel_of_its_own(served: Served) -> AsyncIterator[Vanish]:
    async with grpc.aio.insecure_channel(served.address) as channel:
        stream = inference_pb2_grpc.InferenceStub(channel).StreamGenerate(request_of(tokens=LONG_CONTEXT))
        await started_and_first_delta(stream)
        yield lambda: asyncio.create_task(channel.close())


@asynccontextmanager
async def on_a_bare_connection(served: Served) -> AsyncIterator[Vanish]:
    message = request_of(tokens=LONG_CONTEXT).SerializeToString()
    async with raw_call(served.address, STREAM_GENERATE, message, window=100_000) as call:
        assert await call.read(1)
        yield call.vanish


@pytest.mark.parametrize("client", [streaming, waiting_for_the_whole, on_a_channel_of_its_own, on_a_bare_connection])
async def test_an_answer_ends_with_the_step_in_which_its_client_vanishes(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    gate = Gate(monkeypatch, steps=3)
    try:
        async with serving(model_path, delta_window_seconds=0) as served, client(served) as vanish:
            assert await asyncio.to_thread(gate.held.wait, TIMEOUT_SECONDS)
            assert gate.calls == 4
            vanish()
            assert await asyncio.to_thread(gate.aborted.wait, TIMEOUT_SECONDS)
            gate.open()
            load = await served.until_idle()
            # A token of the prefill, three steps, and the one that was under way.
            assert (gate.calls, load.output_tokens_total) == (4, 5)
            assert len((await served.inference.Generate(request_of(tokens=7))).token_ids) == 7
    finally:
        gate.open()


async def test_of_a_flood_some_are_served_and_the_rest_told_when_to_come_back(model_path: Path) -> None:
    async with serving(model_path, max_batch=2, max_queue=6) as served:

        async def outcome(number: int) -> str:
            request = request_of(f"{number}", tokens=3)
            try:
                answer = await served.inference.Generate(request, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                fault = from_rpc_error(error)
                assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert fault.retry_after_seconds is not None and fault.retry_after_seconds > 0
                assert "8 requests" in fault.message
                return fault.reason
            assert len(answer.token_ids) == 3
            return "OK"

        outcomes = Counter(await asyncio.gather(*map(outcome, range(300))))
        assert outcomes.keys() == {"OK", "QUEUE_FULL"} and outcomes["OK"] >= 8
        load = await served.until_idle()
        assert (
            load.requests_total
            == outcomes["OK"]
            == served.sample("pith_engine_finished_answers_total", reason="LENGTH")
        )
        assert load.output_tokens_total == 3 * outcomes["OK"]
        assert await outcome(0) == "OK"


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field of a message."""
    size, length = len(body), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + body


NEARLY_ALL = 16 * MEBIBYTE - 64
HUGE = {
    "one text": (field(4, b"x" * NEARLY_ALL), "text", "characters; no more than"),
    "one message": (field(3, field(1, b"\x08\x02" + field(2, b"x" * NEARLY_ALL))), "messages", "characters; no more"),
    "empty messages": (field(3, b"\x0a\x00" * (NEARLY_ALL // 2)), "messages", "fewer than the context's"),
    "token ids": (field(5, field(1, b"\x05" * NEARLY_ALL)), "token_ids.ids", "from 1 to 65535"),
    "stop strings": (field(4, b"x") + field(7, b"\x12\x00" * (NEARLY_ALL // 2)), "limits.stop", "at most 16"),
    "suppressed words": (
        field(4, b"x") + field(6, b"\x42\x00" * (NEARLY_ALL // 2)),
        "sampling.suppressed_words",
        "at most 512",
    ),
    "resumed tokens": (
        field(5, field(1, b"\x05")) + field(6, b"\x38\x01") + field(8, field(1, b"\x05" * (NEARLY_ALL - 100))),
        "resume.token_ids",
        "the answer may have",
    ),
    "a name": (field(4, b"x") + field(1, b"n" * (NEARLY_ALL - 8)), "request_id", "at most 128"),
}


@pytest.mark.parametrize("what", HUGE)
async def test_nearly_sixteen_mebibytes_are_refused_by_what_is_in_them(model_path: Path, what: str) -> None:
    message, name, limit = HUGE[what]
    assert 15 * MEBIBYTE < len(message) <= 16 * MEBIBYTE
    async with serving(model_path) as served:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(served.address, options=options) as channel:
            fault = await fault_of(channel.unary_unary(GENERATE)(message))
            assert fault.code is grpc.StatusCode.INVALID_ARGUMENT
            told = {violation.field: violation.description for violation in fault.violations}
            assert limit in told[name]
            assert len(fault.message) < 500
        assert (await served.inference.Generate(request_of())).text
        await served.until_idle()


def ids(count: int) -> text_pb2.TokenIds:
    return text_pb2.TokenIds(ids=[5] * count)


EXTREMES: dict[str, Callable[[Request], object]] = {
    "temperature of 1e-300": lambda r: setattr(r.sampling, "temperature", 1e-300),
    "the smallest temperature": lambda r: setattr(r.sampling, "temperature", 5e-324),
    "temperature and tiny top_p": lambda r: r.sampling.MergeFrom(text_pb2.Sampling(temperature=1, top_p=5e-324)),
    "min_p of 1": lambda r: r.sampling.MergeFrom(text_pb2.Sampling(temperature=1, min_p=1)),
    "top_k beyond all": lambda r: r.sampling.MergeFrom(text_pb2.Sampling(temperature=1e-300, top_k=2**32 - 1)),
    "negative zero": lambda r: setattr(r.sampling, "temperature", -0.0),
    "the largest seed": lambda r: setattr(r.sampling, "seed", 2**64 - 1),
    # In top-p they meet the candidates.
    "top_k of 1": lambda r: r.sampling.MergeFrom(text_pb2.Sampling(temperature=10, top_k=1, top_p=0.01)),
}


@pytest.mark.parametrize("what", EXTREMES)
async def test_values_at_the_edge_of_what_is_allowed_are_as_greedy(model_path: Path, what: str) -> None:
    async with serving(model_path) as served:
        request = request_of(tokens=20)
        EXTREMES[what](request)
        greedy = await served.inference.Generate(request_of(tokens=20))
        assert (await served.inference.Generate(request)).token_ids == greedy.token_ids


async def test_biases_at_the_edge_of_their_type_leave_an_answer(model_path: Path) -> None:
    largest = 3.4028234e38
    async with serving(model_path) as served:
        for sampling in ({"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {}):
            for biases in ({65: largest}, dict.fromkeys(range(260), -largest), {65: largest, 66: -largest}):
                request = request_of(tokens=5, logit_bias=biases, repetition_penalty=100.0, logprobs=20, **sampling)
                answer = await served.inference.Generate(request, timeout=TIMEOUT_SECONDS)
                assert len(answer.token_ids) == 5
                assert set(answer.token_ids) == {65} or biases.get(65) != largest


@pytest.mark.parametrize("input_field", ["token_ids", "text"])
async def test_a_prompt_may_fill_the_context_but_for_one_token(model_path: Path, input_field: str) -> None:
    def of(count: int) -> Request:
        request = Request(limits=text_pb2.Limits(max_output_tokens=2**32 - 1))
        if input_field == "text":
            request.text = "x" * count
        else:
            request.token_ids.CopyFrom(ids(count))
        return request

    async with serving(model_path, max_context_tokens=100, max_step_tokens=16) as served:
        answer = await served.inference.Generate(of(99))
        assert (answer.finished.usage.prompt_tokens, len(answer.token_ids)) == (99, 1)
        assert answer.finished.reason == text_pb2.FINISH_REASON_LENGTH
        # The limit of tokens is cut to what the context has room for.
        assert len((await served.inference.Generate(of(60))).token_ids) == 40
        for count in (0, 100):
            fault = await fault_of(served.inference.Generate(of(count)))
            assert fault.code is grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = fault.violations
            assert violation.field == {"text": "text", "token_ids": "token_ids.ids"}[input_field]
        assert "from 1 to 99" in violation.description


def sent(data: bytes, method: str) -> Callable[[Served], Awaitable[object]]:
    return lambda served: served.channel.unary_unary(method)(data)


@pytest.mark.parametrize(
    "call",
    [
        sent(b"\xff\xff\xff", STREAM_GENERATE),
        sent(b"\xff\xff\xff", "/pith.engine.v1.Control/WatchLoad"),
        sent(field(4, b"\xff\xfe"), GENERATE),
        sent(field(3, field(1, field(2, b"a\xc3"))), GENERATE),
        sent(field(7, field(2, b"\x80")), GENERATE),
        sent(field(4, b"x")[:-1], GENERATE),
    ],
)
async def test_what_is_no_message_and_no_text_is_refused(
    model_path: Path, call: Callable[[Served], Awaitable[object]]
) -> None:
    async with serving(model_path) as served:
        fault = await fault_of(call(served))
        assert (fault.code, fault.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")
        assert (await served.inference.Generate(request_of())).text


async def test_without_the_right_token_nothing_is_done(model_path: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    secret = "the-right-token"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    tokens.write_text(f'[[tokens]]\nname = "me"\nsha256 = "{digest}"\nrole = "engine"\n')
    async with serving(model_path, tokens_file=tokens) as served:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", secret),)):
            fault = await fault_of(served.inference.Generate(request_of(), metadata=metadata))
            assert (fault.code, fault.reason) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
        mine = (("authorization", f"Bearer {secret}"),)
        assert (await served.inference.Generate(request_of(), metadata=mine)).text
        load = await served.control.GetLoad(control_pb2.GetLoadRequest(), metadata=mine)
        assert load.requests_total == 1
        drain = await fault_of(served.control.Drain(control_pb2.DrainRequest(), metadata=mine))
        assert drain.code is grpc.StatusCode.PERMISSION_DENIED
