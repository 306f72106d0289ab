"""Where a GPU would give a wrong result, a crash or a hang, the emulator gives an error that says where."""

import re

import numpy as np
import pytest

from engine.backends.cuda.kernels import Kernel
from tests.kernels.devices import emulator_only
from tests.kernels.emulator import EmulationError, Emulator
from tests.kernels.toys import toy

pytestmark = emulator_only

SEEDS = range(12)


def small(body: str, threads: int = 64) -> Kernel:
    return toy("float* data, int n", body, threads, shared_bytes=1024)


def messages(kernel: Kernel, seeds: range = SEEDS, grid: tuple[int, int, int] = (2, 1, 1)) -> list[str]:
    """What each seed says of a kernel on 256 floats; empty where a launch went well."""
    said = []
    for seed in seeds:
        device = Emulator(seed, step_limit=5_000)
        data = device.asarray(np.arange(256, dtype=np.float32))
        try:
            device.launch(kernel, grid, (data, np.int32(256)))
            said.append("")
        except EmulationError as error:
            said.append(str(error))
        # One failure leaves nothing behind: the next launch is right.
        device.launch(WELL, (2, 1, 1), (data, np.int32(256)))
        np.testing.assert_array_equal(data[:128].reshape(2, 64), np.tile(np.arange(64) + np.arange(64)[::-1], (2, 1)))
    return said


WELL = small(
    """
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    sync_block();
    data[blockIdx.x * 64 + threadIdx.x] = shared[threadIdx.x] + shared[63 - threadIdx.x];"""
)

