"""Which implementation of a GEMM runs for how many tokens: measured once a device, looked up ever after.

FlashDecoding++ (arXiv 2311.01282, section 5): for each weight shape the GEMV wins at the fewest tokens, then the flat
GEMM, then cuBLAS; the inflection points are where the winner changes. Here a segment is the GEMM with all that is
fused to it or, for cuBLAS, stands beside it, and the flat GEMM comes in several tilings.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from engine.backends.cuda.cupy_device import CupyDevice
from engine.backends.cuda.kernels import SOURCES, Array, Device
from engine.cache_file import write_whole

Implementation = Literal["gemv", "flat", "cublas"]
Source = Literal["measured", "default"]

# In this order each takes over from the one before as tokens grow, and never gives back.
IMPLEMENTATIONS: tuple[Implementation, ...] = ("gemv", "flat", "cublas")
# Tokens that are timed. From 8 on all implementations compute in steps of 8, so a multiple stands for the seven below.
MEASURED_TOKENS = (*range(1, 9), *range(16, 129, 8))
REPEATS = 7
# Relative time, summed over the measured token counts, that a further inflection point has to save: below it is noise.
_SWITCH_COST = 0.03
# The most that one token count may weigh: one wild time does not outvote its neighbours.
_LARGEST_LOSS = 0.2
# Between two uses of a weight set more than the whole L2 has passed through it.
_LEAST_WEIGHT_SETS = 3
_FORMAT = 1
_DEFAULTS = Path(__file__).with_name("defaults.json")


class DataflowError(Exception):
    """A stored table is damaged, foreign, or cannot be written; the message names the file. The defaults remain."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"dataflow table {file} {fault}")


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """Y[tokens, rows] = X[tokens, inner] W[rows, inner]^T on one kind of device, with what is fused to it."""

    device: str
    rows: int
    inner: int
    fusion: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant of a segment by tokens: `variants[i]` from `first_tokens[i]` on.

    Raises ValueError where `first_tokens` does not ascend from 1 or the lengths differ.
    """

    first_tokens: tuple[int, ...]
    variants: tuple[str, ...]
    source: Source

    def __post_init__(self) -> None:
        ascends = all(a < b for a, b in zip(self.first_tokens, self.first_tokens[1:], strict=False))
        if self.first_tokens[:1] != (1,) or not ascends or len(self.first_tokens) != len(self.variants):
            raise ValueError(f"first tokens {self.first_tokens} of variants {self.variants} do not ascend from 1")

    def variant(self, tokens: int) -> str:
        """The variant that runs for so many tokens, at least 1."""
        return self.variants[bisect_right(self.first_tokens, tokens) - 1]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to compute a segment.

    Attributes:
        name: as the choice stores it.
        max_tokens: beyond it the candidate does not compute; None: no limit.
        launch: launches the whole segment on the current stream: (weights, tokens).
        min_tokens: below it the candidate does not compute.
    """

    name: str
    implementation: Implementation
    max_tokens: int | None
    launch: Callable[[Array, int], None]
    min_tokens: int = 1

    def computes(self, tokens: int) -> bool:
        return self.min_tokens <= tokens <= (self.max_tokens or tokens)


Timer = Callable[[Sequence[Callable[[], None]]], float]
"""Seconds a launch, over launches that run one after another."""


D = TypeVar("D", bound=Device)


