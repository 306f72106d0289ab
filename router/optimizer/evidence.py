"""How many more samples of each class are worth the carbon of having them judged."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PILOT_SAMPLES: Final = 100
"""Of a class, before it is known what more of them are worth."""
LEAST_SAMPLES: Final = 20
"""Of a class, below which nothing can be learnt of it."""
WORTHWHILE: Final = 0.25
"""Share of what there is by which a class' samples must grow for it to be taught anew."""
MOST_JUDGED: Final = 0.05
"""Share of a window's requests: with few of them, evidence costs more than it can save."""
MOST_GROWTH: Final = 2.0
"""Times what there is that is asked for at once: what samples are worth is itself told by samples."""


def samples_wanted(have: Floats, expected: Floats, worth: Floats, cost: Floats) -> Ints:
    """Samples to judge, thin classes first and as many as pay, [classes].

    The worth of a sample falls with the square of their number, as long as other classes' errors count for most of the
    budget's: at n sqrt(worth / cost) it has come down to the cost. So a class whose floor is settled gets no more.

    Args:
        have: Samples so far, [classes].
        expected: Requests of the window, [classes].
        worth, cost: Grams that one more saves, and emits, [classes].
    """
    most = MOST_JUDGED * expected
    # Finite, as none of what is worth anything is none.
    pays = have * (np.sqrt(np.minimum(worth, 1e100) / np.clip(cost, 1e-100, 1e100)) - 1)
    more = np.where(pays >= WORTHWHILE * have, np.minimum(pays, MOST_GROWTH * have), 0.0)
    pilot = np.where(most >= LEAST_SAMPLES, np.minimum(PILOT_SAMPLES, most), 0.0)
    return np.clip(np.where(have < pilot, pilot - have, more), 0.0, np.maximum(most - have, 0.0)).astype(np.int64)
