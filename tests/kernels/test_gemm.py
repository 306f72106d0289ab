"""The products themselves: shapes, tails, splits, schedules, and what a plan refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cuda import gemm
from engine.backends.cuda.gemm import Plan, Workspace
from engine.backends.cuda.tiles import FLAT_TOKENS, FlatGemm, Fusion, Gemv, Segment, Variant, choose_splits, variants
from tests.kernels.devices import make_device
from tests.kernels.gemm_operands import Launch, Operands, check, model_segment

H200_MULTIPROCESSORS = 132
# Each parameter of a tile at its ends: one warp a row group and several, two stages and more, a token or all.
TILES: dict[str, Variant] = {
    "gemv-1": Gemv(1, rows=16, warp_rows=4, inner_warps=2, blocks=2, unroll=2),
    "gemv-2": Gemv(2, rows=32, warp_rows=8, inner_warps=1, blocks=1, unroll=1),
    "gemv-4": Gemv(4, rows=48, warp_rows=4, inner_warps=1, blocks=1, unroll=2),
    "flat-8": FlatGemm(8, rows=16, warp_rows=16, inner_warps=4, blocks=1, inner_tile=128, stages=2),
    "flat-8-serial": FlatGemm(8, rows=128, warp_rows=16, inner_warps=1, blocks=1, inner_tile=64, stages=5),
    "flat-16": FlatGemm(16, rows=64, warp_rows=32, inner_warps=2, blocks=1, inner_tile=64, stages=3),
    "flat-32": FlatGemm(32, rows=32, warp_rows=32, inner_warps=4, blocks=1, inner_tile=128, stages=4),
    "flat-64": FlatGemm(64, rows=64, warp_rows=32, inner_warps=2, blocks=1, inner_tile=64, stages=4),
}
SHORT = {"gemv-2": 3, "flat-8-serial": 2}  # splits of the cases below: several tiles in each, tails in the last


def short_launch(name: str, seed: int, fusion: Fusion = Fusion.STORE) -> tuple[Launch, Operands, Plan]:
    """A small case with every tail: rows, columns and tokens that fill no tile."""
    variant = TILES[name]
    segment = model_segment(fusion, 200, 424, "bf16", norm=True)
    operands = Operands.draw(segment, max(1, variant.tokens - 1), seed=0)
    device = make_device(seed)
    plan = Plan.of(segment, variant, device.multiprocessors, SHORT[name])
    return Launch(device, plan, operands), operands, plan


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", TILES)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 64),
    rows=st.integers(1, 64),
    inner=st.integers(1, 64),
    splits=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_gives_the_reference(
    name: str, dtype: str, tokens: int, rows: int, inner: int, splits: int, seed: int
) -> None:
    variant = TILES[name]
    # Without norm in one type and with it in the other: half the compilations.
    segment = model_segment(Fusion.STORE, 8 * rows, 8 * inner, dtype, norm=dtype == "fp16")
    operands = Operands.draw(segment, 1 + (tokens - 1) % variant.tokens, seed)
    device = make_device(seed)
    plan = Plan.of(segment, variant, device.multiprocessors, splits)
    check(Launch(device, plan, operands).run(), operands, plan)


@pytest.mark.parametrize("tokens", [1, 2, 4, *FLAT_TOKENS])
@pytest.mark.parametrize("head_dim", [None, 64, 128])
def test_every_tile_that_is_offered_gives_the_reference(tokens: int, head_dim: int | None) -> None:
    if head_dim is None:
        segment = model_segment(Fusion.RESIDUAL, 264, 1048, "bf16")
    else:
        segment = model_segment(Fusion.QKV, 5 * head_dim, 520, "bf16", norm=True, head_dim=head_dim)
    operands = Operands.draw(segment, tokens, seed=tokens)
    for variant in variants(segment, tokens):
        device = make_device(1, multiprocessors=16)
        plan = Plan.of(segment, variant, device.multiprocessors)
        check(Launch(device, plan, operands).run(), operands, plan)


@pytest.mark.parametrize("fusion", [Fusion.STORE, Fusion.PLAIN])
@pytest.mark.parametrize("name", SHORT)
def test_twenty_schedules_give_the_same_bits(name: str, fusion: Fusion) -> None:
    launch, operands, plan = short_launch(name, 0, fusion)
    expected = launch.run()
    check(expected, operands, plan)
    for seed in range(1, 20):
        _assert_same(short_launch(name, seed, fusion)[0].run(), expected)


@pytest.mark.parametrize(("name", "tokens"), [("gemv-4", 4), ("flat-64", 64)])
def test_two_schedules_of_a_large_product_give_the_same_bits(name: str, tokens: int) -> None:
    segment = model_segment(Fusion.STORE, 1032, 2056, "bf16", norm=True)
    operands = Operands.draw(segment, tokens, seed=7)
    results = []
    for seed in range(2):
        device = make_device(seed)
        plan = Plan.of(segment, TILES[name], H200_MULTIPROCESSORS)
        assert plan.splits > 1
        results.append(Launch(device, plan, operands).run())
        check(results[-1], operands, plan)
    _assert_same(*results)


@pytest.mark.parametrize("fusion", [Fusion.STORE, Fusion.PLAIN])
@pytest.mark.parametrize("name", SHORT)
def test_launches_leave_the_counters_as_they_found_them(name: str, fusion: Fusion) -> None:
    launch, _, _ = short_launch(name, 11, fusion)
    first = launch.run()
    for _ in range(2):
        _assert_same(launch.run(), first)
    assert not launch.arrivals().any()


def test_segments_of_different_shape_share_a_workspace() -> None:
    device = make_device(12)
    segments = [model_segment(fusion, rows, 256, "bf16") for fusion, rows in ((Fusion.PLAIN, 333), (Fusion.STORE, 64))]
    plans = [Plan.of(segment, TILES["flat-16"], 8, splits) for segment, splits in zip(segments, (2, 4), strict=True)]
    operands = [Operands.draw(segment, 9, seed=12) for segment in segments]
    launches = [Launch(device, plan, given) for plan, given in zip(plans, operands, strict=True)]
    shared = Workspace.allocate(device, plans)
    for launch in launches:
        launch.workspace = shared
    for _ in range(2):
        for launch, plan, given_ in zip(launches, plans, operands, strict=True):
            check(launch.run(), given_, plan)


@given(
    rows=st.integers(1, 4000),
    inner=st.integers(1, 2000),
    tokens=st.integers(1, 64),
    multiprocessors=st.sampled_from([1, 8, 46, 108, 132]),
)
def test_every_plan_fits_an_a100(rows: int, inner: int, tokens: int, multiprocessors: int) -> None:
    segment = Segment(8 * rows, 8 * inner, Fusion.STORE, "bf16")
    for variant in variants(segment, tokens):
        plan = Plan.of(segment, variant, multiprocessors)
        assert plan.splits == choose_splits(segment, variant, multiprocessors) >= 1
        assert plan.kernel.shared_bytes <= 163 * 1024
        assert plan.kernel.threads <= 1024


def test_a_head_has_tiles_enough_without_splits() -> None:
    segment = Segment(128256, 2048, Fusion.PLAIN, "bf16", norm=True)
    for tokens in (1, 8, 64):
        assert {Plan.of(segment, variant, H200_MULTIPROCESSORS).splits for variant in variants(segment, tokens)} == {1}


def test_small_products_of_a_decoder_fill_an_h200() -> None:
    for rows, inner in ((2048, 2048), (2048, 8192), (4096, 4096), (4096, 14336)):
        segment = Segment(rows, inner, Fusion.RESIDUAL, "bf16")
        for tokens in (1, 8, 64):
            for variant in variants(segment, tokens):
                plan = Plan.of(segment, variant, H200_MULTIPROCESSORS)
                assert plan.row_tiles * plan.splits >= 0.9 * H200_MULTIPROCESSORS


def test_gemv_is_offered_to_few_tokens_and_nothing_to_more_than_64() -> None:
    segment = Segment(2048, 2048, Fusion.STORE, "bf16")
    assert {type(variant) for variant in variants(segment, 4)} == {Gemv, FlatGemm}
    assert {type(variant) for variant in variants(segment, 5)} == {FlatGemm}
    assert all(variant.tokens >= 33 for variant in variants(segment, 33))
    assert variants(segment, 65) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inner": 100}, "inner=100: .* multiple of 8"),
        ({"inner": 0}, "inner=0"),
        ({"rows": 100}, "rows=100: .* multiple of 8"),
        ({"rows": 0, "fusion": Fusion.PLAIN}, "rows=0"),
        ({"rows": 72, "fusion": Fusion.SWIGLU}, "rows=72: .* multiple of 16"),
        ({"dtype": "float32"}, "dtype='float32': must be bf16 or fp16"),
        ({"fusion": Fusion.QKV, "heads": 1, "kv_heads": 1, "head_dim": 96}, "head_dim=96"),
        ({"fusion": Fusion.QKV, "heads": 2, "kv_heads": 1, "head_dim": 64}, r"rows=64: must be \(heads"),
    ],
)
def test_a_segment_refuses_what_the_kernels_cannot_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Segment(64, 64, Fusion.STORE, "bf16"), **fields)


def test_a_plan_refuses_a_tile_that_does_not_fit() -> None:
    segment = model_segment(Fusion.QKV, 320, 64, "bf16")
    with pytest.raises(ValueError, match="rows=128: a tile of QKV is one head"):
        Plan.of(segment, TILES["flat-8-serial"], 8)
    with pytest.raises(ValueError, match="splits=0"):
        Plan.of(segment, TILES["flat-64"], 8, splits=0)


def test_a_launch_refuses_operands_that_do_not_fit() -> None:
    device = make_device(0)
    plan = Plan.of(Segment(64, 64, Fusion.STORE, "bf16"), TILES["flat-16"], 8, splits=2)
    workspace = Workspace.allocate(device, [plan])
    weights, inputs = device.zeros((64, 64), np.uint16), device.zeros((16, 64), np.uint16)
    store = gemm.Store(device.zeros((16, 64), np.uint16))
    small = replace(workspace, partials=workspace.partials[:-1])
    norm = gemm.Norm(weights, weights, 1, 1e-5)

    def refused(message: str, *arguments: Any, norm: gemm.Norm | None = None) -> None:
        with pytest.raises(ValueError, match=message):
            gemm.launch(device, plan, *arguments, norm=norm)

    refused("tokens=17: this tile takes 1 to 16", weights, inputs, 17, workspace, store)
    refused(r"weights of shape \(32, 64\)", weights[:32], inputs, 1, workspace, store)
    refused(r"inputs of shape \(3, 64\)", weights, inputs[:3], 4, workspace, store)
    refused("output of type SwiGlu: store needs Store", weights, inputs, 1, workspace, gemm.SwiGlu(weights))
    refused("workspace.partials of", weights, inputs, 1, small, store)
    refused("norm given: the segment has norm=False", weights, inputs, 1, workspace, store, norm=norm)
    assert not np.any(device.to_host(store.out))


def _assert_same(actual: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values, err_msg=name)
