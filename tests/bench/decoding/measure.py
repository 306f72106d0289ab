"""Measures a piece: builds its workload, lets ours and the peers take turns, and says what came out in plain values."""

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from common.architecture.shape import ModelShape
from engine.backends.cuda.cupy_device import OutOfDeviceMemoryError
from engine.backends.cuda.dataflow import DataflowTable, kernels_version
from engine.backends.cuda.kernels import FloatType
from engine.backends.cuda.step import ModelArrays
from tests.bench.decoding import ceilings, segments
from tests.bench.decoding.libraries import NEW_TOKENS, Transformers, flashinfer_attention
from tests.bench.decoding.machine import Machine
from tests.bench.decoding.model import (
    PHI,
    DoesNotFitError,
    RandomBits,
    Workload,
    cache_bytes,
    random_model,
    step_bytes,
    weight_bytes,
)
from tests.bench.decoding.pieces import SEGMENT_TOKENS, Kind, Piece
from tests.bench.decoding.recording import Recorder, implementation, moved_bytes, parts_of, run_all
from tests.bench.decoding.timing import Seconds, Work, in_turns
from tests.bench.decoding.torch_step import TorchStep, difference

_SPARE_BYTES = 4 << 30  # activations, workspaces, libraries
_STATIC = ("gemv", "flat", "cublas")


class DeviceLostError(Exception):
    """The device answers no more; another process may go on. The message is the fault's."""


