"""Pith's engine, measured twice: the loop called directly, and a process of its own through gRPC."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2

from common.energy.modelled import SERVER_CPU
from common.scheduling import SchedulingLimits
from engine.backends.torch_cpu import TorchCpuBackend
from engine.batching import ContinuousBatch
from engine.config import EngineConfig
from engine.metering import ModelledMeter
from engine.request import GenerationRequest
from engine.sampling import SamplingParams
from engine.tokenizer import Tokenizer
from engine.weights import read_config, read_weights
from tests.bench.served import ServedEngine
from tests.bench.workload import BenchModel, Request, output_tokens


@dataclass(slots=True)
class Latencies:
    """As clients see them, in seconds."""

    first_token: list[float] = field(default_factory=list)
    between_deltas: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    """A delta's gap shared among its tokens, once for each of them."""


class DirectLoop:
    """The decode loop with an engine's default settings, in this process and thread."""

    def __init__(self, model: BenchModel, threads: int) -> None:
        settings = EngineConfig(model_path=model.directory)
        config = read_config(model.directory)
        blocks = settings.kv_cache_bytes // TorchCpuBackend.block_bytes(config)
        backend = TorchCpuBackend(config, read_weights(model.directory, config), blocks, threads)
        meter = ModelledMeter(config.shape, SERVER_CPU, backend.bytes_per_parameter, backend.bytes_per_kv)
        limits = SchedulingLimits(settings.max_batch, settings.max_step_tokens)
        tokenizer = Tokenizer(model.directory, config.shape.vocab_size)
        self._keys = itertools.count()
        self._batch = ContinuousBatch(backend, tokenizer, meter, limits, config.end_token_ids, time.monotonic)

    def answer(self, asked: Sequence[Request], concurrency: int) -> None:
        """A closed loop: as one answer ends, the next request comes."""
        waiting = iter(asked)
        before = self._batch.output_tokens
        for request in itertools.islice(waiting, concurrency):
            self._submit(request)
        while self._batch.running or self._batch.waiting:
            for update in self._batch.step():
                if update.finished is not None and (following := next(waiting, None)) is not None:
                    self._submit(following)
        _check(self._batch.output_tokens - before, asked)

    def _submit(self, request: Request) -> None:
        self._batch.submit(
            GenerationRequest(
                key=next(self._keys),
                prompt_token_ids=request.prompt_token_ids,
                sampling=SamplingParams(),
                max_output_tokens=request.output_tokens,
                stop=(),
                arrived_seconds=time.monotonic(),
            )
        )


async def answer_through_grpc(
    engine: ServedEngine, asked: Sequence[Request], concurrency: int, latencies: Latencies
) -> None:
    """The same closed loop with clients in this process, which share the cores with the engine's."""
    waiting = iter(asked)
    received = await asyncio.gather(*(_client(engine, waiting, latencies) for _ in range(concurrency)))
    _check(sum(received), asked)


async def _client(engine: ServedEngine, waiting: Iterator[Request], latencies: Latencies) -> int:
    received = 0
    for request in waiting:
        stream = engine.inference.StreamGenerate(
            inference_pb2.GenerateRequest(
                token_ids=text_pb2.TokenIds(ids=request.prompt_token_ids),
                limits=text_pb2.Limits(max_output_tokens=request.output_tokens),
            )
        )
        sent = before = time.perf_counter()
        async for event in stream:
            if not (tokens := len(event.delta.token_ids)):
                continue
            now = time.perf_counter()
            if before == sent:
                latencies.first_token.append(now - sent)
            else:
                latencies.between_deltas.append(now - before)
                latencies.between_tokens += [(now - before) / tokens] * tokens
            before = now
            received += tokens
    return received


def _check(received: int, asked: Sequence[Request]) -> None:
    if received != output_tokens(asked):
        raise RuntimeError(f"{received} tokens came in place of {output_tokens(asked)}")
