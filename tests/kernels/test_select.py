"""Greedy and top-k selection against a sort, NaN, ties and rows that share a vector included."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cuda.kernels import Device, Kernel
from engine.backends.cuda.selection import KEPT, Selection
from tests.kernels.devices import emulator_only, make_device
from tests.kernels.emulator import EmulationError, Emulator, planted

Logits = npt.NDArray[np.float32]

seeds = st.integers(0, 2**32 - 1)


def descending(logits: Logits) -> npt.NDArray[np.int64]:
    """Ids by value descending, NaN last, then id ascending: [rows, vocabulary]."""
    return np.lexsort((-logits.astype(np.float64), np.isnan(logits)))


def select_greedy(device: Device, selection: Selection, logits: Logits) -> npt.NDArray[np.int32]:
    tokens = device.empty(len(logits), np.int32)
    selection.greedy(device.asarray(logits), tokens)
    return device.to_host(tokens)


def check_greedy(device: Device, logits: Logits) -> None:
    selection = Selection(device, len(logits))
    for turn in (logits, logits[:, ::-1].copy()):  # the second finds the first one's counters
        np.testing.assert_array_equal(select_greedy(device, selection, turn), descending(turn)[:, 0])


def check_top_k(device: Device, logits: Logits, k: int) -> None:
    rows = len(logits)
    selection = Selection(device, rows)
    for turn in (logits, logits[:, ::-1].copy()):
        values = device.empty((rows, k), np.float32)
        ids = device.empty((rows, k), np.int32)
        selection.top_k(device.asarray(turn), values, ids)
        expected = descending(turn)[:, :k]
        np.testing.assert_array_equal(device.to_host(ids), expected)
        np.testing.assert_array_equal(device.to_host(values), np.take_along_axis(turn, expected, axis=1))


@st.composite
def adversarial_logits(draw: st.DrawFn, max_vocabulary: int) -> Logits:
    """Rows of any width, in any order, with ties, infinities, NaN, zeros of both signs and denormals among them."""
    rows, vocabulary = draw(st.integers(1, 5)), draw(st.integers(1, max_vocabulary))
    generator = np.random.default_rng(draw(seeds))
    logits = generator.normal(size=(rows, vocabulary)).astype(np.float32)
    order = draw(st.sampled_from(["random", "ascending", "descending", "coarse", "equal"]))
    if order == "coarse":
        logits = np.round(logits).astype(np.float32)
    elif order == "equal":
        logits[...] = logits[:, :1]
    elif order != "random":
        logits = np.sort(logits, axis=1)[:, :: 1 if order == "ascending" else -1]
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38], np.float32)
    share = draw(st.sampled_from([0.0, 0.01, 1.0]))
    return np.ascontiguousarray(
        np.where(generator.random(logits.shape) < share, generator.choice(odd, logits.shape), logits)
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, logits=adversarial_logits(max_vocabulary=6000))
def test_greedy_takes_the_largest_and_the_lowest_id_among_equals(seed: int, logits: Logits) -> None:
    check_greedy(make_device(seed), logits)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, logits=adversarial_logits(max_vocabulary=20_000), wanted=st.integers(1, KEPT))
def test_top_k_is_a_sort_cut_off(seed: int, logits: Logits, wanted: int) -> None:
    check_top_k(make_device(seed), logits, min(wanted, logits.shape[1]))


def test_a_row_of_nan_gives_token_0() -> None:
    device = make_device()
    logits = np.full((2, 1500), np.nan, np.float32)
    logits[1, 1200] = -np.inf
    assert select_greedy(device, Selection(device, 2), logits).tolist() == [0, 1200]


@pytest.mark.parametrize("seed", range(20))
def test_any_schedule_selects_the_same(seed: int) -> None:
    logits = np.round(np.random.default_rng(7).normal(size=(2, 9001)) * 4).astype(np.float32)
    check_greedy(make_device(seed, multiprocessors=seed + 1), logits)
    check_top_k(make_device(seed, multiprocessors=seed + 1), logits, KEPT)


def test_many_chunks_merge_in_more_than_one_tile() -> None:
    logits = np.random.default_rng(3).normal(size=(1, 128_256)).astype(np.float32)
    check_greedy(make_device(0, multiprocessors=132), logits)
    check_top_k(make_device(0, multiprocessors=132), logits, KEPT)


@dataclass(frozen=True)
class Fault:
    name: str
    entry: str
    old: str
    new: str


FAULTS = [
    Fault("counter not reset", "greedy", "arrivals[blockIdx.y] = 0;", ""),
    Fault("last arriver lost", "greedy", "== gridDim.x - 1", "== gridDim.x"),
    Fault("last partial not waited for", "top_k", "== gridDim.x - 1", "== gridDim.x - 2"),
    Fault("flag read too early", "top_k", "fence();\n    }\n    sync_block();", "fence();\n    }"),
    Fault("the row's tail dropped", "greedy", "(chunk.row_end + VECTOR - 1) / VECTOR", "chunk.row_end / VECTOR"),
    Fault("ties to the highest id", "greedy", "<< 32 | ~id;", "<< 32 | id;"),
    Fault("NaN wins", "greedy", "ordered = 0;", "ordered = ~0u;"),
    Fault("-0 below 0", "top_k", "bits == 0x80000000u", "bits == 0x80000001u"),
    Fault("threshold one run too high", "top_k", "candidates.keys[KEPT - 1];", "candidates.keys[KEPT - 2];"),
    Fault("all runs sorted one way", "top_k", "size, run % 2 == 0)", "size, true)"),
    Fault("counts read too early", "top_k", "= sum;\n    }\n    sync_block();", "= sum;\n    }"),
    Fault("runs merged too early", "top_k", "}\n    sync_block();\n    for (int distance", "}\n    for (int distance"),
]


class Faulty:
    """A device on which one place of the source is wrong."""

    def __init__(self, device: Emulator, fault: Fault) -> None:
        self._device, self._fault = device, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Any) -> None:
        self._device.launch(planted(kernel, self._fault.old, self._fault.new), grid, arguments)


@emulator_only
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault) -> None:
    def check(seed: int, device: Any) -> None:
        generator = np.random.default_rng(seed)
        logits = np.round(generator.normal(size=(3, 10_001)) * 2).astype(np.float32)
        logits[0, 4:40] = np.nan
        logits[1] = np.where(generator.random(10_001) < 0.5, 0.0, -0.0)
        logits[1, -1] = 1.0
        logits[2] = -np.arange(10_001)
        logits[2, 3000] = -62.5  # the 64th largest, after many were passed over
        if fault.entry == "greedy":
            check_greedy(device, logits)
        else:
            check_top_k(device, logits, KEPT)

    check(0, Emulator(0))
    caught = 0
    for seed in range(5):
        try:
            check(seed, Faulty(Emulator(seed), fault))
        except (AssertionError, EmulationError):
            caught += 1
    assert caught


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: take(d, rows=1, vocabulary=100, k=65), "k: 65, must be from 1 to 64"),
        (lambda d: take(d, rows=1, vocabulary=10, k=11), "k: 11, must be from 1 to 10"),
        (lambda d: take(d, rows=3, vocabulary=10, k=1), "logits: 3 rows, the workspace is for 2"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(call: Callable[[Device], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_device())


def take(device: Device, rows: int, vocabulary: int, k: int) -> None:
    logits = device.zeros((rows, vocabulary), np.float32)
    Selection(device, 2).top_k(logits, device.zeros((rows, k), np.float32), device.zeros((rows, k), np.int32))