def measure(
    device: D,
    segment: SegmentKey,
    candidates: Sequence[Candidate],
    timer: Timer,
    cold_l2: Callable[[D, SegmentKey], Sequence[Array]],
) -> Choice:
    """Times every candidate at every token count and chooses.

    The repeats take turns over the candidates, so that a change of clocks meets them all; the median of each counts.

    Args:
        cold_l2: weight sets to rotate over, so that none is in L2 when its turn comes: `cold_weight_sets` on a GPU.

    Raises ValueError where the timer gives no positive time, or some token count has no candidate.
    """
    weight_sets = cold_l2(device, segment)
    seconds = np.full((len(MEASURED_TOKENS), len(candidates)), np.inf)
    for row, tokens in enumerate(MEASURED_TOKENS):
        able = [i for i, way in enumerate(candidates) if way.computes(tokens)]
        samples: dict[int, list[float]] = {i: [] for i in able}
        for _ in range(REPEATS):
            for i in able:
                samples[i].append(timer([_launch(candidates[i], weights, tokens) for weights in weight_sets]))
        for i in able:
            if not all(0 < sample < np.inf for sample in samples[i]):
                raise ValueError(f"{candidates[i].name}, {tokens} tokens: times {samples[i]} are not all positive")
            seconds[row, i] = np.median(samples[i])
    return choose(MEASURED_TOKENS, candidates, seconds)


def choose(tokens: Sequence[int], candidates: Sequence[Candidate], seconds: npt.NDArray[np.float64]) -> Choice:
    """The inflection points that lose least, over all token counts together, against the fastest variant of each.

    A path through the token counts: at each it pays the relative loss of its variant, for every change of variant a
    little more, and an implementation once left is not taken up again. So one noisy time makes no inflection point.
    Ties keep the variant, else take the one that is listed first. A point stands right behind the last token count
    where the variant before it was better.

    Args:
        tokens: ascending, from 1.
        seconds: [tokens, candidates], infinite where a candidate does not compute.

    Raises ValueError where some token count has no candidate.
    """
    for count, row_seconds in zip(tokens, seconds, strict=True):
        if not np.isfinite(row_seconds).any():
            raise ValueError(f"no candidate computes {count} tokens: {', '.join(way.name for way in candidates)}")
    loss = seconds / seconds.min(axis=1, keepdims=True) - 1  # [tokens, candidates]
    loss = np.where(np.isfinite(loss), np.minimum(loss, _LARGEST_LOSS), np.inf)
    ranks = np.array([IMPLEMENTATIONS.index(way.implementation) for way in candidates])
    change = np.where(ranks[None, :] >= ranks[:, None], _SWITCH_COST, np.inf)  # [from, to]
    np.fill_diagonal(change, 0.0)
    ahead = np.zeros_like(loss)  # the least that is still to pay, at a token count and with a variant, it included
    ahead[-1] = loss[-1]
    for row in range(len(tokens) - 2, -1, -1):
        ahead[row] = loss[row] + (change + ahead[row + 1]).min(axis=1)
    current = int(np.argmin(np.round(ahead[0], 9)))
    first_tokens, names = [1], [candidates[current].name]
    for row in range(1, len(tokens)):
        costs = np.round(change[current] + ahead[row], 9)
        if costs[current] > costs.min():
            current = int(np.argmin(costs))
            first_tokens.append(tokens[row - 1] + 1)
            names.append(candidates[current].name)
    return Choice(tuple(first_tokens), tuple(names), "measured")


