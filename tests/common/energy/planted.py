"""Measurements of a device whose energy model is known."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from common.energy.grid import Measurement
from common.energy.sweet_spot import SweetSpot

LENGTHS = (16, 64, 256, 1024, 4096)
BATCHES = (1, 4, 16, 64)
TRUTH = SweetSpot(
    request_joules=6.0,
    input_joules=0.05,
    input_squared_joules=1e-5,
    output_joules=3.0,
    pair_joules=2e-3,
    output_squared_joules=1e-3,
)
"""Of a device that serves one request at a time."""
SHARING = SweetSpot(
    request_joules=3.0,
    request_shared_joules=12.0,
    input_joules=0.02,
    input_squared_joules=4e-6,
    output_joules=0.07,
    output_shared_joules=3.0,
    output_root_joules=0.2,
    pair_joules=5e-5,
    output_squared_joules=2e-5,
)


def measured(
    model: SweetSpot,
    *,
    inputs: Sequence[float] = LENGTHS,
    outputs: Sequence[float] = LENGTHS,
    batches: Sequence[float] = (1.0,),
    noise: float = 0.0,
    seed: int = 0,
) -> list[Measurement]:
    """A grid of cells, each measured once.

    Args:
        noise: standard deviation of the logarithm of what was measured over what was spent.
    """
    generator = np.random.default_rng(seed)
    return [
        Measurement(n, m, model.energy_joules(n, m, batch) * float(np.exp(noise * generator.standard_normal())), batch)
        for n, m, batch in product(inputs, outputs, batches)
    ]
