"""The emulator's intrinsics do what CUDA's do: each against its definition, written anew with numpy."""

import os
import re
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.backends.cuda.kernels import SOURCES, Kernel, compile_options, device_text
from tests.kernels.compilation import HOST
from tests.kernels.devices import emulator_only, make_device
from tests.kernels.emulator import Emulator, from_bits, to_bits
from tests.kernels.toys import toy

TYPES = ("bf16", "fp16")
LANES = np.arange(32)
G, T = LANES // 4, LANES % 4


PRODUCT = """
    unsigned ra[4], rb[2];
    float rd[4];
    for (int i = 0; i < 4; ++i) ra[i] = a[threadIdx.x * 4 + i];
    for (int i = 0; i < 2; ++i) rb[i] = b[threadIdx.x * 2 + i];
    for (int i = 0; i < 4; ++i) rd[i] = d[threadIdx.x * 4 + i];
    mma_16x8x16<DTYPE>(rd, ra, rb);
    for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = rd[i];"""
MATRICES = """
    char* rows = shared_memory();
    for (int i = 0; i < 4; ++i)
        for (int word = 0; word < 4; ++word)
            reinterpret_cast<unsigned*>(rows)[(threadIdx.x % 8 + 8 * i) * 4 + word] =
                in[(threadIdx.x % 8 + 8 * i) * 4 + word];
    sync_warp();
    const char* mine = rows + order[threadIdx.x] * 16;
    unsigned x4[4], x4t[4], x2[2], x2t[2];
    load_matrix_x4(x4, mine);
    load_matrix_x4_transposed(x4t, mine);
    load_matrix_x2(x2, threadIdx.x < 16 ? mine : nullptr);
    load_matrix_x2_transposed(x2t, threadIdx.x < 16 ? mine : nullptr);
    for (int i = 0; i < 4; ++i) {
        out[threadIdx.x * 4 + i] = x4[i];
        out[128 + threadIdx.x * 4 + i] = x4t[i];
    }
    for (int i = 0; i < 2; ++i) {
        out[256 + threadIdx.x * 2 + i] = x2[i];
        out[320 + threadIdx.x * 2 + i] = x2t[i];
    }"""
EXCHANGE = """
    const int lane = threadIdx.x % 32;
    out[threadIdx.x * 5] = static_cast<unsigned>(shuffle_xor(lane, mask));
    out[threadIdx.x * 5 + 1] = __float_as_uint(shuffle(0.5f * lane, (lane * 7 + 3) % 32));
    out[threadIdx.x * 5 + 2] = shuffle(1u << lane, 35);
    out[threadIdx.x * 5 + 3] = vote_any(lane == 9 && threadIdx.x >= 32);
    out[threadIdx.x * 5 + 4] = vote_any(false);"""
CONVERSION = """
    for (unsigned i = threadIdx.x; i < 65536; i += blockDim.x) {
        widened[i] = to_float(DTYPE{static_cast<unsigned short>(i)});
        const unsigned pair = pack2<DTYPE>(values[i], values[65535 - i]);
        narrowed[i] = from_float<DTYPE>(values[i]).bits;
        pairs[i] = pair == (narrowed[i] | static_cast<unsigned>(from_float<DTYPE>(values[65535 - i]).bits) << 16) &&
                   __float_as_uint(low_float<DTYPE>(pair)) == __float_as_uint(to_float(DTYPE{narrowed[i]}));
    }"""
ARITHMETIC = """
    const float x = in[threadIdx.x];
    out[threadIdx.x * 4] = exp2_approximate(x);
    out[threadIdx.x * 4 + 1] = rsqrt_approximate(x);
    out[threadIdx.x * 4 + 2] = fast_divide(1.0f, x);
    out[threadIdx.x * 4 + 3] = x * 0.5f;"""
COPIES = """
    // Slots 0-1 are one group, slot 2 the next, slot 3 is never valid, slot 4 is committed after the first waits.
    char* shared = shared_memory() + threadIdx.x * 80;
    for (int i = 0; i < 5; ++i) store_16(shared + i * 16, make_uint4(7, 7, 7, 7));
    copy_async_16(shared, in + threadIdx.x * 8);
    copy_async_16(shared + 16, in + threadIdx.x * 8 + 4);
    copy_async_commit();
    copy_async_16(shared + 32, in + threadIdx.x * 8);
    copy_async_16(shared + 48, nullptr, false);
    copy_async_commit();
    copy_async_16(shared + 64, in + threadIdx.x * 8);
    for (int look = 0; look < 4; ++look) {
        if (look == 1) copy_async_wait<1>();
        if (look == 2) copy_async_wait<0>();
        if (look == 3) {
            copy_async_commit();
            copy_async_wait<0>();
        }
        for (int i = 0; i < 20; ++i) out[(threadIdx.x * 4 + look) * 20 + i] = reinterpret_cast<unsigned*>(shared)[i];
    }"""
