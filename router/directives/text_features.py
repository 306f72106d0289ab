"""What a linear model sees of a prompt: hashed words, pairs of words and of their shapes, and a few counts."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

BUCKETS: Final = 1 << 13
"""Words and pairs share so many weights. With a power of two the remainder is a mask."""
SURFACE: Final = (
    "characters",
    "words",
    "words a line",
    "digits",
    "commas",
    "is a question",
    "begins in lower case",
    "lists options",
)
_READ_CHARACTERS: Final = 600
"""From the beginning and from the end: what is asked for stands there, and the work is bounded."""
_TOKEN: Final = re.compile(r"[^\W\d_]+|[0-9]+|[^\w\s]")
_NAME, _NUMBER = zlib.crc32(b"a name"), zlib.crc32(b"a number")
_DIGITS: Final = re.compile(r"\d+")
_OPTION: Final = re.compile(r"^[ \t]*\(?[A-D][).:]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Of one prompt.

    Attributes:
        buckets: Distinct, ascending, [words].
        surface: [len(SURFACE)].
    """

    buckets: NDArray[np.int64]
    surface: NDArray[np.float64]


def features_of(text: str) -> TextFeatures:
    """The features of a prompt; any text has some."""
    read = text if len(text) <= 2 * _READ_CHARACTERS else f"{text[:_READ_CHARACTERS]}\n{text[-_READ_CHARACTERS:]}"
    tokens = _TOKEN.findall(read)
    # Python's own hash differs from process to process, and weights outlive one.
    crc = zlib.crc32
    words, shapes = [crc(b"^")], [crc(b"shape")]
    for token in tokens:
        lower = token.lower()
        word = crc(lower.encode())
        words.append(word)
        # Names and numbers, whichever they are: a question about somebody is of another kind than one about things.
        shapes.append(_NUMBER if token.isdigit() else word if token == lower else _NAME)
    word_of, shape_of = np.array(words), np.array(shapes)
    pairs = word_of[1:] ^ word_of[:-1] * 31, shape_of[1:] ^ shape_of[:-1] * 37
    buckets = np.unique(np.concatenate([word_of[1:], *pairs]) & (BUCKETS - 1))
    lines = text.count("\n") + 1
    surface = np.array(
        [
            math.log1p(len(text)),
            math.log1p(len(tokens)),
            math.log1p(len(tokens) / lines),
            math.log1p(sum(map(len, _DIGITS.findall(read)))),
            math.log1p(read.count(",")),
            float(text.rstrip().endswith("?")),
            float(text[:1].islower()),
            math.log1p(len(_OPTION.findall(read))),
        ]
    )
    return TextFeatures(buckets, surface)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """Of many prompts.

    Attributes:
        words: Rows of length 1 (0 for a text without words), [prompts, BUCKETS].
        surface: [prompts, len(SURFACE)].
    """

    words: csr_array
    surface: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.surface)

    def rows(self, places: NDArray[np.int64]) -> FeatureTable:
        return FeatureTable(self.words[places], self.surface[places])


def table_of(found: Sequence[TextFeatures]) -> FeatureTable:
    """Raises ValueError where there is no prompt."""
    if not found:
        raise ValueError("features must be of at least one prompt")
    counts = np.array([len(one.buckets) for one in found])
    weights = np.repeat(1.0 / np.sqrt(np.maximum(counts, 1)), counts)
    ends = np.concatenate([[0], np.cumsum(counts)])
    columns = np.concatenate([one.buckets for one in found])
    words = csr_array((weights, columns, ends), shape=(len(found), BUCKETS))
    return FeatureTable(words, np.stack([one.surface for one in found]))
