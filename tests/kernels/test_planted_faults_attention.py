"""Each fault that a hand might make in attention.cu turns the checks of test_attention.py red."""

from dataclasses import dataclass

import numpy as np
import pytest

from engine.backends.cuda import attention
from engine.backends.cuda.kernels import Kernel
from tests.kernels.attention_batch import TOLERANCES, Batch, Run, clearly_outside, errors, make_batch
from tests.kernels.devices import emulator_only
from tests.kernels.emulator import EmulationError, Emulator, compiled_kernel, planted

pytestmark = emulator_only

SEEDS = 6
PHI = 3.0


@dataclass(frozen=True)
class Fault:
    name: str
    old: str
    new: str
    synchronised: bool = False


FAULTS = (
    Fault(
        "missing barrier before the warps' sums are added",
        "store_sums(reinterpret_cast<float*>(ring), sums, group);\n    sync_block();\n\n",
        "store_sums(reinterpret_cast<float*>(ring), sums, group);\n\n",
    ),
    Fault(
        "missing barrier between the flags' reading and the rings' refilling",
        "sync_block();  // all have read the flags",
        "// all have read the flags",
    ),
    Fault("wrong wait count", "copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
    Fault("stage refilled while it is read", "stage == 0 ? STAGES - 1 : stage - 1", "stage"),
    Fault("split that ends a block early", "(split + 1) * blocks / splits", "(split + 1) * blocks / splits - 1"),
    Fault("splits that overlap", "split * blocks / splits, (", "max(0, split * blocks / splits - 1), ("),
    Fault("tail that counts as keys", "if (key >= tokens)", "if (key > tokens)"),
    Fault("tail whose values are read", "values + 16 * chunk, row < tokens", "values + 16 * chunk, true"),
    Fault(
        "swapped fragment of the keys",
        "mma_16x8x16<DTYPE>(scores[1], query[k], {b[2], b[3]})",
        "mma_16x8x16<DTYPE>(scores[1], query[k], {b[3], b[2]})",
    ),
    Fault("swapped fragment of the queries", "g + 8 * (i & 1)", "g + 8 * (i >> 1)"),
    Fault("swizzle of the reads that is not the writes'", "swizzled(lane & 15, 2 * i", "swizzled(lane & 7, 2 * i"),
    Fault("first to arrive taken for the last", "== static_cast<unsigned>(splits - 1)", "== 0u"),
    Fault("lost last arriver", "static_cast<unsigned>(splits - 1)", "static_cast<unsigned>(splits)"),
    Fault("counter that is not reset", "if (*last != 0u) counters[item] = 0u;", ""),
    Fault("stale flag", "if (lane == 0) flags[row] = outside ? 1u : 0u;", "if (lane == 0 && outside) flags[row] = 1u;"),
    Fault("flag of another row", "flags[row] << row", "flags[row] << (row ^ 1)"),
    Fault("row out of range taken for one in range", "outside = vote_any(outside);", "outside = false;"),
    Fault("check of the denominator alone", "outside |= !is_finite(sums[32 * i + lane]);", ";"),
    Fault("recomputed rows that are not counted", "atomic_add(recomputed, rows);", "atomic_add(recomputed, 1u);"),
    Fault("maximum that is not shared", "greatest = fmaxf(greatest, shuffle_xor(greatest, 2));", "", synchronised=True),
    Fault("sums that are not rescaled", "sums.denominator[2 * half] *= rescale;", "", synchronised=True),
    Fault("splits added without their maxima", "exp2_approximate(state.y - maximum)", "1.0f", synchronised=True),
)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Rows above, below and in range; one and several splits; more tiles a warp than stages; ends inside a block."""
    shift = np.zeros((4, 10))
    shift[0, [1, 4]], shift[0, 6], shift[3, 0] = 130.0, -130.0, 130.0
    generator = np.random.default_rng(12)
    # Above by the numerators alone: 37 e^(86.5 - 3) is a float32, and 300 times it is not.
    large_values = make_batch(generator, "bf16", 10, 2, 64, [37], shift=86.5, spread=0.1, value_scale=300.0)
    return [make_batch(generator, "bf16", 10, 2, 64, [700, 0, 21, 150], shift=shift, spread=2.0), large_values]


def caught(batches: list[Batch], phi: float | None) -> bool:
    """Whether any launch of several schedules gives an error, a wrong row, another count, or other bits."""
    for batch in batches:
        recomputed = 0 if phi is None else int(clearly_outside(batch, phi).sum())
        outputs = []
        for seed in range(SEEDS):
            run = Run(Emulator(seed, multiprocessors=24), batch)
            try:
                outputs += [run(phi), run(phi)]
            except EmulationError:
                return True
            if not errors(batch, outputs[-1]).max() <= TOLERANCES[batch.dtype]:
                return True
            if run.attention.recomputed_rows() != 2 * recomputed or not (outputs[-1] == outputs[0]).all():
                return True
    return False


@pytest.mark.parametrize("phi", [PHI, None], ids=["unified", "synchronised"])
def test_the_kernels_as_they_stand_pass(batches: list[Batch], phi: float | None) -> None:
    assert not caught(batches, phi)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "synchronised_kernel" if fault.synchronised else "unified_kernel"
    original = getattr(attention, name)

    def faulty(dtype: attention.FloatType, head_dim: int) -> Kernel:
        return planted(original(dtype, head_dim), fault.old, fault.new)

    compiled_kernel(faulty("bf16", 64))  # a fault that does not compile proves nothing
    monkeypatch.setattr(attention, name, faulty)
    assert caught(batches, None if fault.synchronised else PHI)