TOYS = {
    "product": toy("const unsigned* a, const unsigned* b, float* d", PRODUCT),
    "matrices": toy("const unsigned* in, const int* order, unsigned* out", MATRICES, shared_bytes=512),
    "exchange": toy("int mask, unsigned* out", EXCHANGE, threads=64),
    "conversion": toy(
        "const float* values, float* widened, unsigned short* narrowed, int* pairs", CONVERSION, threads=64
    ),
    "arithmetic": toy("const float* in, float* out", ARITHMETIC),
    "copies": toy("const unsigned* in, unsigned* out", COPIES, shared_bytes=32 * 80),
}


def of(kernel: Kernel, dtype: str) -> Kernel:
    return replace(kernel, defines=(("DTYPE", dtype),))


def pairs(
    matrix: npt.NDArray[np.uint16], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Two neighbours of a row in one register, the lower column in the lower half."""
    low, high = matrix[rows, columns].astype(np.uint32), matrix[rows, columns + 1].astype(np.uint32)
    return low | (high << np.uint32(16))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_product_of_fragments_is_the_product_of_the_matrices(dtype: str) -> None:
    generator = np.random.default_rng(1)
    for seed in range(8):
        device = make_device(seed)
        a = to_bits(generator.standard_normal((16, 16)), dtype)
        b = to_bits(generator.standard_normal((16, 8)), dtype)
        c = generator.standard_normal((16, 8)).astype(np.float32)
        across = np.ascontiguousarray(b.T)  # a B register holds two rows of one column
        fragments_a = np.stack([pairs(a, G + 8 * (i % 2), 2 * T + 8 * (i // 2)) for i in range(4)], 1)
        fragments_b = np.stack([pairs(across, G, 2 * T + 8 * i) for i in range(2)], 1)
        places = [(G + 8 * (i // 2), 2 * T + i % 2) for i in range(4)]
        d = device.asarray(np.stack([c[place] for place in places], 1))
        arguments = (device.asarray(fragments_a), device.asarray(fragments_b), d)
        device.launch(of(TOYS["product"], dtype), (1, 1, 1), arguments)
        result = device.to_host(d)
        expected = from_bits(a, dtype).astype(np.float64) @ from_bits(b, dtype) + c
        for i, place in enumerate(places):
            np.testing.assert_allclose(result[:, i], expected[place], rtol=1e-5, atol=1e-5)


def test_an_infinite_or_undefined_operand_reaches_only_its_row_and_column() -> None:
    device = make_device()
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    a[4 * 3, 0] = 0x7FC0  # row 3, column 0
    d = device.zeros((32, 4), np.float32)
    device.launch(TOYS["product"], (1, 1, 1), (device.asarray(a), device.asarray(b), d))
    undefined = np.isnan(device.to_host(d))
    assert undefined[G == 3, :2].all() and undefined.sum() == 8


def test_matrix_loads_hand_each_lane_its_two_elements() -> None:
    generator = np.random.default_rng(2)
    rows = generator.integers(0, 1 << 16, (32, 8), dtype=np.uint16)
    order = generator.permutation(32).astype(np.int32)
    device = make_device(3)
    out = device.empty(384, np.uint32)
    arguments = (device.asarray(np.ascontiguousarray(rows).view(np.uint32)), device.asarray(order), out)
    device.launch(TOYS["matrices"], (1, 1, 1), arguments)
    matrices = rows[order].reshape(4, 8, 8)
    straight = np.stack([pairs(matrix, G, 2 * T) for matrix in matrices], 1)
    transposed = np.stack([pairs(np.ascontiguousarray(matrix.T), G, 2 * T) for matrix in matrices], 1)
    loaded = device.to_host(out)
    np.testing.assert_array_equal(loaded[:128].reshape(32, 4), straight)
    np.testing.assert_array_equal(loaded[128:256].reshape(32, 4), transposed)
    np.testing.assert_array_equal(loaded[256:320].reshape(32, 2), straight[:, :2])
    np.testing.assert_array_equal(loaded[320:].reshape(32, 2), transposed[:, :2])


@pytest.mark.parametrize("mask", (1, 16, 31))
def test_shuffles_and_votes_reach_the_lanes_of_the_own_warp(mask: int) -> None:
    device = make_device(mask)
    out = device.empty((2, 32, 5), np.uint32)
    device.launch(TOYS["exchange"], (1, 1, 1), (np.int32(mask), out))
    said = device.to_host(out)
    for warp in range(2):
        np.testing.assert_array_equal(said[warp, :, 0], LANES ^ mask)
        np.testing.assert_array_equal(said[warp, :, 1].view(np.float32), 0.5 * ((LANES * 7 + 3) % 32))
        np.testing.assert_array_equal(said[warp, :, 2], np.full(32, 1 << 3))
        np.testing.assert_array_equal(said[warp, :, 3], np.full(32, warp == 1))
        np.testing.assert_array_equal(said[warp, :, 4], np.zeros(32))


@pytest.mark.parametrize("dtype", TYPES)
def test_conversions_round_to_nearest_even(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    exact = from_bits(every, dtype)
    generator = np.random.default_rng(4)
    with np.errstate(over="ignore", invalid="ignore"):
        middles = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
    anything = generator.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    for values in (exact, np.append(middles, np.float32(65520.0)), anything):
        device = make_device(5)
        widened, narrowed = device.empty(1 << 16, np.float32), device.empty(1 << 16, np.uint16)
        both = device.empty(1 << 16, np.int32)
        arguments = (device.asarray(values), widened, narrowed, both)
        device.launch(of(TOYS["conversion"], dtype), (1, 1, 1), arguments)
        wide, narrow = device.to_host(widened), device.to_host(narrowed)
        undefined = np.isnan(exact)
        np.testing.assert_array_equal(wide[~undefined].view(np.uint32), exact[~undefined].view(np.uint32))
        assert np.isnan(wide[undefined]).all()
        expected = np.where(np.isnan(values), np.uint16(0x7FFF), to_bits(values, dtype))
        np.testing.assert_array_equal(narrow, expected)
        assert device.to_host(both).all()


def test_approximations_at_the_edges() -> None:
    device = make_device()
    edges = np.array([0.0, -0.0, 1.0, -1.0, 4.0, 127.0, 128.0, -126.0, -127.0, np.inf, -np.inf, 1e-40, 2.0**127], "f4")
    out = device.empty((32, 4), np.float32)
    device.launch(TOYS["arithmetic"], (1, 1, 1), (device.asarray(np.resize(edges, 32)), out))
    power, root, quotient, half = device.to_host(out)[: edges.size].T
    expected = [1, 1, 2, 0.5, 16, 2.0**127, np.inf, 2.0**-126, 0, np.inf, 0, 1, np.inf]
    np.testing.assert_array_equal(power, np.array(expected, "f4"))
    np.testing.assert_allclose(root[[2, 4]], [1, 0.5], rtol=1e-6)
    assert root[0] == np.inf and np.isnan(root[3]) and root[9] == 0
    assert root[11] == np.inf, "a denormal is zero here"
    assert quotient[4] == 0.25 and quotient[12] == 0, "a denominator above 2^126 gives zero"
    assert half[11] == 0 and half[2] == 0.5
    assert np.float32(1e-40) * np.float32(0.5) > 0, "denormals live again outside the launch"


@emulator_only
def test_a_copy_is_poison_until_its_group_is_waited_for() -> None:
    data = np.random.default_rng(6).integers(1, 1 << 30, 32 * 8, dtype=np.uint32)
    first, second = data.reshape(32, 2, 4)[:, 0], data.reshape(32, 2, 4)[:, 1]
    landed = np.stack([first, second, first, np.zeros_like(first), first], 1)  # [lanes, slots, words]
    early = late = 0
    for seed in range(16):
        device = Emulator(seed)
        out = device.empty((32, 4, 5, 4), np.uint32)  # [lanes, looks, slots, words]
        device.launch(TOYS["copies"], (1, 1, 1), (device.asarray(data), out))
        for look, certain in enumerate((0, 2, 4, 5)):
            seen = out[:, look]
            arrived = (seen == landed).all(2)
            assert (arrived | (seen == 0xFFFFFFFF).all(2)).all(), "a copy lands whole or not at all"
            assert arrived[:, :certain].all()
            early += int(arrived[:, certain:].sum())
            late += int((~arrived[:, certain:]).sum())
    assert late > early > 0


@pytest.mark.parametrize("architecture", ("sm_80", "sm_90", "sm_90a"))
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", TOYS)
def test_the_same_text_compiles_for_a_gpu(name: str, dtype: str, architecture: str) -> None:
    nvrtc: Any
    try:
        nvrtc = import_module("cupy_backends.cuda.libs.nvrtc")
        nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NVRTC is missing: {error}")
    kernel = of(TOYS[name], dtype)
    program = nvrtc.createProgram(device_text(kernel), kernel.source, (), ())
    try:
        nvrtc.compileProgram(program, (*compile_options(kernel), "-ftz=true", f"-arch={architecture}"))
    except nvrtc.NVRTCError:
        raise AssertionError(nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


def test_both_headers_offer_the_same_names() -> None:
    device = (SOURCES / "intrinsics.cuh").read_text()
    names = set(re.findall(r"^DEVICE [\w ]+?[ *]+(\w+)(?:<\w+>)?\(", device, re.MULTILINE))
    assert {"copy_async_wait", "mma_16x8x16", "shared_memory", "from_float", "load_relaxed_16"} <= names
    host = (HOST / "intrinsics.cuh").read_text()
    names.remove("shared_address")  # a step of the device's own functions
    assert not [name for name in names if not re.search(rf"^inline .*\b{name}(?:<\w+>)?\(", host, re.MULTILINE)]
