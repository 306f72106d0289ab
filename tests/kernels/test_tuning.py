"""Measuring the dataflow: every way that it offers runs, on every batch size that it offers it for."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from common.architecture.shape import ModelShape
from engine.backends.cuda import dataflow, tuning
from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.step import CUBLAS
from engine.backends.cuda.tuning import blank_step, tune
from tests.kernels.emulator import Emulator

SHAPE = ModelShape(
    hidden_size=64, layers=5, heads=2, kv_heads=1, head_dim=64, intermediate_size=32, vocab_size=70,
    tied_embeddings=False,
)  # fmt: skip
TOKENS = (1, 3, 16, 40, 72)


class EmulatedGpu(Emulator):
    l2_bytes = 0


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dataflow, tuning):
        monkeypatch.setattr(module, "MEASURED_TOKENS", TOKENS)
    monkeypatch.setattr(dataflow, "REPEATS", 1)


def test_every_product_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device: Any = EmulatedGpu(seed=5)
    runs = 0

    def timer(launches: Sequence[Callable[[], None]]) -> float:
        nonlocal runs
        launches[0]()
        runs += 1
        return 1.0

    empty = DataflowTable(device.name, "v1", {})
    table = tune(device, SHAPE, "bf16", empty, bias=True, head_norm=True, timer=timer)
    assert runs > 5 * len(TOKENS)
    step = blank_step(device, SHAPE, "bf16", bias=True, head_norm=True)
    assert {(key.rows, key.inner, key.fusion) for key in table.choices} == {
        (one.rows, one.inner, one.fusion) for one in step.segments.values()
    }
    assert all(choice.source == "measured" for choice in table.choices.values())
    # All equally fast: what runs for every size needs no inflection point.
    assert {choice.variants for choice in table.choices.values()} == {(CUBLAS,)}
    runs = 0
    assert tune(device, SHAPE, "bf16", table, bias=True, head_norm=True, timer=timer) is table
    assert runs == 0
