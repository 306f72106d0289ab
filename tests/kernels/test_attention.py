from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cuda.attention import Attention, plan_splits
from engine.backends.cuda.kernels import FloatType
from tests.kernels.attention_batch import (
    TOLERANCES,
    Batch,
    Run,
    clearly_inside,
    clearly_outside,
    errors,
    make_batch,
)
from tests.kernels.devices import make_device
from tests.kernels.emulator import from_bits, to_bits

DTYPES = get_args(FloatType)
HEAD_DIMS = (64, 128)
RATIOS = (1, 3, 4, 7, 8, 9, 16)
every_kernel = pytest.mark.parametrize("dtype, head_dim", [(dtype, dim) for dtype in DTYPES for dim in HEAD_DIMS])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_softmax = pytest.mark.parametrize("phi", [3.0, None], ids=["unified", "synchronised"])


def check(batch: Batch, run: Run, phi: float | None, recomputed: int = 0) -> np.ndarray:
    """One launch within the tolerance, with so many rows computed again -> its bits."""
    before = run.attention.recomputed_rows()
    out = run(phi)
    assert errors(batch, out).max() <= TOLERANCES[batch.dtype]
    assert run.attention.recomputed_rows() - before == recomputed
    return out


@every_softmax
@every_kernel
def test_every_ratio_is_right_and_the_same_in_every_schedule(
    dtype: FloatType, head_dim: int, phi: float | None
) -> None:
    for ratio in RATIOS:
        batch = make_batch(
            np.random.default_rng(ratio), dtype, 2 * ratio, 2, head_dim, [77, 0, 5, 100], shared_blocks=2
        )
        outputs = [check(batch, Run(make_device(seed, multiprocessors=16), batch), phi) for seed in range(20)]
        assert all((out == outputs[0]).all() for out in outputs)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    head_dim=st.sampled_from(HEAD_DIMS),
    ratio=st.integers(1, 16),
    kv_heads=st.integers(1, 3),
    lengths=st.lists(st.sampled_from((0, 1, 15, 16, 17, 63, 64, 65)) | st.integers(0, 1500), min_size=1, max_size=8),
    multiprocessors=st.integers(1, 150),
    shared_blocks=st.integers(0, 4),
    phi=st.none() | st.floats(-12.0, 12.0),
)
def test_random_shapes(
    seed: int,
    dtype: FloatType,
    head_dim: int,
    ratio: int,
    kv_heads: int,
    lengths: list[int],
    multiprocessors: int,
    shared_blocks: int,
    phi: float | None,
) -> None:
    generator = np.random.default_rng(seed)
    heads = ratio * kv_heads
    batch = make_batch(generator, dtype, heads, kv_heads, head_dim, lengths, shared_blocks=shared_blocks)
    run = Run(make_device(seed, multiprocessors), batch)
    assert errors(batch, run(phi)).max() <= TOLERANCES[dtype]
    least = 0 if phi is None else clearly_outside(batch, phi).sum()
    most = 0 if phi is None else (~clearly_inside(batch, phi)).sum()
    assert least <= run.attention.recomputed_rows() <= most


@every_softmax
@every_kernel
@pytest.mark.parametrize("lengths", [[4999], [4097, 1, 5000]], ids=str)
def test_long_odd_contexts(dtype: FloatType, head_dim: int, lengths: list[int], phi: float | None) -> None:
    batch = make_batch(np.random.default_rng(1), dtype, 4, 1, head_dim, lengths)
    for seed, multiprocessors in enumerate((13, 200)):
        run = Run(make_device(seed, multiprocessors), batch)
        assert run.attention.splits(batch.sequences) > 1
        check(batch, run, phi)


@every_softmax
def test_a_batch_of_64_with_one_split_and_with_several(phi: float | None) -> None:
    lengths = [0, 250, *range(1, 125, 2)]
    batch = make_batch(np.random.default_rng(2), "bf16", 3, 1, 64, lengths, shared_blocks=3)
    for seed, multiprocessors in enumerate((8, 400)):
        run = Run(make_device(seed, multiprocessors), batch)
        assert run.attention.splits(64) == (1 if multiprocessors == 8 else 4)
        check(batch, run, phi)


