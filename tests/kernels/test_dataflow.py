"""Inflection points from clean and noisy times, and the table that keeps them."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cuda.dataflow import (
    IMPLEMENTATIONS,
    MEASURED_TOKENS,
    REPEATS,
    Candidate,
    Choice,
    DataflowError,
    DataflowTable,
    Implementation,
    SegmentKey,
    choose,
    cold_weight_sets,
    default_choice,
    graph_timer,
    kernels_version,
    measure,
)
from engine.backends.cuda.kernels import Array
from tests.kernels.emulator import Emulator

SEGMENT = SegmentKey("NVIDIA H200", 4096, 4096, "residual")


class Bench:
    """Candidates whose launches say who ran, and a timer that knows how long that takes."""

    def __init__(self, seconds: dict[str, Callable[[int], float]], noise: Callable[[], float] = lambda: 1.0) -> None:
        self.seconds = seconds
        self.noise = noise
        self.weights_seen: list[int] = []
        self.calls: list[tuple[str, int]] = []
        self._launched: tuple[str, int] = ("", 0)

    def candidate(self, name: str, implementation: Implementation, max_tokens: int | None = None) -> Candidate:
        def launch(weights: Array, tokens: int) -> None:
            self.weights_seen.append(int(weights[0]))
            self._launched = (name, tokens)

        return Candidate(name, implementation, max_tokens, launch)

    def timer(self, launches: Sequence[Callable[[], None]]) -> float:
        for launch in launches:
            launch()
        name, tokens = self._launched
        self.calls.append(self._launched)
        return self.seconds[name](tokens) * self.noise()

    def measure(self, *candidates: Candidate) -> Choice:
        def cold_l2(device: Emulator, segment: SegmentKey) -> list[Array]:
            return [device.asarray(np.array([number])) for number in range(3)]

        return measure(Emulator(), SEGMENT, candidates, self.timer, cold_l2)


# Of a shape that reads W once: the GEMV grows with tokens, the flat GEMM with every eight, cuBLAS hardly.
CURVES: dict[str, Callable[[int], float]] = {
    "gemv": lambda tokens: 1e-6 * (7.5 + 1.5 * tokens),
    "flat": lambda tokens: 1e-6 * (10 + 0.5 * (-(-tokens // 8) - 1)),
    "cublas": lambda tokens: 1e-6 * 12.2,
}


def three(bench: Bench) -> tuple[Candidate, Candidate, Candidate]:
    return bench.candidate("gemv", "gemv", 4), bench.candidate("flat", "flat", 64), bench.candidate("cublas", "cublas")


def test_each_implementation_takes_over_where_it_is_faster() -> None:
    bench = Bench(CURVES)
    choice = bench.measure(*three(bench))
    assert choice == Choice((1, 2, 41), ("gemv", "flat", "cublas"), "measured")
    assert [choice.variant(tokens) for tokens in (1, 2, 40, 41, 1000)] == ["gemv", "flat", "flat", "cublas", "cublas"]


def test_every_timing_rotates_over_all_weight_sets_and_repeats_take_turns() -> None:
    bench = Bench(CURVES)
    bench.measure(*three(bench))
    assert bench.weights_seen == [0, 1, 2] * len(bench.calls)
    assert bench.calls[: 3 * REPEATS] == [("gemv", 1), ("flat", 1), ("cublas", 1)] * REPEATS
    assert all(tokens <= {"gemv": 4, "flat": 64, "cublas": 128}[name] for name, tokens in bench.calls)


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_outliers_move_no_point_far_and_add_none(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def noise() -> float:
        return float(generator.lognormal(0.0, 0.01) * (3.0 if generator.random() < 0.02 else 1.0))

    bench = Bench(CURVES, noise)
    choice = bench.measure(*three(bench))
    assert choice.variants == ("gemv", "flat", "cublas")
    assert choice.first_tokens[0] == 1
    assert 2 <= choice.first_tokens[1] <= 3
    assert 25 <= choice.first_tokens[2] <= 57


def test_a_tie_stays_with_the_one_listed_first() -> None:
    bench = Bench({name: lambda tokens: 1e-5 for name in ("gemv", "flat", "cublas")})
    kinds = IMPLEMENTATIONS
    assert bench.measure(*(bench.candidate(kind, kind) for kind in kinds)).variants == ("gemv",)
    assert bench.measure(*(bench.candidate(kind, kind) for kind in reversed(kinds))).variants == ("cublas",)


def test_a_gain_within_the_noise_makes_no_point() -> None:
    bench = Bench({"flat": lambda tokens: 1e-5, "cublas": lambda tokens: 0.98e-5 if tokens == 24 else 1.01e-5})
    candidates = bench.candidate("flat", "flat"), bench.candidate("cublas", "cublas")
    assert bench.measure(*candidates).variants == ("flat",)


def test_tiles_of_one_implementation_may_return_but_an_implementation_may_not() -> None:
    def fast_at(low: int, high: int) -> Callable[[int], float]:
        return lambda tokens: 1e-5 if low <= tokens <= high else 1.5e-5

    bench = Bench({"flat-64": fast_at(8, 16), "flat-128": lambda tokens: 1.2e-5, "cublas": fast_at(1, 1)})
    flat = bench.candidate("flat-128", "flat"), bench.candidate("flat-64", "flat")
    choice = bench.measure(*flat, bench.candidate("cublas", "cublas"))
    assert choice == Choice((1, 8, 17), ("flat-128", "flat-64", "flat-128"), "measured")


def cost_of(choice: Choice, names: list[str], seconds: Any, tokens: Sequence[int]) -> float:
    loss = np.minimum(seconds / seconds.min(axis=1, keepdims=True) - 1, 0.2)
    taken = [names.index(choice.variant(count)) for count in tokens]
    changes = sum(a != b for a, b in itertools.pairwise(taken))
    return float(sum(loss[row, index] for row, index in enumerate(taken)) + 0.03 * changes)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 5))
def test_no_other_choice_loses_less(seed: int, tokens: int) -> None:
    generator = np.random.default_rng(seed)
    implementations: list[Implementation] = ["gemv", "flat", "flat", "cublas"]
    candidates = [Candidate(f"{i}", kind, None, lambda weights, tokens: None) for i, kind in enumerate(implementations)]
    counts = MEASURED_TOKENS[:tokens]
    seconds = generator.uniform(1.0, 1.3, (tokens, 4))
    names = [candidate.name for candidate in candidates]
    ranks = [IMPLEMENTATIONS.index(kind) for kind in implementations]
    best = min(
        cost_of(Choice(tuple(counts), tuple(names[i] for i in path), "measured"), names, seconds, counts)
        for path in itertools.product(range(4), repeat=tokens)
        if all(ranks[a] <= ranks[b] for a, b in itertools.pairwise(path))
    )
    assert cost_of(choose(counts, candidates, seconds), names, seconds, counts) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("broken", [0.0, -1e-6, float("nan"), float("inf")])
def test_a_timer_that_is_broken_is_named(broken: float) -> None:
    bench = Bench({"flat": lambda tokens: broken})
    with pytest.raises(ValueError, match=r"flat, 1 tokens: times .* are not all positive"):
        bench.measure(bench.candidate("flat", "flat"))


def test_tokens_that_nothing_computes_are_named() -> None:
    bench = Bench(CURVES)
    with pytest.raises(ValueError, match="no candidate computes 72 tokens: gemv, flat"):
        bench.measure(*three(bench)[:2])


def test_a_table_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    choice = Choice((1, 3, 65), ("gemv-16", "flat-64", "cublas"), "measured")
    table = DataflowTable("NVIDIA H200", "v1", {}).having(SEGMENT, choice)
    file = table.save(tmp_path / "new")
    loaded = DataflowTable.load(tmp_path / "new", "NVIDIA H200", "v1")
    assert loaded == table
    assert loaded.choice(4096, 4096, "residual") is loaded.choices[SEGMENT]
    assert loaded.choice(4096, 4096, "qkv") == default_choice("NVIDIA H200")
    assert [path.name for path in file.parent.iterdir()] == ["dataflow-nvidia-h200-v1.json"]


def test_without_a_stored_table_the_defaults_hold(tmp_path: Path) -> None:
    table = DataflowTable.load(tmp_path, "NVIDIA A100-SXM4-80GB", "v1")
    assert table.choice(1, 8, "qkv").source == "default"


STORED = {
    "format": 1,
    "device": "gpu",
    "version": "v1",
    "segments": [{"rows": 8, "inner": 8, "fusion": "qkv", "source": "measured", "points": [[1, "gemv"], [3, "flat"]]}],
}


def with_segment(**changes: Any) -> dict[str, Any]:
    return {**STORED, "segments": [{**STORED["segments"][0], **changes}]}  # type: ignore[index]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        "\xff",
        json.dumps({**STORED, "format": 2}),
        json.dumps({**STORED, "device": "another"}),
        json.dumps({**STORED, "version": "v2"}),
        json.dumps({**STORED, "segments": None}),
        json.dumps({**STORED, "segments": [[]]}),
        json.dumps({**STORED, "segments": [{}]}),
        json.dumps(with_segment(rows="8")),
        json.dumps(with_segment(fusion=None)),
        json.dumps(with_segment(source="guessed")),
        json.dumps(with_segment(points=[])),
        json.dumps(with_segment(points=[[2, "flat"]])),
        json.dumps(with_segment(points=[[1, "gemv"], [1, "flat"]])),
        json.dumps(with_segment(points=[[1, 7]])),
        json.dumps(with_segment(points=[[1]])),
        json.dumps(with_segment(points=[1])),
        json.dumps(with_segment(points={"1": "gemv"})),
    ],
)
def test_a_damaged_or_foreign_table_is_one_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dataflow-gpu-v1.json"
    file.write_text(json.dumps(STORED))
    assert DataflowTable.load(tmp_path, "gpu", "v1").choices
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataflowError, match=r"dataflow table .*dataflow-gpu-v1\.json") as raised:
        DataflowTable.load(tmp_path, "gpu", "v1")
    assert "\n" not in str(raised.value)


def test_a_table_that_cannot_be_read_or_written_is_that_error(tmp_path: Path) -> None:
    (tmp_path / "dataflow-gpu-v1.json").mkdir()
    with pytest.raises(DataflowError, match="cannot be read"):
        DataflowTable.load(tmp_path, "gpu", "v1")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataflowError, match="cannot be written"):
        DataflowTable("gpu", "v1", {}).save(tmp_path / "file")
    with pytest.raises(DataflowError, match="cannot be written"):
        DataflowTable("gpu", "v1", {}).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataflow-gpu-v1.json", "file"]


@pytest.mark.parametrize(
    ("device", "sibling"),
    [("NVIDIA H200", "NVIDIA H100 80GB HBM3"), ("NVIDIA A100-SXM4-80GB", "NVIDIA A800 80GB PCIe"), ("", "Tesla T4")],
)
def test_defaults_by_class_of_device(device: str, sibling: str) -> None:
    choice = default_choice(device)
    assert choice == default_choice(sibling)
    assert choice.source == "default"
    # The default variants name an implementation, each within what it can compute.
    assert choice.variants == IMPLEMENTATIONS
    assert choice.first_tokens[1] <= 5
    assert choice.first_tokens[2] <= 65


def test_the_classes_differ() -> None:
    assert len({default_choice(device) for device in ("NVIDIA H200", "NVIDIA A100-SXM4-80GB", "GeForce")}) == 3


def test_a_version_is_of_the_sources() -> None:
    assert len(kernels_version()) == 16
    assert kernels_version() == kernels_version()


class FakeGpu(Emulator):
    l2_bytes = 1 << 20

    def time_graph(self, work: Callable[[], None]) -> float:
        work()
        return 6e-3


@pytest.mark.parametrize(("rows", "inner"), [(64, 64), (512, 1024), (1024, 4096)])
def test_cold_weights_push_one_another_out_of_l2(rows: int, inner: int) -> None:
    gpu: Any = FakeGpu()
    sets = cold_weight_sets(gpu, SegmentKey("gpu", rows, inner, "plain"))
    assert len(sets) >= 3
    assert sum(array.nbytes for array in sets[1:]) > gpu.l2_bytes
    assert len({array.ctypes.data for array in sets}) == len(sets)  # type: ignore[attr-defined]
    assert np.isfinite(gpu.to_host(sets[0]).view(np.float16)).all()


def test_the_timer_compiles_outside_the_graph_and_divides_by_the_launches() -> None:
    gpu: Any = FakeGpu()
    ran: list[str] = []
    assert graph_timer(gpu)([lambda: ran.append("a"), lambda: ran.append("b"), lambda: ran.append("c")]) == 2e-3
    assert ran == ["a", "a", "b", "c"]