def cold_weight_sets(device: CupyDevice, segment: SegmentKey) -> list[Array]:
    """Random 16-bit weights of a segment, so many sets that each has left L2 before its next turn."""
    weight_bytes = 2 * segment.rows * segment.inner
    sets = max(_LEAST_WEIGHT_SETS, 2 + 2 * device.l2_bytes // weight_bytes)
    # Below 2 in either 16-bit type. Zeros would draw less power and let the clocks rise.
    bits = np.random.default_rng(0).integers(0, 0x4000, (segment.rows, segment.inner), np.uint16)
    return [device.asarray(bits) for _ in range(sets)]


def graph_timer(device: CupyDevice) -> Timer:
    """Times launches inside a CUDA graph, as the decode step runs them."""

    def seconds(launches: Sequence[Callable[[], None]]) -> float:
        launches[0]()  # compiles, if it has not been

        def work() -> None:
            for launch in launches:
                launch()

        return device.time_graph(work) / len(launches)

    return seconds


@dataclass(frozen=True, slots=True)
class DataflowTable:
    """The choices measured on one kind of device with one version of the kernels; defaults for all others."""

    device: str
    version: str
    choices: Mapping[SegmentKey, Choice]

    def choice(self, rows: int, inner: int, fusion: str) -> Choice:
        """The measured choice of a segment, or the default of its device's class, whose variants name only the
        implementation."""
        measured = self.choices.get(SegmentKey(self.device, rows, inner, fusion))
        return default_choice(self.device) if measured is None else measured

    def having(self, segment: SegmentKey, choice: Choice) -> "DataflowTable":
        """This table with one more segment, or with another choice for it."""
        return replace(self, choices={**self.choices, segment: choice})

    def save(self, cache_directory: Path) -> Path:
        """Writes the table whole or not at all and returns its file. Raises DataflowError where it cannot."""
        file = _file(cache_directory, self.device, self.version)
        text = json.dumps(
            {
                "format": _FORMAT,
                "device": self.device,
                "version": self.version,
                "segments": [
                    {
                        "rows": segment.rows,
                        "inner": segment.inner,
                        "fusion": segment.fusion,
                        "source": choice.source,
                        "points": list(zip(choice.first_tokens, choice.variants, strict=True)),
                    }
                    for segment, choice in self.choices.items()
                ],
            },
            indent=1,
        )
        try:
            write_whole(file, text)
        except OSError as error:
            raise DataflowError(file, f"cannot be written: {error.strerror or error}") from error
        return file

    @classmethod
    def load(cls, cache_directory: Path, device: str, version: str) -> "DataflowTable":
        """The stored table; an empty one, which gives the defaults, where there is none.

        Raises DataflowError where the file is unreadable, damaged, or of another device or version.
        """
        file = _file(cache_directory, device, version)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(device, version, {})
        except OSError as error:
            raise DataflowError(file, f"cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataflowError(file, f"is damaged: {error}") from error
        try:
            return cls(device, version, _choices(values, device, version))
        except ValueError as error:
            raise DataflowError(file, str(error)) from error


@cache
def default_choice(device: str) -> Choice:
    """The shipped default of the class that a device's name belongs to; its variants name only the implementation."""
    classes = json.loads(_DEFAULTS.read_text(encoding="utf-8"))
    words = re.split(r"[^A-Za-z0-9]+", device)
    found = next((entry for entry in classes if set(words) & set(entry["devices"])), classes[-1])
    return _choice(found)


@cache
def kernels_version() -> str:
    """Digest of the kernels' sources and tiles: what was measured with others does not hold."""
    digest = hashlib.sha256()
    for file in sorted([*SOURCES.iterdir(), *SOURCES.parent.glob("*.py")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _launch(candidate: Candidate, weights: Array, tokens: int) -> Callable[[], None]:
    return lambda: candidate.launch(weights, tokens)


def _file(cache_directory: Path, device: str, version: str) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return cache_directory / f"dataflow-{words}-{version}.json"


def _choices(values: Any, device: str, version: str) -> dict[SegmentKey, Choice]:
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"is no table of format {_FORMAT}")
    if (values.get("device"), values.get("version")) != (device, version):
        raise ValueError("belongs to another device or version")
    choices = {}
    try:
        for entry in values["segments"]:
            rows, inner, fusion = entry["rows"], entry["inner"], entry["fusion"]
            if not (type(rows) is int and type(inner) is int and isinstance(fusion, str)):
                raise ValueError("has a segment whose shape is not of whole numbers")
            choices[SegmentKey(device, rows, inner, fusion)] = _choice(entry)
    except (KeyError, TypeError) as error:
        raise ValueError(f"is damaged: {error!r}") from error
    return choices


def _choice(entry: Mapping[str, Any]) -> Choice:
    points, source = entry["points"], entry["source"]
    if source not in ("measured", "default"):
        raise ValueError(f"has a segment of unknown source {source!r}")
    if not all(type(first) is int and isinstance(variant, str) for first, variant in points):
        raise ValueError("has an inflection point that is not a whole number and a name")
    return Choice(tuple(first for first, _ in points), tuple(variant for _, variant in points), source)
