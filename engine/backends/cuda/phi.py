"""The unified maximum phi of every layer and head: chosen from recorded logits, kept by model digest.

Attention sums P = exp(x - phi) over a row's scaled logits x (FlashDecoding++, section 3). Any phi is exact as long as
both sums stay in range, which csrc/attention.cu checks at the end of each row:

    above   max x - phi            <= ceiling   so that no P (fp16) or sum (bf16) overflows
    below   log mean exp x - phi   >= floor     so that the terms below the type's normal range do not matter

So a head needs its rows' maxima and their log mean exponentials within `ceiling - floor` of each other, and phi is set
in the middle of what fits: the same room for rows never seen on both sides. A row outside is computed again, so the
outermost rows of a recording do not decide; a layer where one head does not fit uses the synchronised softmax.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.cuda.kernels import FloatType
from engine.cache_file import write_whole

_FORMAT = 1
# The paper's interval for choosing phi holds more than 99.99 % of the logits.
_QUANTILE = 1e-4
_MARGIN = 1.0

# (floor, ceiling) in natural exponents. fp16: the greatest number is 65504, and the denominator must be at least 2^-10
# a key. bf16: float's greatest number is e^88.7, of which a sum over 2^17 keys with values up to 1000 takes e^18.7; the
# denominator, at least the mean, must be 1e-30.
_RANGES: Mapping[FloatType, tuple[float, float]] = {
    "fp16": (-10 * math.log(2), math.log(65504)),
    "bf16": (math.log(1e-30), 88.7 - 18.7),
}


class PhiError(Exception):
    """A table cannot be used or stored; the message names the file and the fault in one line."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"{file}: {' '.join(fault.split())}")


@dataclass(frozen=True, slots=True)
class LogitStatistics:
    """What the scaled logits of each head did over the recorded rows (a row: one query over its whole context).

    Attributes:
        highest: [layers, heads], the 99.99 % quantile of the rows' maxima.
        lowest: [layers, heads], the 0.01 % quantile of the rows' log mean exponentials.
        rows: how many were recorded.
    """

    highest: npt.NDArray[np.float64]
    lowest: npt.NDArray[np.float64]
    rows: int

    @classmethod
    def of_rows(cls, maxima: npt.NDArray[Any], log_means: npt.NDArray[Any]) -> "LogitStatistics":
        """From what `summarise_row` returned for every row, layer and head, both [rows, layers, heads].

        Raises ValueError where the shapes differ, are empty, or a value is not finite.
        """
        if maxima.ndim != 3 or maxima.shape != log_means.shape or 0 in maxima.shape:
            raise ValueError(
                f"maxima and log_means must both be [rows, layers, heads], got {maxima.shape} and {log_means.shape}"
            )
        if not (np.isfinite(maxima).all() and np.isfinite(log_means).all()):
            raise ValueError("maxima and log_means must be finite")
        return cls(
            highest=np.quantile(maxima.astype(np.float64), 1 - _QUANTILE, axis=0),
            lowest=np.quantile(log_means.astype(np.float64), _QUANTILE, axis=0),
            rows=maxima.shape[0],
        )


def summarise_row(logits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Maximum and log mean exponential over the last axis of scaled logits [..., keys]."""
    exact = logits.astype(np.float64)
    maximum = exact.max(axis=-1)
    return maximum, maximum + np.log(np.exp(exact - maximum[..., None]).mean(axis=-1))


@dataclass(frozen=True, slots=True)
class PhiTable:
    """phi of each layer's heads in units of the scaled logits; None for a layer that needs the synchronised softmax."""

    model_digest: str
    dtype: FloatType
    layers: tuple[tuple[float, ...] | None, ...]

    def of_layer(self, layer: int) -> npt.NDArray[np.float32] | None:
        """phi float32 [heads], or None for the synchronised softmax."""
        values = self.layers[layer]
        return None if values is None else np.array(values, np.float32)

    def save(self, cache_directory: Path) -> Path:
        """Writes the table whole or not at all and returns its file. Raises PhiError where the directory refuses."""
        file = _file(cache_directory, self.model_digest, self.dtype)
        text = json.dumps(
            {
                "format": _FORMAT,
                "model_digest": self.model_digest,
                "dtype": self.dtype,
                "layers": [None if layer is None else list(layer) for layer in self.layers],
            },
            allow_nan=False,
        )
        try:
            write_whole(file, text)
        except OSError as error:
            raise PhiError(file, f"cannot be written: {error.strerror or error}") from error
        return file

    @classmethod
    def load(
        cls, cache_directory: Path, model_digest: str, dtype: FloatType, layers: int, heads: int
    ) -> "PhiTable | None":
        """The stored table of a model with so many layers and heads; None where there is none.

        Raises PhiError where the file is unreadable, damaged, or of another model or shape.
        """
        file = _file(cache_directory, model_digest, dtype)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PhiError(file, f"cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise PhiError(file, f"is damaged: {error}") from error
        try:
            return cls(model_digest, dtype, _layers(values, model_digest, dtype, layers, heads))
        except ValueError as error:
            raise PhiError(file, str(error)) from error


def choose(statistics: LogitStatistics, model_digest: str, dtype: FloatType) -> PhiTable:
    """phi for every layer whose heads all fit the type's range, the synchronised softmax for the others."""
    floor, ceiling = _RANGES[dtype][0] + _MARGIN, _RANGES[dtype][1] - _MARGIN
    least, greatest = statistics.highest - ceiling, statistics.lowest - floor  # phi may lie between
    middle = (least + greatest) / 2
    fits: npt.NDArray[np.bool_] = np.all(least <= greatest, axis=1)  # [layers]
    return PhiTable(
        model_digest,
        dtype,
        tuple(
            tuple(float(np.float32(phi)) for phi in heads) if fit else None
            for heads, fit in zip(middle, fits, strict=True)
        ),
    )


def _file(cache_directory: Path, model_digest: str, dtype: FloatType) -> Path:
    return cache_directory / f"phi-{model_digest[:32]}-{dtype}.json"


def _layers(
    values: Any, model_digest: str, dtype: FloatType, layers: int, heads: int
) -> tuple[tuple[float, ...] | None, ...]:
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"is no table of format {_FORMAT}")
    if (values.get("model_digest"), values.get("dtype")) != (model_digest, dtype):
        raise ValueError("belongs to another model or dtype")
    stored = values.get("layers")
    if not isinstance(stored, list) or len(stored) != layers:
        raise ValueError(f"must have {layers} layers")
    return tuple(None if layer is None else _heads(layer, heads) for layer in stored)


def _heads(values: Any, heads: int) -> tuple[float, ...]:
    limit = float(np.finfo(np.float32).max)
    numbers = isinstance(values, list) and len(values) == heads
    if not numbers or not all(isinstance(value, float) and -limit <= value <= limit for value in values):
        raise ValueError(f"must have {heads} finite numbers in a layer, or null")
    return tuple(values)
