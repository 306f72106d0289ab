"""What the engine answers through a real gRPC server: inputs, streams, stops, and the same whoever shares the batch."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pith.common.v1 import text_pb2

from tests.engine.tiny_model import write_model
from tests.integration.served_engine import (
    LONG_CONTEXT,
    TIMEOUT_SECONDS,
    Request,
    read_all,
    request_of,
    serving,
)


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
