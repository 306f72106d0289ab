"""The kernels beside cuBLAS against float64, over random shapes and schedules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cuda.elementwise import (
    DTYPES,
    Attachments,
    embed,
    instantiations,
    rms_norm,
    rotate_and_append,
    square_partials,
    swiglu,
)
from engine.backends.cuda.kernels import Device, Kernel
from tests.kernels.devices import emulator_only, make_device
from tests.kernels.emulator import EmulationError, Emulator, from_bits, planted, to_bits

Floats = npt.NDArray[np.float64]
TOLERANCE = {"bf16": 2e-2, "fp16": 2e-3}
EPSILON = 1e-5

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
rows_of_a_batch = st.integers(1, 9)
widths = st.integers(1, 300).map(lambda vectors: 8 * vectors)


def rounded(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: str
) -> tuple[npt.NDArray[np.uint16], Floats]:
    """Random values as bits, and what those bits stand for."""
    bits = to_bits(generator.normal(size=shape), dtype)
    return bits, from_bits(bits, dtype).astype(np.float64)


def assert_close(actual: npt.NDArray[Any], reference: Floats, tolerance: float) -> None:
    """max|error| / max|reference| a row, the last axis."""
    error = np.abs(actual.astype(np.float64) - reference).max(axis=-1)
    largest = np.abs(reference).max(axis=-1)
    assert np.all(error <= tolerance * largest), f"{np.max(error / np.maximum(largest, 1e-300))} > {tolerance}"


def norm_reference(hidden: Floats, weight: Floats) -> Floats:
    return hidden / np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + EPSILON) * weight


class Faulty:
    """A device on which one place of one source is wrong."""

    def __init__(self, device: Emulator, source: str, old: str, new: str) -> None:
        self._device = device
        self._source, self._old, self._new = source, old, new

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Any) -> None:
        faulty = planted(kernel, self._old, self._new) if kernel.source == self._source else kernel
        self._device.launch(faulty, grid, arguments)


def check_norm(device: Device, generator: np.random.Generator, dtype: str, rows: int, width: int) -> None:
    hidden_bits, hidden = rounded(generator, (rows, width), dtype)
    weight_bits, weight = rounded(generator, (width,), dtype)
    out = device.empty((rows, width), np.uint16)
    rms_norm(device, dtype, device.asarray(hidden_bits), device.asarray(weight_bits), out, EPSILON)
    assert_close(from_bits(device.to_host(out), dtype), norm_reference(hidden, weight), TOLERANCE[dtype])

    partials = device.empty((1, rows), np.float32)
    square_partials(device, dtype, device.asarray(hidden_bits), partials)
    np.testing.assert_allclose(device.to_host(partials)[0], (hidden**2).sum(axis=1), rtol=1e-5)


def check_embed(device: Device, generator: np.random.Generator, dtype: str, rows: int, width: int) -> None:
    vocabulary = 37
    table_bits, table = rounded(generator, (vocabulary, width), dtype)
    lengths = generator.integers(0, 3, rows).astype(np.int32)
    tokens = generator.integers(0, vocabulary, rows).astype(np.int32)
    tokens[lengths == 0] = -1  # not looked at
    hidden = device.empty((rows, width), np.uint16)
    partials = device.empty((1, rows), np.float32)
    embed(device, dtype, device.asarray(tokens), device.asarray(lengths), device.asarray(table_bits), hidden, partials)
    used = lengths > 0
    np.testing.assert_array_equal(device.to_host(hidden), np.where(used[:, None], table_bits[tokens], 0))
    expected = np.where(used, (table[tokens] ** 2).sum(axis=1), 0.0)
    np.testing.assert_allclose(device.to_host(partials)[0], expected, rtol=1e-5)


def check_swiglu(device: Device, generator: np.random.Generator, dtype: str, rows: int, width: int) -> None:
    values = generator.normal(size=(rows, width // 8, 2, 8)) * 4
    values[0, 0, 0, :2] = -200, 200  # exp leaves float32, the result does not
    bits = to_bits(values, dtype)
    exact = from_bits(bits, dtype).astype(np.float64)
    gate, up = exact[:, :, 0].reshape(rows, width), exact[:, :, 1].reshape(rows, width)
    out = device.empty((rows, width), np.uint16)
    swiglu(device, dtype, device.asarray(bits.reshape(rows, 2 * width)), out)
    with np.errstate(over="ignore"):
        assert_close(from_bits(device.to_host(out), dtype), gate / (1 + np.exp(-gate)) * up, TOLERANCE[dtype])


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    head_dim: int
    bias: bool
    norms: bool


shapes_of_heads = st.builds(
    lambda kv_heads, group, head_dim, bias, norms: Heads(kv_heads * group, kv_heads, head_dim, bias, norms),
    st.integers(1, 3),
    st.sampled_from([1, 3, 4, 7, 8, 9]),
    st.sampled_from([64, 128]),
    st.booleans(),
    st.booleans(),
)


def check_rope(device: Device, generator: np.random.Generator, dtype: str, rows: int, shape: Heads) -> None:
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    all_heads = heads + 2 * kv_heads
    max_blocks = int(generator.integers(1, 5))
    lengths = generator.integers(1, 16 * max_blocks + 1, rows).astype(np.int32)
    lengths[generator.random(rows) < 0.3] = 0
    blocks = rows * max_blocks
    block_tables = generator.permutation(blocks).astype(np.int32).reshape(rows, max_blocks)
    qkv_bits, qkv = rounded(generator, (rows, all_heads * head_dim), dtype)
    bias_bits, bias = rounded(generator, (all_heads * head_dim,), dtype)
    norm_bits, norms = rounded(generator, (2, head_dim), dtype)
    angles = np.arange(16 * max_blocks)[:, None] * 10_000.0 ** (-np.arange(head_dim // 2) * 2 / head_dim)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    before, _ = rounded(generator, (blocks, 2, kv_heads, 16, head_dim), dtype)

    q = device.empty((rows, heads, head_dim), np.uint16)
    cache = device.asarray(before)
    rotate_and_append(
        device,
        dtype,
        device.asarray(qkv_bits),
        Attachments(
            device.asarray(bias_bits) if shape.bias else None,
            device.asarray(norm_bits[0]) if shape.norms else None,
            device.asarray(norm_bits[1]) if shape.norms else None,
        ),
        device.asarray(cosine),
        device.asarray(sine),
        device.asarray(lengths),
        device.asarray(block_tables),
        q,
        cache,
        EPSILON,
    )

    expected = (qkv + bias if shape.bias else qkv).reshape(rows, all_heads, head_dim)
    if shape.norms:
        expected[:, :heads] = norm_reference(expected[:, :heads], norms[0])
        expected[:, heads:-kv_heads] = norm_reference(expected[:, heads:-kv_heads], norms[1])
    positions = np.maximum(lengths - 1, 0)
    turned = expected[:, :-kv_heads]
    first, second = np.split(turned, 2, axis=-1)
    c = cosine[positions][:, None].astype(np.float64)
    s = sine[positions][:, None].astype(np.float64)
    turned = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
    used = lengths > 0
    assert_close(
        from_bits(device.to_host(q), dtype), np.where(used[:, None, None], turned[:, :heads], 0), TOLERANCE[dtype]
    )
    after = device.to_host(cache)
    untouched = np.ones(before.shape[:1] + before.shape[3:4], bool)  # [blocks, tokens of a block]
    for row in np.flatnonzero(used):
        block, slot = block_tables[row, positions[row] // 16], positions[row] % 16
        untouched[block, slot] = False
        written = from_bits(after[block, :, :, slot], dtype)
        assert_close(written[0], turned[row, heads:], TOLERANCE[dtype])
        assert_close(written[1], expected[row, -kv_heads:], TOLERANCE[dtype])
    np.testing.assert_array_equal(after.transpose(0, 3, 1, 2, 4)[untouched], before.transpose(0, 3, 1, 2, 4)[untouched])


ROWS_CHECKS: dict[str, Callable[[Device, np.random.Generator, str, int, int], None]] = {
    "norm": check_norm,
    "embed": check_embed,
    "swiglu": check_swiglu,
}


@pytest.mark.parametrize("check", ROWS_CHECKS.values(), ids=ROWS_CHECKS)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, dtype=dtypes, rows=rows_of_a_batch, width=widths)
def test_rows_against_float64(check: Any, seed: int, dtype: str, rows: int, width: int) -> None:
    check(make_device(seed), np.random.default_rng(seed), dtype, rows, width)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, dtype=dtypes, rows=rows_of_a_batch, shape=shapes_of_heads)
def test_rope_and_append_against_float64(seed: int, dtype: str, rows: int, shape: Heads) -> None:
    check_rope(make_device(seed), np.random.default_rng(seed), dtype, rows, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_schedule_gives_the_same_bits(dtype: str) -> None:
    generator = np.random.default_rng(1)
    hidden, _ = rounded(generator, (3, 4096), dtype)
    weight, _ = rounded(generator, (4096,), dtype)
    results = set()
    for seed in range(20):
        device = make_device(seed)
        out = device.empty(hidden.shape, np.uint16)
        rms_norm(device, dtype, device.asarray(hidden), device.asarray(weight), out, EPSILON)
        results.add(device.to_host(out).tobytes())
    assert len(results) == 1


def test_a_row_of_zeros_stays_zero() -> None:
    device = make_device()
    out = device.empty((1, 64), np.uint16)
    ones = device.asarray(to_bits(np.ones(64), "bf16"))
    rms_norm(device, "bf16", device.zeros((1, 64), np.uint16), ones, out, EPSILON)
    assert not device.to_host(out).any()


@dataclass(frozen=True)
class Fault:
    name: str
    check: Callable[[Any, np.random.Generator, str, int, Any], None]
    shape: int | Heads
    source: str
    old: str
    new: str


FAULTS = [
    Fault("the norm's sum read too early", check_norm, 768, "norm.cu", "}\n    sync_block();", "}\n"),
    Fault(
        "the norm's tail dropped",
        check_norm,
        72,
        "norm.cu",
        "column < width; column += 8 * blockDim.x) {\n        sum",
        "column + 8 < width; column += 8 * blockDim.x) {\n        sum",
    ),
    Fault(
        "a padded row's token looked up",
        check_embed,
        64,
        "embedding.cu",
        "used ? load_streaming",
        "true ? load_streaming",
    ),
    Fault("the gate taken for up", check_swiglu, 64, "swiglu.cu", "gate_up + 16 * vector + 8", "gate_up + 16 * vector"),
    Fault(
        "the turn's sign",
        check_rope,
        Heads(4, 1, 64, True, True),
        "rope.cu",
        "first_half ? -s4[j] : s4[j]",
        "first_half ? s4[j] : -s4[j]",
    ),
    Fault(
        "the append one token late",
        check_rope,
        Heads(4, 1, 64, False, False),
        "rope.cu",
        "length > 0 ? length - 1 : 0",
        "length",
    ),
    Fault(
        "threads past the row's end leave before the shuffles",
        check_rope,
        Heads(3, 1, 64, False, True),
        "rope.cu",
        "    const int head = vector / LANES;",
        "    if (!inside) return;\n    const int head = vector / LANES;",
    ),
    Fault(
        "a padded row appended",
        check_rope,
        Heads(4, 1, 128, False, False),
        "rope.cu",
        "inside && !is_q && length > 0",
        "inside && !is_q",
    ),
]


@emulator_only
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault) -> None:
    fault.check(Emulator(0), np.random.default_rng(0), "bf16", 9, fault.shape)
    caught = 0
    for seed in range(5):
        device = Faulty(Emulator(seed), fault.source, fault.old, fault.new)
        try:
            fault.check(device, np.random.default_rng(seed), "bf16", 9, fault.shape)
        except (AssertionError, EmulationError):
            caught += 1
    assert caught


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: swiglu(d, "bf16", d.zeros((1, 24), np.uint16), d.zeros((1, 12), np.uint16)), "out: rows of 12"),
        (lambda d: Attachments(q_norm=d.zeros(64, np.uint16)), "q_norm and k_norm"),
        (lambda d: rope_of(d, head_dim=96, width=288), "head_dim: 96, must be one of 64, 128"),
        (lambda d: rope_of(d, head_dim=64, width=256), "qkv: rows of 256, 1 .* make 192"),
    ],
)
def test_a_shape_that_no_kernel_computes_is_refused(call: Callable[[Device], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_device())


def rope_of(device: Device, head_dim: int, width: int) -> None:
    def zeros(*shape: int) -> Any:
        return device.zeros(shape, np.uint16)

    tables = device.zeros((16, head_dim // 2), np.float32)
    integers = device.zeros((1, 1), np.int32)
    q, cache = zeros(1, 1, head_dim), zeros(1, 2, 1, 16, head_dim)
    rotate_and_append(
        device, "bf16", zeros(1, width), Attachments(), tables, tables, integers, integers, q, cache, EPSILON
    )


def test_every_kernel_is_listed_once() -> None:
    listed = list(instantiations())
    assert len(listed) == len(set(listed)) == 12
