"""The benchmark of decoding without a GPU: its pieces run on the emulator, on a tiny shape and with a made-up clock."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.architecture.shape import ModelShape
from engine.backends.cuda.dataflow import Choice, DataflowTable, SegmentKey
from engine.backends.cuda.step import CUBLAS
from tests.bench import decode, decode_table
from tests.bench.decoding import ceilings, segments
from tests.bench.decoding.machine import Machine
from tests.bench.decoding.measure import Bench, DeviceLostError
from tests.bench.decoding.model import PHI, RandomBits, Workload, random_model, step_bytes
from tests.bench.decoding.pieces import Kind, Piece
from tests.bench.decoding.recording import PARTS, Recorder, parts_of
from tests.bench.decoding.results import Results
from tests.bench.decoding.timing import Work, in_turns
from tests.bench.decoding.torch_step import TorchStep, WrongResultError, difference
from tests.bench.shapes import SHAPES
from tests.kernels.emulator import Emulator, from_bits

TINY = ModelShape(64, 2, 4, 2, 64, 96, 160, tied_embeddings=True)
SETTINGS = {"device": "emulator", "kernels": "v1", "dtype": "bf16", "seed": 1}
STEP = Piece(Kind.STEP, "tiny", 2, 33)


def fake_timer(work: Work, executions: int) -> float:
    """Runs the work, and says that it took a millisecond."""
    if executions == 1:
        work()
    return 1e-3


def tuned(shape: ModelShape, dtype: str, table: DataflowTable) -> DataflowTable:
    return table.having(SegmentKey(table.device, 160, 64, "plain"), Choice((1, 2), ("gemv-32", "flat-32"), "measured"))


def machine(free_bytes: int = 1 << 40) -> Machine:
    def capture(work: Callable[[], object]) -> Work:
        def replay() -> None:
            work()

        return replay

    return Machine(
        Emulator(3, multiprocessors=4), np, fake_timer, lambda: free_bytes, lambda: None, capture, "cpu", tuned
    )


def bench(pieces: dict[str, Any] | None = None, free_bytes: int = 1 << 40) -> Bench:
    ceiling = {"ceilings": {"read_gigabytes_per_second": 2.0}}
    return Bench(machine(free_bytes), {"tiny": TINY}, "bf16", 1, ceiling if pieces is None else pieces)


def workload(device: Any, batch: int = 2, context_tokens: int = 33) -> Workload:
    random = RandomBits(np, device, "bf16", 5)
    weights = random_model(device, TINY, random, 64)
    return Workload.draw(device, TINY, weights, random, "bf16", batch, context_tokens, seed=1)


def open_results(file: Path, settings: dict[str, Any] = SETTINGS) -> Results:
    return Results.open(file, "decode", settings, "python -m tests.bench.decode", {})


def test_a_step_is_measured_beside_torch_and_taken_apart() -> None:
    result = bench().measure(STEP)
    assert result["ours"]["milliseconds"] == 1.0
    assert result["ours"]["tokens_per_second"] == 2000
    moved = 2 * (TINY.non_embedding_parameters + 160 * 64) + 2 * 33 * 2 * 2 * 2 * 128
    assert step_bytes(TINY, 2, 33) == moved
    assert result["ours"]["gigabytes_per_second"] == round(moved / 1e6, 1)
    assert result["ours"]["percent_of_read"] == round(100 * moved / 1e6 / 2.0, 1)
    assert result["times_torch_graph"] == 1.0
    assert result["difference_from_torch"]["of_greatest_logit"] < 0.03
    assert result["recomputed_rows"] == 0
    assert (result["phi"], result["dataflow"]) == (PHI, "default")
    assert list(result["parts"]) == list(PARTS)
    assert result["launches"] == sum(part["launches"] for part in result["parts"].values()) == 1 + 5 * 2 + 1
    assert result["parts"]["attention"]["implementation"] == "attention_unified"
    assert {part["implementation"] for name, part in result["parts"].items() if name in ("qkv", "down")} == {
        "flat_gemm"
    }
    json.dumps(result, allow_nan=False)


def test_what_stands_beside_cublas_belongs_to_its_product() -> None:
    device = Emulator(4, multiprocessors=4)
    recorder = Recorder(device)
    one = workload(device)
    step = one.step(recorder, segments.StaticDataflow("emulator", CUBLAS, {}))
    parts = parts_of(recorder.record(lambda: step.launch(2)), one.model)
    names = {part: [call.name for call in calls] for part, calls in parts.items()}
    assert names["qkv"] == ["rms_norm", "cublas", "rotate_and_append"] * 2
    assert names["gate_up"] == ["rms_norm", "cublas", "swiglu"] * 2
    assert names["head"] == ["rms_norm", "cublas", "greedy"]
    assert names["attention"] == ["attention_unified"] * 2
    step.launch(2)  # a replay of it all gives the same
    tokens = device.to_host(step.next_tokens)
    for calls in parts.values():
        for call in calls:
            call.run()
    assert set(names) == set(PARTS) and tokens.shape == (2,)


def test_a_wrong_kernel_has_no_speed() -> None:
    logits = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10)
    assert difference(logits, logits) == {"of_greatest_logit": 0.0, "same_tokens": 1.0}
    with pytest.raises(WrongResultError, match=r"logits differ from torch's by 0\.\d+ of the greatest; most is 0\.1"):
        difference(np.roll(logits, 1, axis=1), logits)
    with pytest.raises(WrongResultError, match="differ from torch's by nan"):
        difference(logits * np.nan, logits)


def test_torch_steps_as_our_kernels_do_whatever_the_way() -> None:
    device = Emulator(5, multiprocessors=4)
    one = workload(device, batch=1, context_tokens=17)
    logits, tokens = TorchStep(one).step(interleaved=True)
    other, _ = TorchStep(one).step()
    assert not logits.equal(other)  # gate and up lie elsewhere
    for way in ("gemv", "flat", CUBLAS):
        step = one.step(device, segments.StaticDataflow("emulator", way, {}))
        step.launch(1)
        ours = device.to_host(step.logits[:1])
        assert difference(ours, logits.float().numpy())["of_greatest_logit"] < 0.03
        assert device.to_host(step.next_tokens).tolist() == tokens.tolist()


def test_the_softmaxes_take_turns_and_who_is_missing_is_named() -> None:
    result = bench().measure(replace(STEP, kind=Kind.SOFTMAX))
    assert set(result["attention"]) == {"unified", "synchronised", "torch_sdpa"}
    assert set(result["step"]) == {"unified", "synchronised"}
    assert result["without"]["flashinfer"].startswith("ModuleNotFoundError: No module named 'flashinfer'")
    assert (result["attention_gain"], result["step_gain"]) == (1.0, 1.0)
    assert result["attention"]["unified"]["gigabytes_per_second"] == round(2 * 2 * (4 * 33 * 128 + 4 * 256) / 1e6, 1)


def test_the_heuristic_is_compared_with_every_static_dataflow_that_there_is() -> None:
    measured = {Piece(Kind.TUNING, "tiny").name: bench().measure(Piece(Kind.TUNING, "tiny"))}
    result = bench(json.loads(json.dumps(measured))).measure(replace(STEP, kind=Kind.DATAFLOW))
    assert {"heuristic", "gemv", "flat", "cublas"} <= result.keys()
    assert result["dataflow"] == "measured"
    assert result["heuristic"]["percent_of_read"] is None
    assert (result["gain_over_best_static"], result["gain_over_worst_static"]) == (1.0, 1.0)
    many = bench({}).measure(Piece(Kind.DATAFLOW, "tiny", 8, 16))
    assert "gemv" not in many
    assert many["dataflow"] == "default"


def test_each_product_is_timed_each_way_at_each_number_of_tokens() -> None:
    device = Emulator(6, multiprocessors=4)
    result = segments.measure(device, fake_timer, workload(device, 2, 1), (1, 2))
    assert [(row["segment"], row["tokens"]) for row in result["rows"][:5]] == [
        (name, 1) for name in ("qkv", "attention_output", "gate_up", "down", "head")
    ]
    first = result["rows"][0]["microseconds"]
    assert CUBLAS in first and any(way.startswith("gemv") for way in first)
    assert set(first.values()) == {500.0}  # a layer of two
    assert {row["flat_over_cublas"] for row in result["rows"]} == {1.0}


def test_transformers_is_asked_for_the_same_shape() -> None:
    result = bench().measure(replace(STEP, kind=Kind.TRANSFORMERS))
    for name in ("eager", "compiled"):
        assert result[name]["tokens_per_second"] > 0


def test_the_streams_read_and_copy_every_byte() -> None:
    device = Emulator(7, multiprocessors=2)
    bits = np.random.default_rng(0).integers(0, 1 << 16, 8 * 5003, np.uint16)
    source, target = device.asarray(bits), device.empty(bits.shape, np.uint16)
    stream = ceilings.Stream(256, 1)
    sums = device.to_host(stream.read(device, source))
    assert np.bitwise_xor.reduce(sums) == np.bitwise_xor.reduce(bits.view(np.uint32))
    stream.copy(device, source, target)
    np.testing.assert_array_equal(device.to_host(target), bits)
    measured = ceilings.measure(device, fake_timer, stream_bytes=1 << 16, size=32)
    assert measured["read_gigabytes_per_second"] == round((1 << 16) / 1e6, 1)
    assert measured["copy_gigabytes_per_second"] == round((2 << 16) / 1e6, 1)


def test_what_does_not_fit_says_how_much_it_takes() -> None:
    result = bench(free_bytes=3 << 30).measure(STEP)
    assert result == {"left_out": "takes 4.0 GiB of device memory, 3.0 GiB are free"}
    large = Bench(machine(18 << 30), SHAPES, "bf16", 1, {})
    for kind in (Kind.STEP, Kind.TRANSFORMERS, Kind.SEGMENTS):
        result = large.measure(Piece(kind, "llama-3.1-8b", 1, 1024))
        assert result["left_out"].endswith("of device memory, 18.0 GiB are free")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_random_weights_are_normal_with_the_scale_of_their_inputs(dtype: Any) -> None:
    device = Emulator()
    array = RandomBits(np, device, dtype, 1).normal((300, 1000), 0.25)
    values = from_bits(device.to_host(array), dtype)
    assert abs(values.mean()) < 0.003
    assert values.std() == pytest.approx(0.25, rel=0.01)
    assert from_bits(device.to_host(RandomBits(np, device, dtype, 1).ones(3)), dtype).tolist() == [1, 1, 1]


def test_contenders_take_turns_and_rounds_count_by_their_median() -> None:
    order: list[str] = []
    seconds = {"slow": iter([0.04] * 8), "fast": iter([0.03, 0.03, 0.01, 9.0, 0.03, 0.01, 0.02, 0.01])}

    def timer(work: Work, executions: int) -> float:
        work()
        return next(seconds[order[-1]])

    contenders = {name: (lambda name=name: order.append(name)) for name in seconds}
    taken = in_turns(contenders, timer, rounds=3)
    assert taken["slow"].median == 0.04
    assert taken["fast"].median == 0.01
    assert order[4::2] == ["slow", "fast", "fast", "slow", "slow", "fast"]


def test_a_lost_device_ends_the_run_and_the_next_goes_on_behind(tmp_path: Path) -> None:
    said: list[str] = []

    def unreachable(*arguments: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    lost: Any = machine()
    lost.device.empty = unreachable
    one = Bench(lost, {"tiny": TINY}, "bf16", 1, {})
    with pytest.raises(DeviceLostError, match="RuntimeError: an illegal memory access"):
        one.measure(STEP)
    pieces = [STEP, replace(STEP, batch=3)]
    results = open_results(tmp_path / "gpu.json")
    assert decode.run(pieces, one.measure, results, 1000, lambda: 0.0, said.append) == 1
    assert results.pieces[STEP.name]["failed"].startswith("DeviceLostError: RuntimeError: an illegal memory access")
    assert said[-1].startswith("stopped: the device answers no more")


def test_the_table_shows_every_piece_beside_the_paper(tmp_path: Path) -> None:
    file = tmp_path / "emulator-2026.json"
    results = open_results(file)
    device = Emulator(8, multiprocessors=4)
    results.add("ceilings", ceilings.measure(device, fake_timer, stream_bytes=1 << 16, size=32), 1.0)
    one = bench(dict(results.pieces))
    for kind in (Kind.STEP, Kind.SOFTMAX, Kind.DATAFLOW):
        piece = replace(STEP, kind=kind)
        results.add(piece.name, one.measure(piece), 1.0)
    speed = {"tokens_per_second": 500.0}
    results.add(replace(STEP, kind=Kind.TRANSFORMERS).name, {"eager": speed, "compiled": {"left_out": "no"}}, 1.0)
    rows = [
        {"segment": "qkv", "tokens": 8, "flat_over_cublas": 1.5},
        {"segment": "qkv", "tokens": 9, "flat_over_cublas": None},
    ]
    results.add("segments tiny", {"rows": rows}, 1.0)
    results.add("step tiny batch 128 context 33", {"left_out": "takes 99 GiB"}, 1.0)
    text = decode_table.render(decode_table.read(tmp_path))
    step = next(line for line in text.splitlines() if line.startswith("| tiny batch 2 context 33 | 1.000 |"))
    assert step.endswith("| 2,000 (1.00x) | 500 (4.00x) | - |")
    assert text.count("flat GEMM over cuBLAS") == 1
    assert "| our attention over torch's SDPA | tiny batch 2 context 33 | 1.000x | - |" in text
    assert "| tiny batch 2 context 33 | attention | attention_unified | 1000.0 |" in text
    assert "| flat GEMM over cuBLAS, qkv | tiny M 8 | 1.50x | up to 1.52x |" in text
    assert "| unified over synchronised softmax, step | tiny batch 2 context 33 | 1.000x | 1.14x in decoding" in text
    assert "heuristic (default) over all cublas" in text and "not verified" in text
    assert "- step tiny batch 128 context 33: takes 99 GiB" in text
    assert not math.isnan(float(step.split("|")[2]))
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1