@every_softmax
@every_dtype
def test_a_launch_repeated_gives_the_same_bits_and_leaves_the_counters_ready(
    dtype: FloatType, phi: float | None
) -> None:
    batch = make_batch(np.random.default_rng(3), dtype, 8, 2, 64, [300, 129, 0, 64])
    run = Run(make_device(0, multiprocessors=40), batch)
    outputs = [check(batch, run, phi) for _ in range(3)]
    assert all((out == outputs[0]).all() for out in outputs)


def test_one_attention_serves_batches_of_every_size_up_to_its_largest() -> None:
    device = make_device(4, multiprocessors=16)
    attention = Attention(device, "bf16", 8, 2, 64, max_sequences=5, max_context_tokens=1000)
    for sequences in (1, 5, 2, 3):
        batch = make_batch(np.random.default_rng(sequences), "bf16", 8, 2, 64, [333, 16, 1, 0, 90][:sequences])
        check(batch, Run(device, batch, attention), 2.0)


@every_kernel
def test_rows_that_leave_the_range_are_computed_again_and_only_they(dtype: FloatType, head_dim: int) -> None:
    """Above, below, and in range, in the same tile; one sequence of one split, one of several, one of padding."""
    heads, lengths = 6, [200, 9, 0, 77]
    far = 40.0 if dtype == "fp16" else 130.0
    shift = np.zeros((len(lengths), heads))
    shift[0, [1, 4]], shift[0, 5], shift[1, 0], shift[2] = far, -far, far, far
    batch = make_batch(np.random.default_rng(5), dtype, heads, 2, head_dim, lengths, shift=shift)
    outside = clearly_outside(batch, 3.0)
    assert outside.sum() == 4
    assert (outside ^ clearly_inside(batch, 3.0)).all()
    tame = make_batch(np.random.default_rng(5), dtype, heads, 2, head_dim, lengths, shift=np.where(outside, 0.0, shift))
    for seed in range(20):
        out = check(batch, Run(make_device(seed, multiprocessors=12), batch), 3.0, recomputed=4)
        # The others are as if their neighbours had never left the range.
        undisturbed = Run(make_device(seed, multiprocessors=12), tame)(3.0)
        assert (out == undisturbed)[~outside].all()
        # These are the synchronised kernel's, over the whole context at once.
        synchronised = Run(make_device(seed, multiprocessors=1), batch)(None)
        assert (out == synchronised)[outside].all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 8.0])
@every_dtype
def test_every_row_is_right_on_either_side_of_the_range_s_edges(dtype: FloatType, spread: float) -> None:
    reach = 30.0 if dtype == "fp16" else 110.0
    shift = np.linspace(-reach, reach, 12 * 32).reshape(12, 32)
    lengths = [1, 2, 15, 16, 17, 31, 40, 64, 100, 130, 200, 250]
    batch = make_batch(np.random.default_rng(6), dtype, 32, 2, 64, lengths, shift=shift, spread=spread)
    run = Run(make_device(0, multiprocessors=64), batch)
    outside, inside = clearly_outside(batch, 0.0), clearly_inside(batch, 0.0)
    out = run(0.0)
    assert errors(batch, out).max() <= TOLERANCES[dtype]
    assert outside.sum() > 100
    assert inside.sum() > 50
    assert outside.sum() <= run.attention.recomputed_rows() <= (~inside).sum()


@pytest.mark.parametrize("phi", [-1000.0, 1000.0, float("nan"), float("inf"), None])
@every_dtype
def test_a_phi_far_off_costs_time_and_nothing_else(dtype: FloatType, phi: float | None) -> None:
    batch = make_batch(np.random.default_rng(7), dtype, 4, 2, 128, [70, 0, 3])
    run = Run(make_device(0), batch)
    check(batch, run, phi, recomputed=0 if phi is None else 8)


@pytest.mark.parametrize("phi", [None, 0.0])
@every_dtype
def test_equal_logits_give_the_mean_of_the_values(dtype: FloatType, phi: float | None) -> None:
    batch = make_batch(np.random.default_rng(8), dtype, 4, 1, 64, [129], spread=0.0)
    out = check(batch, Run(make_device(0), batch), phi)
    mean = batch.values(0).mean(axis=0)
    assert np.abs(from_bits(out[0], dtype) - mean).max() <= TOLERANCES[dtype] * np.abs(mean).max()


@pytest.mark.parametrize("phi", [None, 3.0])
@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
@every_dtype
def test_logits_far_from_zero(dtype: FloatType, shift: float, phi: float | None) -> None:
    batch = make_batch(np.random.default_rng(9), dtype, 3, 1, 64, [90], shift=shift)
    check(batch, Run(make_device(0), batch), phi, recomputed=0 if phi is None else 3)