class Bench:
    """Measures pieces one after another; keeps the weights of the last shape.

    Args:
        shapes: by the names in pieces.
        pieces: results so far: the ceilings, and the dataflow that TUNING found, come from there.
    """

    def __init__(
        self,
        machine: Machine,
        shapes: Mapping[str, ModelShape],
        dtype: FloatType,
        seed: int,
        pieces: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._machine, self._shapes, self._dtype, self._seed, self._pieces = machine, shapes, dtype, seed, pieces
        self._weights: tuple[str, ModelArrays] | None = None

    def measure(self, piece: Piece) -> dict[str, Any]:
        """What the result file keeps of a piece; {"left_out": reason} where it does not fit the device's memory.

        Raises WrongResultError, DeviceLostError, or what the device or a library raises.
        """
        measures = {
            Kind.CEILINGS: self._ceilings,
            Kind.TUNING: self._tuning,
            Kind.SEGMENTS: self._segments,
            Kind.STEP: self._step,
            Kind.SOFTMAX: self._softmax,
            Kind.DATAFLOW: self._dataflow,
            Kind.TRANSFORMERS: self._transformers,
        }
        self._release()
        try:
            return measures[piece.kind](piece)
        except (DoesNotFitError, OutOfDeviceMemoryError) as error:
            return {"left_out": str(error)}
        except Exception as error:
            self._check_alive(error)
            raise

    def _ceilings(self, piece: Piece) -> dict[str, Any]:
        self._weights = None
        return ceilings.measure(self._machine.device, self._machine.timer)

    def _tuning(self, piece: Piece) -> dict[str, Any]:
        self._weights = None
        self._release()
        empty = DataflowTable(self._machine.device.name, kernels_version(), {})
        return {"choices": segments.choices(self._machine.tune(self._shapes[piece.shape], self._dtype, empty))}

    def _segments(self, piece: Piece) -> dict[str, Any]:
        workload = self._workload(replace(piece, batch=SEGMENT_TOKENS[-1], context_tokens=1))
        return segments.measure(self._machine.device, self._machine.timer, workload, SEGMENT_TOKENS)

    def _step(self, piece: Piece) -> dict[str, Any]:
        workload = self._workload(piece)
        shape, table = self._shapes[piece.shape], self._table(piece.shape)
        recorder = Recorder(self._machine.device)
        step = workload.step(recorder, table)
        size = step.size(piece.batch)

        def launch() -> None:
            step.launch(size)

        launch()
        calls = recorder.record(launch)
        contenders = {"ours": self._machine.device.capture(launch)}
        result: dict[str, Any] = {"phi": PHI, "dataflow": self._source(piece.shape), "launches": len(calls)}
        try:
            torch_step = self._torch_step(workload)
            logits, _ = torch_step.step(interleaved=True)
            ours = self._machine.device.to_host(step.logits[: piece.batch])
            result["difference_from_torch"] = difference(ours, logits.float().cpu().numpy())
            contenders["torch_graph"] = self._machine.capture_torch(torch_step.step)
        except DoesNotFitError as error:
            result["torch_graph"] = {"left_out": str(error)}
        for name, taken in in_turns(contenders, self._machine.timer).items():
            result[name] = self._speed(taken, step_bytes(shape, piece.batch, piece.context_tokens), piece.batch)
        if "torch_graph" in contenders:
            result["times_torch_graph"] = _times(result, "torch_graph", "ours")
        parts = {name: part for name, part in parts_of(calls, workload.model).items() if part}
        graphs = {name: self._machine.device.capture(run_all(part)) for name, part in parts.items()}
        result["parts"] = {
            name: {
                "implementation": implementation(parts[name]),
                "launches": len(parts[name]),
                **self._speed(taken, moved_bytes(shape, name, piece.batch, piece.context_tokens)),
            }
            for name, taken in in_turns(graphs, self._machine.timer, rounds=5).items()
        }
        result["recomputed_rows"] = step.recomputed_rows()
        return result

    def _softmax(self, piece: Piece) -> dict[str, Any]:
        workload = self._workload(piece)
        shape, table = self._shapes[piece.shape], self._table(piece.shape)
        attention: dict[str, Work] = {}
        whole: dict[str, Work] = {}
        steps = []
        for name, one in (("unified", workload), ("synchronised", workload.synchronised())):
            recorder = Recorder(self._machine.device)
            step = one.step(recorder, table)
            steps.append(step)
            launch = _launch(step, piece.batch)
            launch()
            part = parts_of(recorder.record(launch), one.model)["attention"]
            attention[name] = self._machine.device.capture(run_all(part))
            whole[name] = self._machine.device.capture(launch)
        without = {}
        try:
            torch_step = self._torch_step(workload)
            attention["torch_sdpa"] = self._machine.capture_torch(torch_step.attention)
            attention["flashinfer"] = flashinfer_attention(workload, torch_step.queries)
        except DoesNotFitError as error:
            without["torch_sdpa"] = without["flashinfer"] = str(error)
        except Exception as error:  # a library that is missing, or does not serve the shape, says so in its own way
            without["flashinfer"] = f"{type(error).__name__}: {error}".splitlines()[0]
        moved = moved_bytes(shape, "attention", piece.batch, piece.context_tokens)
        result: dict[str, Any] = {
            "attention": {
                name: self._speed(taken, moved) for name, taken in in_turns(attention, self._machine.timer).items()
            },
            "step": {
                name: self._speed(taken, step_bytes(shape, piece.batch, piece.context_tokens), piece.batch)
                for name, taken in in_turns(whole, self._machine.timer).items()
            },
            "without": without,
            "recomputed_rows": steps[0].recomputed_rows(),
        }
        for level in ("attention", "step"):
            result[f"{level}_gain"] = _times(result[level], "synchronised", "unified")
        return result

    def _dataflow(self, piece: Piece) -> dict[str, Any]:
        workload = self._workload(piece)
        shape = self._shapes[piece.shape]
        steps = {"heuristic": workload.step(self._machine.device, self._table(piece.shape))}
        # Where the GEMV takes fewer tokens than the batch, a static choice of it would be the flat GEMM's again.
        static = [name for name in _STATIC if segments.computes(steps["heuristic"], name, piece.batch)]
        for name in static:
            table = segments.StaticDataflow(self._machine.device.name, name, {})
            steps[name] = workload.step(self._machine.device, table)
        graphs = {}
        for name, step in steps.items():
            launch = _launch(step, piece.batch)
            launch()  # compiles
            graphs[name] = self._machine.device.capture(launch)
        moved = step_bytes(shape, piece.batch, piece.context_tokens)
        taken = in_turns(graphs, self._machine.timer)
        best = min(static, key=lambda name: taken[name].median)
        return {
            "dataflow": self._source(piece.shape),
            **{name: self._speed(one, moved, piece.batch) for name, one in taken.items()},
            "best_static": best,
            "gain_over_best_static": round(taken[best].median / taken["heuristic"].median, 4),
            "gain_over_worst_static": round(max(taken[name].median for name in static) / taken["heuristic"].median, 4),
        }

    def _transformers(self, piece: Piece) -> dict[str, Any]:
        self._weights = None
        self._release()
        shape = self._shapes[piece.shape]
        positions = piece.context_tokens + NEW_TOKENS
        self._require(weight_bytes(shape) + cache_bytes(shape, piece.batch, positions))
        model = Transformers(shape, self._dtype, positions, self._machine.torch_device)
        result: dict[str, Any] = {}
        for name in ("eager", "compiled"):
            try:
                seconds = model.step_seconds(piece.batch, piece.context_tokens, compiled=name == "compiled")
            except Exception as error:  # what a compiler of another library raises is its own affair
                result[name] = {"left_out": f"{type(error).__name__}: {error}".splitlines()[0]}
                continue
            moved = step_bytes(shape, piece.batch, piece.context_tokens)
            result[name] = self._speed(Seconds(seconds, seconds, seconds), moved, piece.batch)
        return result

    def _workload(self, piece: Piece) -> Workload:
        return self._draw(piece.shape, self._model(piece.shape), piece.batch, piece.context_tokens)

    def _model(self, name: str) -> ModelArrays:
        """Weights with tables of positions for the longest context of any piece."""
        if self._weights is None or self._weights[0] != name:
            self._weights = None
            self._release()
            shape = self._shapes[name]
            self._require(weight_bytes(shape))
            self._weights = name, random_model(self._machine.device, shape, self._random(0), positions=32768)
        return self._weights[1]

    def _draw(self, name: str, weights: ModelArrays, batch: int, context_tokens: int) -> Workload:
        self._require(cache_bytes(self._shapes[name], batch, context_tokens))
        return Workload.draw(
            self._machine.device, self._shapes[name], weights, self._random(1), self._dtype,
            batch, context_tokens, self._seed,
        )  # fmt: skip

    def _random(self, stream: int) -> RandomBits:
        return RandomBits(self._machine.xp, self._machine.device, self._dtype, 2 * self._seed + stream)

    def _torch_step(self, workload: Workload) -> TorchStep:
        self._require(cache_bytes(workload.shape, workload.batch, workload.context_tokens))
        return TorchStep(workload)

    def _require(self, wanted_bytes: int) -> None:
        if (free := self._machine.free_bytes()) < wanted_bytes + _SPARE_BYTES:
            wanted = wanted_bytes + _SPARE_BYTES
            raise DoesNotFitError(f"takes {wanted / 2**30:.1f} GiB of device memory, {free / 2**30:.1f} GiB are free")

    def _check_alive(self, error: Exception) -> None:
        """After a fault in a kernel nothing runs any more in this process. Raises DeviceLostError."""
        try:
            self._machine.device.to_host(self._machine.device.zeros(1, np.int32))
        except Exception:
            raise DeviceLostError(f"{type(error).__name__}: {error}") from error

    def _release(self) -> None:
        gc.collect()
        self._machine.release()

    def _table(self, name: str) -> DataflowTable:
        table = DataflowTable(self._machine.device.name, kernels_version(), {})
        return segments.with_choices(table, self._pieces.get(Piece(Kind.TUNING, name).name, {}).get("choices", ()))

    def _source(self, name: str) -> str:
        return "measured" if self._table(name).choices else "default"

    def _speed(self, taken: Seconds, moved_bytes: int, tokens: int | None = None) -> dict[str, Any]:
        rate = moved_bytes / taken.median / 1e9
        result: dict[str, Any] = {**taken.milliseconds(), "gigabytes_per_second": round(rate, 1)}
        read = self._pieces.get(Piece(Kind.CEILINGS).name, {}).get("read_gigabytes_per_second")
        result["percent_of_read"] = None if read is None else round(100 * rate / read, 1)
        if tokens is not None:
            result["tokens_per_second"] = round(tokens / taken.median, 1)
        return result


def _launch(step: Any, batch: int) -> Work:
    size = step.size(batch)
    return lambda: step.launch(size)


def _times(result: Mapping[str, Any], slower: str, faster: str) -> float:
    return round(float(result[slower]["milliseconds"] / result[faster]["milliseconds"]), 4)
