"""How answers end before their time, and what is free again then: cancels, deadlines, aborts, full queues, faults."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, inference_pb2_grpc

from engine.backends.torch_cpu import TorchCpuBackend
from tests.integration.served_engine import (
    LONG_CONTEXT,
    endless,
    fault_of,
    read_all,
    request_of,
    serving,
    started_and_first_delta,
)


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