@pytest.mark.parametrize("phi", [None, 0.0])
@every_dtype
def test_denormal_queries_and_values(dtype: FloatType, phi: float | None) -> None:
    """fp16 has denormals below 6.1e-5, which count; bf16's are those of float, which may become zero."""
    batch = make_batch(np.random.default_rng(10), dtype, 3, 1, 64, [90], spread=1e-6, value_scale=3e-4)
    batch.query[..., 1] = 3
    batch.cache[batch.block_tables[0, :5], ..., 2] = 5
    check(batch, Run(make_device(0), batch), phi)


def test_the_far_tail_of_a_peaked_fp16_softmax_counts() -> None:
    """2000 keys at 2^-25.4 of the one greatest, whose value is zero: a P that ends at 1 would round them all away."""
    batch = make_batch(np.random.default_rng(11), "fp16", 1, 1, 64, [2000])
    blocks = batch.block_tables[0, :125]
    batch.query[...] = 0
    batch.query[0, 0, 1] = to_bits(8.0, "fp16")
    batch.cache[blocks, 0, 0, :, 1] = 0
    batch.cache[blocks, 1, 0] = to_bits(1000.0, "fp16")
    batch.cache[blocks[0], 0, 0, 0, 1] = to_bits(17.6, "fp16")
    batch.cache[blocks[0], 1, 0, 0] = 0
    check(batch, Run(make_device(0), batch), None)
    check(batch, Run(make_device(0), batch), 10.0)


def test_splits_fill_the_device_where_the_context_is_long_enough() -> None:
    for multiprocessors in (1, 8, 108, 132, 144):
        for items in range(1, 700):
            splits = plan_splits(multiprocessors, items, longest_blocks=4096)
            assert splits * items >= multiprocessors
            assert splits == 1 or splits * items <= max(2 * multiprocessors, multiprocessors + items)
            assert plan_splits(multiprocessors, items, longest_blocks=1) == 1
            assert plan_splits(multiprocessors, items, longest_blocks=9) <= 3


@pytest.mark.parametrize(
    "change, named",
    [
        ({"dtype": "fp32"}, "dtype must be one of bf16, fp16"),
        ({"head_dim": 80}, "head_dim must be one of 64, 128, got 80"),
        ({"heads": 9}, "heads must be 1 to 16 times kv_heads"),
        ({"heads": 34}, "heads must be 1 to 16 times kv_heads"),
        ({"heads": 0}, "heads must be"),
        ({"kv_heads": 0}, "heads must be"),
        ({"max_sequences": 0}, "max_sequences and max_context_tokens must be at least 1"),
        ({"max_context_tokens": 0}, "max_sequences and max_context_tokens must be at least 1"),
    ],
)
def test_a_shape_that_the_kernels_do_not_serve_is_refused(change: dict[str, object], named: str) -> None:
    good = {"dtype": "bf16", "heads": 8, "kv_heads": 2, "head_dim": 64, "max_sequences": 2, "max_context_tokens": 64}
    with pytest.raises(ValueError, match=named):
        Attention(make_device(0), **{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, shape, dtype",
    [
        ("out", (2, 256), np.uint16),
        ("query", (2, 8, 128), np.uint16),
        ("cache", (4, 2, 2, 16, 64), np.float32),
        ("block_tables", (2,), np.int32),
        ("lengths", (2,), np.int64),
        ("lengths", (1,), np.int32),
        ("phi", (2,), np.float32),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(name: str, shape: tuple[int, ...], dtype: type) -> None:
    device = make_device(0)
    attention = Attention(device, "bf16", 8, 2, 64, max_sequences=2, max_context_tokens=64)
    arrays = {
        "out": device.zeros((2, 512), np.uint16),
        "query": device.zeros((2, 8, 64), np.uint16),
        "cache": device.zeros((4, 2, 2, 16, 64), np.uint16),
        "block_tables": device.zeros((2, 4), np.int32),
        "lengths": device.zeros(2, np.int32),
        "phi": device.zeros(8, np.float32),
    }
    with pytest.raises(ValueError, match=name if shape != (1,) else "rows"):
        attention.launch(**{**arrays, name: device.zeros(shape, dtype)}, sequences=2)
    with pytest.raises(ValueError, match="sequences must be between 1 and 2, got 3"):
        attention.launch(**arrays, sequences=3)
