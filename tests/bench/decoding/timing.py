"""Seconds of work on a GPU, by CUDA events; who is compared takes turns, so that clocks and heat meet all alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

Work = Callable[[], None]
"""Queues work on the current stream, mostly a captured graph's replay."""

Timer = Callable[[Work, int], float]
"""Seconds of one execution, the mean over so many in a row."""

ROUNDS = 9
_LEAST_SECONDS = 0.02  # of one sample, so that the events' resolution does not count
_MOST_REPLAYS = 2000


@dataclass(frozen=True, slots=True, order=True)
class Seconds:
    """Median and quartiles over rounds; less is faster, by the median."""

    median: float
    low_quartile: float
    high_quartile: float

    def milliseconds(self) -> dict[str, float]:
        return {
            "milliseconds": round(1e3 * self.median, 6),
            "low_quartile_milliseconds": round(1e3 * self.low_quartile, 6),
            "high_quartile_milliseconds": round(1e3 * self.high_quartile, 6),
        }


def in_turns(contenders: Mapping[str, Work], timer: Timer, rounds: int = ROUNDS) -> dict[str, Seconds]:
    """Times each contender once a round; whoever began a round comes last in the next.

    One execution before each sample does not count: it brings back what the one before has driven out of the caches.
    """
    replays: dict[str, int] = {}
    for name, work in contenders.items():
        timer(work, 1)
        replays[name] = min(_MOST_REPLAYS, 1 + int(_LEAST_SECONDS / timer(work, 1)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            timer(contenders[name], 1)
            samples[name].append(timer(contenders[name], replays[name]))
        order.append(order.pop(0))
    return {name: Seconds(*np.percentile(taken, (50, 25, 75)).tolist()) for name, taken in samples.items()}


def event_timer(stream: Any) -> Timer:
    """Times what is queued on CuPy's `stream`."""
    cuda = import_module("cupy").cuda
    began, ended = cuda.Event(), cuda.Event()

    def seconds(work: Work, executions: int) -> float:
        began.record(stream)
        for _ in range(executions):
            work()
        ended.record(stream)
        ended.synchronize()
        return float(cuda.get_elapsed_time(began, ended)) / 1000 / executions

    return seconds
