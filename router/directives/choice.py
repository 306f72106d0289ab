"""The decision itself: what costs least once quality has a price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_actions(
    joules: NDArray[np.float64], quality: NDArray[np.float64], price: float | NDArray[np.float64]
) -> NDArray[np.int64]:
    """The action of least energy less `price` times quality for each request, [requests]; of equal ones the first.

    Longest first and best kept first at once: a request is shortened where the joules that this is expected to save,
    in relation to the quality that it is expected to lose, exceed the price.

    Args:
        joules, quality: Expected, [requests, actions].
        price: Joules that a unit of quality is worth, of all requests or [requests, 1].
    """
    return np.asarray((joules - price * quality).argmin(axis=1))
