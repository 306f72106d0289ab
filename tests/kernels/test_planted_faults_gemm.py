"""Each fault that a hand might make in the products' sources turns the checks of test_gemm and test_epilogues red."""

from dataclasses import dataclass, replace

import pytest

from engine.backends.cuda.gemm import Plan
from engine.backends.cuda.tiles import FlatGemm, Fusion, Gemv, Variant
from tests.kernels.devices import emulator_only
from tests.kernels.emulator import CompileError, EmulationError, Emulator, planted, to_bits
from tests.kernels.gemm_operands import Launch, Operands, check, model_segment

pytestmark = emulator_only

GEMV = Gemv(4, rows=64, warp_rows=8, inner_warps=2, blocks=1, unroll=1)
FLAT = FlatGemm(16, rows=64, warp_rows=32, inner_warps=2, blocks=1, inner_tile=64, stages=3)


@dataclass(frozen=True)
class Fault:
    name: str
    old: str
    new: str
    fusion: Fusion = Fusion.STORE
    variant: Variant = FLAT


FAULTS = (
    Fault(
        "missing barrier after a stage has come",
        "copy_async_wait<STAGES - 2>();\n        sync_block();",
        "copy_async_wait<STAGES - 2>();",
    ),
    Fault("wrong wait count", "copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
    Fault(
        "copies that form no group of their own",
        "        copy_async_commit();\n\n        const char*",
        "        const char*",
    ),
    Fault("stage refilled while it is read", "int slot = 0, free_slot = STAGES - 1;", "int slot = 0, free_slot = 0;"),
    Fault(
        "missing barrier before the sums overwrite the ring",
        "float* tile = reinterpret_cast<float*>(ring);\n    sync_block();",
        "float* tile = reinterpret_cast<float*>(ring);",
    ),
    Fault("swapped fragment of the weights", "chunk + lane / 16)", "chunk + 1 - lane / 16)"),
    Fault("swapped fragment of X", "chunk + lane / 8 % 2)", "chunk + 1 - lane / 8 % 2)"),
    Fault("swapped fragment of the sums", "lane / 4 + i / 2 * 8;", "lane / 4 + i % 2 * 8;"),
    Fault("dropped tail of the columns", "(inner + INNER_TILE - 1) / INNER_TILE", "inner / INNER_TILE"),
    Fault("tail of the columns that is read", "share.rows && column < inner);", "share.rows);"),
    Fault("tail of the rows that is read", "pass * ROWS_A_PASS < share.rows && column < inner);", "column < inner);"),
    Fault("split that ends early", "tiles * (blockIdx.y + 1) / gridDim.y", "tiles * (blockIdx.y + 1) / gridDim.y - 1"),
    Fault("token too many", "(token < tokens ? token : tokens - 1) * inner", "token * inner"),
    Fault("token too few", "if (token >= tokens || column", "if (token + 1 >= tokens || column"),
    Fault("norm of another token", "header->inverse_rms[token]);\n        if", "header->inverse_rms[0]);\n        if"),
    Fault(
        "missing barrier before the warps' sums are added",
        "float* own = partials + blockIdx.x * tile_floats;\n    sync_block();",
        "float* own = partials + blockIdx.x * tile_floats;",
    ),
    Fault("warp whose sums are lost", "int part = 1;", "int part = 2;"),
    Fault("split whose sums are lost", "int split = 0;", "int split = 1;"),
    Fault("lost last arriver", "== expected - 1;", "== expected;"),
    Fault("first to arrive taken for the last", "== expected - 1;", "== 0;", Fusion.RESIDUAL),
    Fault("counter that is not reset", "if (is_last) *counter = 0;", ""),
    Fault("greatest logit of the last index", "other.index < best.index", "other.index > best.index", Fusion.PLAIN),
    Fault("greedy choice without the last tile", "entry < first + count;", "entry < first + count - 1;", Fusion.PLAIN),
    Fault(
        "missing barrier before the choices are compared",
        "scratch_indices[place] = best.index;\n    }\n    sync_block();",
        "scratch_indices[place] = best.index;\n    }",
        Fusion.PLAIN,
    ),
    Fault(
        "missing barrier before the squares are added",
        "+ token] = sum;\n    sync_block();",
        "+ token] = sum;",
    ),
    Fault("squares before the rounding", "unpack_eight<DTYPE>(values, rounded);", "", Fusion.RESIDUAL),
    Fault("residual that replaces", "values[j] += residual[j];", "values[j] = residual[j];", Fusion.RESIDUAL),
    Fault(
        "gate and up exchanged",
        "read_eight(gate, tile, token, offset)",
        "read_eight(gate, tile, token, offset ^ 8)",
        Fusion.SWIGLU,
    ),
    Fault("rotation the other way", "before * cosine - second", "before * cosine + second", Fusion.QKV),
    Fault("position off by one", "output.lengths[token] - 1;", "output.lengths[token];", Fusion.QKV),
    Fault("padded row that is appended", "if (position < 0) continue;", "if (token >= tokens) continue;", Fusion.QKV),
    Fault("value taken for a key", "is_value = head >=", "is_value = head >", Fusion.QKV),
    Fault("missing barrier after X is in place", "    sync_block();\n\n    float sums", "    float sums", variant=GEMV),
    Fault(
        "dropped tail of the columns",
        "const int chunks = inner / 8;",
        "const int chunks = inner / 256 * 32;",
        variant=GEMV,
    ),
    Fault("step that is skipped", "chunk + STEP, end);", "chunk + 2 * STEP, end);", variant=GEMV),
    Fault(
        "lane that is not summed",
        "int mask = 16; mask > 0;",
        "int mask = 8; mask > 0;",
        variant=GEMV,
    ),
    Fault("chunk beyond the last that is read", "place < end ? place : end - 1", "place", variant=GEMV),
    Fault(
        "row beyond the last that is read",
        "first_row + r < rows ? first_row + r : rows - 1",
        "first_row + r",
        variant=GEMV,
    ),
)


def is_caught(fault: Fault | None, fusion: Fusion, variant: Variant, seeds: int = 12) -> bool:
    """Whether any of several schedules, each launched twice, gives an error or a wrong value."""
    # Tails of rows and columns, three tiles or steps and more a split, more splits than one.
    segment = model_segment(fusion, 200, 3 * 8 * 128 + 72, "bf16", norm=True)
    operands = Operands.draw(segment, variant.tokens - 1, seed=3)
    weights, lengths = operands.weights.copy(), operands.lengths.copy()
    lengths[::4] = 0
    if fusion is Fusion.PLAIN:
        weights[-8:] = to_bits(4 * operands.floats(weights[-8:]), "bf16")  # the last tile holds some of the greatest,
        weights[1::2] = weights[::2]  # and each of them twice
    # No rows beyond the batch: reading one leaves the buffer.
    operands = replace(operands, inputs=operands.inputs[: operands.tokens], weights=weights, lengths=lengths)
    for seed in range(seeds):
        device = Emulator(seed, step_limit=200_000)
        plan = Plan.of(segment, variant, device.multiprocessors, splits=2)
        if fault is not None:
            plan = replace(plan, kernel=planted(plan.kernel, fault.old, fault.new))
        launch = Launch(device, plan, operands)
        try:
            for _ in range(2):
                check(launch.run(), operands, plan)
        except CompileError:
            raise
        except (EmulationError, AssertionError):
            return True
    return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.variant.entry}: {fault.name}")
def test_a_planted_fault_is_caught(fault: Fault) -> None:
    assert is_caught(fault, fault.fusion, fault.variant)


@pytest.mark.parametrize("variant", [GEMV, FLAT], ids=["gemv", "flat"])
def test_without_a_fault_all_is_well(variant: Variant) -> None:
    for fusion in Fusion if variant is FLAT else [Fusion.STORE]:
        assert not is_caught(None, fusion, variant, seeds=3)