ALWAYS = {
    # name: (body, what the message says)
    "write past the end": (
        "if (threadIdx.x == 5) data[n + 2048] = 1.0f;",
        r"^toy, block \([01], 0, 0\), thread 5: bad write.*argument 0 \(data\), float32 \[256\].*8192 bytes past",
    ),
    "write before the start": (
        "if (threadIdx.x == 5) data[-1100] = 1.0f;",
        r"bad write.*\(data\).*4400 bytes before its start",
    ),
    "read past the end": ("data[threadIdx.x] = data[threadIdx.x + 4096];", r"bad read.*\(data\).*bytes past its end"),
    "overwritten canary": (
        "if (threadIdx.x == 5) { data[-1] = 1.0f; data[n] = 1.0f; }",
        r"(wrote beside|bad write).*argument 0 \(data\).*(0 bytes past its end|4 bytes before its start)",
    ),
    "null pointer": (
        "float* none = n == 256 ? nullptr : data; none[threadIdx.x] = 1.0f;",
        r"thread \d+: bad write through a null pointer$",
    ),
    "past shared memory": (
        "reinterpret_cast<float*>(shared_memory())[threadIdx.x + 4096] = 1.0f;",
        r"bad write at shared memory \+ \d+ of 1024 bytes",
    ),
    "one float past shared memory": (
        "reinterpret_cast<float*>(shared_memory())[threadIdx.x * 4 + 4] = 1.0f;",
        r"(bad write at|wrote to) shared memory \+ 1024 of 1024 bytes|wrote to shared memory at offset 1024 of 1024",
    ),
    "misaligned copy": (
        "copy_async_16(shared_memory() + threadIdx.x * 16, data + 1);",
        r"copy_async_16 at line 3 `copy_async_16\(.*`: the address is not 16-byte aligned.*\(data\).*offset 4",
    ),
    "copy to misaligned shared memory": (
        "copy_async_16(shared_memory() + 8, data);",
        r"copy_async_16 at line 3 .*: shared memory \+ 8 is not 16-byte aligned",
    ),
    "copy past shared memory": (
        "copy_async_16(shared_memory() + 16 + threadIdx.x * 16, data); copy_async_commit(); copy_async_wait<0>();",
        r"copy_async_16 at line 3 .*: to shared memory \+ 1024 of 1024 bytes",
    ),
    "copy from past the end": (
        "copy_async_16(shared_memory() + threadIdx.x * 16, data + 4096);",
        r"bad read.*\(data\).*bytes past its end",
    ),
    "copy never waited for": (
        "copy_async_16(shared_memory() + threadIdx.x * 16, data); copy_async_commit();",
        r"returned, but 1 of its asynchronous copies were never waited for",
    ),
    "copy waited for without a commit": (
        "copy_async_16(shared_memory() + threadIdx.x * 16, data); copy_async_wait<0>();",
        r"never waited for",
    ),
    "write into a copy's destination": (
        """float* mine = reinterpret_cast<float*>(shared_memory() + threadIdx.x * 16);
        copy_async_16(mine, data); copy_async_commit(); mine[1] = 0.0f; copy_async_wait<0>();""",
        r"was written while an asynchronous copy to it was in flight",
    ),
    "misaligned load_16": ("data[0] = load_16(data + 2).x;", r"load_16 at line 3 .*not 16-byte aligned.*offset 8"),
    "misaligned plain load": (
        "data[threadIdx.x] = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(data) + 2);",
        r"line 3 .*the address of .*float.* is not 4-byte aligned.*offset 2",
    ),
    "misaligned plain vector": (
        "*reinterpret_cast<float2*>(data + 2 * threadIdx.x + 1) = float2{1.0f, 1.0f};",
        r"line 3 .*is not 8-byte aligned",
    ),
    "misaligned matrix row": (
        "unsigned r[4]; load_matrix_x4(r, shared_memory() + threadIdx.x * 8); data[0] = r[0];",
        r"load_matrix_x4 at line 3 .*: the row of lane 1, shared memory \+ (8|264), is not 16-byte aligned",
    ),
    "matrix row past shared memory": (
        "unsigned r[2]; load_matrix_x2(r, shared_memory() + 1024 * (threadIdx.x % 32 == 7)); data[0] = r[0];",
        r"load_matrix_x2 at line 3 .*: the row of lane 7 is at shared memory \+ 1024 of 1024 bytes",
    ),
    "matrix row in global memory": (
        "unsigned r[2]; load_matrix_x2(r, data); data[0] = r[0];",
        r"load_matrix_x2 at line 3 .*: the row of lane 0 is at shared memory \+",
    ),
    "divergent barrier": (
        "if (threadIdx.x < 32)\nsync_block();\nelse\nsync_block();",
        r"sync_block at line [46] `sync_block\(\);`, but thread \d+ of the block waits in the one at line [46]",
    ),
    "barrier that some skip": (
        "if (threadIdx.x != 9) sync_block();",
        r"sync_block at line 3.*returned|returned, but .* wait in sync_block",
    ),
    "return before a barrier": (
        "if (threadIdx.x >= 60) return;\nsync_block();",
        r"sync_block at line 4 .*have returned|returned, but \d+ threads of its block wait in sync_block at line 4",
    ),
    "return before a shuffle": (
        "if (threadIdx.x % 32 < 16) return;\ndata[0] = shuffle(1.0f, 3);",
        r"shuffle at line 4 .* needs 32 threads|returned, but thread \d+ of its warp waits in shuffle at line 4",
    ),
    "divergent shuffle": (
        "float x = 1.0f;\nif (threadIdx.x % 2)\nx = shuffle_xor(x, 1);\nelse\nx = shuffle(x, 1);\ndata[0] = x;",
        r"shuffle(_xor)? at line [57] .*, but thread \d+ of the warp waits in shuffle(_xor)? at line [57]",
    ),
    "the same collective on two lines": (
        "if (threadIdx.x % 2)\nsync_warp();\nelse\nsync_warp();",
        r"sync_warp at line [46] .*, but thread \d+ of the warp waits in sync_warp at line [46]",
    ),
    "barrier against shuffle": (
        "if (threadIdx.x % 32 < 16) sync_block();\nelse data[0] = shuffle(1.0f, 0);\nsync_block();",
        r"deadlock: every thread waits for others; .*in (sync_block|shuffle) at line [34]",
    ),
    "spin on another block": (
        "while (load_relaxed(data + 1) != 7.0f) {}",
        r"hang: 5000 steps of all threads, and none met others or returned",
    ),
    "spin at a barrier": (
        "while (load_relaxed(data + 1) != 7.0f) sync_block();",
        r"hang: this thread alone took 5000 steps",
    ),
    "index past a local array": (
        "float sums[4] = {}; sums[n / 64 + threadIdx.x / 32] += 1.0f; data[0] = sums[n / 128];",
        r"line 3 .*: index [45] is outside 'float ?\[4\]'",
    ),
    "shift past a register": ("data[0] = 1u << (n / 8 + threadIdx.x);", r"line 3 .*: a shift by (3[2-9]|[4-9]\d) bits"),
    "division by zero": ("data[0] = n / (n - 256);", r"divided an integer by zero"),
    "locals larger than the stack": (
        "volatile char large[200000]; large[threadIdx.x] = 1; large[199999] = 2; data[0] = large[100];",
        r"its local variables outgrew the stack",
    ),
    "missing barrier between copies and a matrix load": (
        """unsigned r[4];
        copy_async_16(shared_memory() + threadIdx.x * 16, data); copy_async_commit(); copy_async_wait<0>();
        load_matrix_x4(r, shared_memory() + threadIdx.x * 16); data[0] = r[0];""",
        r"load_matrix_x4 at line 5 .* was written by thread \d+, and no barrier lies between",
    ),
    "missing barrier before a copy over what others read": (
        """store_16(shared_memory() + threadIdx.x * 16, uint4{1, 2, 3, 4}); sync_block();
        data[threadIdx.x] = load_16(shared_memory() + (63 - threadIdx.x) * 16).x;
        copy_async_16(shared_memory() + threadIdx.x * 16, data); copy_async_commit(); copy_async_wait<0>();""",
        r"at line [45] .* was (read|written) by thread \d+, and no barrier lies between",
    ),
    "missing barrier before a copy over another warp's matrix": (
        """unsigned r[4];
        char* rows = shared_memory();
        if (threadIdx.x < 32) store_16(rows + threadIdx.x * 16, uint4{});
        sync_block();
        if (threadIdx.x < 32) load_matrix_x4(r, rows + threadIdx.x * 16);
        if (threadIdx.x >= 32) copy_async_16(rows + threadIdx.x * 16 - 512, data);
        copy_async_commit();
        copy_async_wait<0>();""",
        r"at line [78] .* was (read|written) by thread \d+, and no barrier lies between",
    ),
    "missing barrier between stores and loads": (
        """store_16(shared_memory() + threadIdx.x * 16, uint4{1, 2, 3, 4});
        data[threadIdx.x] = load_16(shared_memory() + (threadIdx.x ^ 32) * 16).x;""",
        r"at line [34] .* was (written|read) by thread \d+, and no barrier lies between",
    ),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_a_broken_kernel_is_caught_under_every_seed(name: str) -> None:
    body, pattern = ALWAYS[name]
    for message in messages(small(body)):
        assert re.search(pattern, message), message


def test_a_warp_may_copy_over_the_matrix_that_it_has_just_loaded() -> None:
    ring = """
        unsigned r[4];
        char* row = shared_memory() + threadIdx.x * 16;
        float sum = 0.0f;
        for (int i = 0; i < 3; ++i) {
            copy_async_16(row, data + i * 4);
            copy_async_commit();
            copy_async_wait<0>();
            sync_warp();
            load_matrix_x4(r, row);
            sum += __uint_as_float(r[1]);
        }
        data[threadIdx.x + 64] = sum;"""
    for seed in SEEDS:
        device = Emulator(seed)
        data = device.asarray(np.arange(256, dtype=np.float32))
        device.launch(small(ring), (1, 1, 1), (data, np.int32(256)))
        np.testing.assert_array_equal(data[64:128], 12 + 3 * (np.arange(64) % 4))


def test_a_loop_without_intrinsics_is_a_hang() -> None:
    (message,) = messages(small("volatile int n_now = n; while (n_now == 256) {}"), range(1))
    assert "hang: a loop that calls no intrinsic does not end" in message


SOMETIMES = {
    "missing barrier": """
        float* shared = reinterpret_cast<float*>(shared_memory());
        shared[threadIdx.x] = threadIdx.x;
        data[threadIdx.x] = shared[63 - threadIdx.x];""",
    "missing wait": """
        copy_async_16(shared_memory() + threadIdx.x * 16, data + 64);
        copy_async_commit();
        data[threadIdx.x] = 63 - threadIdx.x + 0 * reinterpret_cast<float*>(shared_memory())[threadIdx.x * 4];
        copy_async_wait<0>();""",
    "missing barrier after a wait": """
        copy_async_16(shared_memory() + threadIdx.x * 16, data + 64);
        copy_async_commit();
        copy_async_wait<0>();
        const float* shared = reinterpret_cast<float*>(shared_memory());
        data[threadIdx.x] = 63 - threadIdx.x + 0 * shared[(63 - threadIdx.x) * 4];""",
    "uninitialised shared memory": """
        data[threadIdx.x] = 63 - threadIdx.x + 0 * reinterpret_cast<float*>(shared_memory())[threadIdx.x];""",
    "uninitialised local": """
        float sum;
        for (int i = threadIdx.x; i < 64; i += n) sum += 63 - threadIdx.x;
        data[threadIdx.x] = sum;""",
    "lost update between blocks": """
        data[threadIdx.x] = 63 - threadIdx.x;
        if (threadIdx.x == 0) {
            const float before = load_relaxed(data + 128);
            fence();
            data[128] = before + 1;
        }""",
}


@pytest.mark.parametrize("name", SOMETIMES)
def test_a_race_or_unset_value_gives_a_wrong_result_under_some_seed(name: str) -> None:
    wrong = 0
    for seed in range(20):
        device = Emulator(seed)
        data = device.zeros(256, np.float32)
        device.launch(small(SOMETIMES[name]), (4, 1, 1), (data, np.int32(256)))
        updates = 4 if name == "lost update between blocks" else 0
        wrong += not (np.array_equal(data[:64], 63 - np.arange(64)) and data[128] == updates)
    assert wrong >= 2


def test_a_small_step_outside_a_buffer_is_caught_on_either_side() -> None:
    for body in ("if (threadIdx.x == 0) data[-1] = 1.0f;", "if (threadIdx.x == 0) data[n] = 1.0f;"):
        said = messages(small(body))
        assert all("(data)" in message for message in said)
        assert any("bad write" in message for message in said) and any("wrote beside" in message for message in said)


def test_a_small_step_outside_shared_memory_is_caught_on_either_side() -> None:
    for index, offset in (("256", "1024"), ("-1", "-4")):
        body = f"reinterpret_cast<float*>(shared_memory())[threadIdx.x == 7 ? {index} : 0] = 1.0f;"
        said = messages(small(body), grid=(1, 1, 1))
        assert all(f"{offset} of 1024 bytes" in message for message in said)
        assert any("bad write" in message for message in said) and any("wrote to" in message for message in said)


def test_a_collective_needs_a_whole_warp() -> None:
    (message,) = messages(small("data[0] = shuffle(1.0f, 3);", threads=48), range(1))
    assert "shuffle at line 3 `data[0] = shuffle(1.0f, 3);` needs 32 threads; 16 of the warp's 16 are there" in message
