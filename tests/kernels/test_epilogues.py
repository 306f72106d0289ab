"""What stands before and after the products: norm, residual, SwiGLU, queries, keys and values, logits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cuda.gemm import Plan, interleave_gate_up
from engine.backends.cuda.tiles import FlatGemm, Fusion, Gemv, Variant
from tests.kernels.devices import make_device
from tests.kernels.emulator import from_bits, to_bits
from tests.kernels.gemm_operands import Launch, Operands, check, model_segment

GEMV = Gemv(4, rows=64, warp_rows=4, inner_warps=1, blocks=1, unroll=1)
FLAT = FlatGemm(16, rows=64, warp_rows=32, inner_warps=2, blocks=1, inner_tile=64, stages=3)
WIDE = FlatGemm(64, rows=64, warp_rows=32, inner_warps=2, blocks=1, inner_tile=64, stages=4)
LARGE_HEADS = FlatGemm(8, rows=128, warp_rows=64, inner_warps=4, blocks=1, inner_tile=64, stages=4)
LARGE_HEADS_GEMV = Gemv(2, rows=128, warp_rows=8, inner_warps=1, blocks=1, unroll=1)


def run_and_check(variant: Variant, fusion: Fusion, data: st.DataObject, dtype: str, **options: object) -> None:
    tokens = data.draw(st.integers(1, variant.tokens), "tokens")
    rows = data.draw(st.integers(1, 320), "rows")
    inner = 8 * data.draw(st.integers(1, 40), "inner / 8")
    splits = data.draw(st.integers(1, 4), "splits")
    seed = data.draw(st.integers(0, 2**32 - 1), "seed")
    segment = model_segment(fusion, rows, inner, dtype, **options)
    operands = Operands.draw(segment, tokens, seed)
    device = make_device(seed)
    plan = Plan.of(segment, variant, device.multiprocessors, splits)
    check(Launch(device, plan, operands).run(), operands, plan)


@pytest.mark.parametrize("variant", [GEMV, FLAT, WIDE], ids=["gemv", "flat", "wide"])
@pytest.mark.parametrize("fusion", [Fusion.PLAIN, Fusion.STORE, Fusion.RESIDUAL, Fusion.SWIGLU])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_epilogue_gives_the_reference(variant: Variant, fusion: Fusion, dtype: str, data: st.DataObject) -> None:
    run_and_check(variant, fusion, data, dtype, norm=fusion is not Fusion.RESIDUAL)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        (GEMV, {"bias": True}),
        (FLAT, {"head_norm": True}),
        (FLAT, {}),
        (WIDE, {"bias": True, "head_norm": True}),
        (LARGE_HEADS, {"head_norm": True, "head_dim": 128}),
        (LARGE_HEADS_GEMV, {"bias": True, "head_dim": 128}),
    ],
    ids=["gemv-bias", "flat-head_norm", "flat", "wide-both", "flat-128", "gemv-128"],
)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_queries_keys_and_values_go_to_their_places_and_nothing_else_changes(
    variant: Variant, options: dict[str, object], dtype: str, data: st.DataObject
) -> None:
    run_and_check(variant, Fusion.QKV, data, dtype, norm=True, **options)


@pytest.mark.parametrize("variant", [GEMV, FLAT], ids=["gemv", "flat"])
def test_equal_logits_choose_the_lowest_index(variant: Variant) -> None:
    segment = model_segment(Fusion.PLAIN, 300, 64, "bf16")
    operands = Operands.draw(segment, 4, seed=1)
    weights = operands.weights.copy()
    weights[[37, 70, 71, 299]] = to_bits(np.sign(from_bits(operands.inputs[0], "bf16")), "bf16")  # the greatest product
    inputs = operands.inputs.copy()
    inputs[1] = 0  # all logits equal
    operands = replace(operands, weights=weights, inputs=inputs)
    device = make_device(3)
    plan = Plan.of(segment, variant, device.multiprocessors, 2)
    results = Launch(device, plan, operands).run()
    assert list(results["next_tokens"][:2]) == [37, 0]


def test_a_token_of_nan_spoils_no_other_token_and_still_chooses_a_word() -> None:
    segment = model_segment(Fusion.PLAIN, 200, 128, "fp16", norm=True)
    operands = Operands.draw(segment, 5, seed=2)
    inputs = operands.inputs.copy()
    inputs[2] = to_bits(np.nan, "fp16")
    device = make_device(4)
    plan = Plan.of(segment, FLAT, device.multiprocessors, 2)
    results = Launch(device, plan, replace(operands, inputs=inputs)).run()
    others = np.array([0, 1, 3, 4])
    reference = operands.product[others]
    assert np.abs(results["logits"][others] - reference).max() <= 2e-3 * np.abs(reference).max()
    assert 0 <= results["next_tokens"][2] < 200


def test_gates_of_great_size_saturate() -> None:
    segment = model_segment(Fusion.SWIGLU, 64, 64, "bf16")
    operands = Operands.draw(segment, 3, seed=5)
    weights = operands.weights.reshape(-1, 2, 8, 64).copy()
    weights[:, 0] = to_bits(from_bits(weights[:, 0], "bf16") * 300, "bf16")
    operands = replace(operands, weights=weights.reshape(-1, 64))
    device = make_device(5)
    plan = Plan.of(segment, FLAT, device.multiprocessors, 1)
    results = Launch(device, plan, operands).run()
    assert np.abs(operands.product).max() > 1000
    with np.errstate(over="ignore"):
        check(results, operands, plan)


def test_a_batch_of_padded_rows_alone_writes_nothing() -> None:
    segment = model_segment(Fusion.QKV, 256, 64, "bf16", norm=True, head_norm=True)
    operands = Operands.draw(segment, 6, seed=6)
    operands = replace(operands, lengths=np.zeros(6, np.int32), block_tables=np.full_like(operands.block_tables, 2**30))
    device = make_device(6)
    plan = Plan.of(segment, FLAT, device.multiprocessors, 1)
    check(Launch(device, plan, operands).run(), operands, plan)


def test_gate_and_up_alternate_by_eight() -> None:
    gate, up = np.arange(16)[:, None], 100 + np.arange(16)[:, None]
    mixed = interleave_gate_up(gate, up)[:, 0]
    assert list(mixed) == [*range(8), *range(100, 108), *range(8, 16), *range(108, 116)]
    with pytest.raises(ValueError, match="multiple of 8"):
        interleave_gate_up(gate[:12], up[:12])
