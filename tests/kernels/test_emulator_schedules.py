"""A seed is a schedule: what is right is right under all, what is wrong shows under some, and each can be had again."""

import numpy as np
import pytest

from tests.kernels.devices import emulator_only
from tests.kernels.emulator import Emulator, planted
from tests.kernels.toys import toy

pytestmark = emulator_only

LAST_ARRIVER = toy(
    "const float* in, float* partials, unsigned* arrivals, unsigned* order, float* out",
    """
    // Each block adds its part of the row; the last one to arrive sums the parts in the order of their index.
    unsigned* last = reinterpret_cast<unsigned*>(shared_memory());
    partials[blockIdx.x * blockDim.x + threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x] * 3.0f;
    fence();
    sync_block();
    if (threadIdx.x == 0) {
        const unsigned before = atomic_add(arrivals, 1u);
        order[blockIdx.x] = before;
        *last = before == gridDim.x - 1;
    }
    sync_block();
    if (*last) {
        float sum = 0.0f;
        for (unsigned i = 0; i < gridDim.x; ++i) sum += load_relaxed(partials + i * blockDim.x + threadIdx.x);
        out[threadIdx.x] = sum;
        if (threadIdx.x == 0) *arrivals = 0;
    }""",
    threads=64,
    shared_bytes=16,
)


def test_the_last_arriver_sums_the_same_in_every_schedule() -> None:
    parts = np.random.default_rng(7).standard_normal((5, 64)).astype(np.float32)
    expected = np.zeros(64, np.float32)
    for part in parts:
        expected += part * np.float32(3)
    orders = set()
    for seed in range(20):
        device = Emulator(seed)
        partials, arrivals = device.empty((5, 64), np.float32), device.zeros(1, np.uint32)
        order, out = device.empty(5, np.uint32), device.empty(64, np.float32)
        for _ in range(2):  # the second launch finds the counter reset
            out[...] = np.nan
            device.launch(LAST_ARRIVER, (5, 1, 1), (device.asarray(parts), partials, arrivals, order, out))
            np.testing.assert_array_equal(out, expected)
            orders.add(tuple(order.tolist()))
    assert len(orders) > 10, "blocks arrive in many orders"


@pytest.mark.parametrize(
    ("old", "new"),
    (
        ("    fence();\n    sync_block();", "    fence();"),
        ("if (threadIdx.x == 0) *arrivals = 0;", ""),
        ("before == gridDim.x - 1", "before == gridDim.x - 2"),
        ("before == gridDim.x - 1", "blockIdx.x == gridDim.x - 1"),
    ),
    ids=("no barrier before arriving", "counter left", "one too early", "by index, not by arrival"),
)
def test_faults_of_the_last_arriver_show_under_some_schedule(old: str, new: str) -> None:
    parts = np.ones((5, 64), np.float32)
    wrong = 0
    for seed in range(20):
        device = Emulator(seed)
        partials, arrivals = device.empty((5, 64), np.float32), device.zeros(1, np.uint32)
        order, out = device.empty(5, np.uint32), device.empty(64, np.float32)
        for _ in range(2):
            out[...] = np.nan
            partials[...] = np.nan
            arguments = (device.asarray(parts), partials, arrivals, order, out)
            device.launch(planted(LAST_ARRIVER, old, new), (5, 1, 1), arguments)
            wrong += not np.array_equal(out, np.full(64, 15, np.float32))
    assert wrong > 0


def test_the_same_seed_is_the_same_run() -> None:
    def orders(seed: int) -> list[list[int]]:
        device = Emulator(seed)
        parts, partials = device.zeros((9, 64), np.float32), device.empty((9, 64), np.float32)
        arrivals, order, out = device.zeros(1, np.uint32), device.empty(9, np.uint32), device.empty(64, np.float32)
        seen = []
        for _ in range(3):
            device.launch(LAST_ARRIVER, (9, 1, 1), (parts, partials, arrivals, order, out))
            seen.append(order.tolist())
        return seen

    assert orders(11) == orders(11)
    assert orders(11) != orders(12)
    assert orders(11)[0] != orders(11)[1], "each launch has a schedule of its own"
