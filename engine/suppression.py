"""Words that must not appear in an answer, however the tokenizer cuts them.

The guarantee is about the text: none of the spellings of `spellings` occurs in it, be it alone, after a space, inside
of a longer word or spread over any tokens. It is kept by leaving out each token whose bytes would complete one.
Other spellings (mixed capitals, accents, synonyms) are not looked for. Only a vocabulary that leaves no other token
breaks it, and none does that has an end token or any other without text.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int64]

_SEPARATOR = b"\xff"
"""Never part of UTF-8, and so of no word."""


class TokenIndex:
    """The tokens of a vocabulary by their bytes."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.token_bytes = token_bytes
        order = sorted((token_id for token_id, own in enumerate(token_bytes) if own), key=token_bytes.__getitem__)
        self._ids = np.array(order, np.int64)
        self._sorted = [token_bytes[token_id] for token_id in order]
        self._joined = _SEPARATOR.join(self._sorted)
        lengths = np.array([len(own) + len(_SEPARATOR) for own in self._sorted], np.int64)
        self._begins = np.cumsum(lengths) - lengths

    def starting_with(self, prefix: bytes) -> TokenIds:
        low = bisect_left(self._sorted, prefix)
        return self._ids[low : bisect_right(self._sorted, prefix, lo=low, key=lambda own: own[: len(prefix)])]

    def containing(self, piece: bytes) -> TokenIds:
        found: list[int] = []
        at = self._joined.find(piece)
        while at >= 0:
            found.append(int(np.searchsorted(self._begins, at, side="right")) - 1)
            # Once a token is enough.
            at = self._joined.find(piece, int(self._begins[found[-1]]) + len(self._sorted[found[-1]]))
        return self._ids[found]


class Suppression:
    """The tokens to leave out next, given the bytes of the answer so far. Immutable: answers may share it."""

    def __init__(self, index: TokenIndex, words: Iterable[str]) -> None:
        pieces = sorted({spelling.encode() for word in words for spelling in spellings(word)})
        self.index = index
        self.memory_bytes = max(map(len, pieces), default=1) - 1
        """How much of the end of the answer decides."""
        self._always = np.unique(np.concatenate([np.empty(0, np.int64), *map(index.containing, pieces)]))
        self._rests: dict[bytes, list[bytes]] = {}
        for piece in pieces:
            for length in range(1, len(piece)):
                self._rests.setdefault(piece[:length], []).append(piece[length:])

    def forbidden(self, end: bytes) -> TokenIds:
        """Ids of the tokens that would complete a word after `end`; some may occur twice."""
        found = [self._always]
        for length in range(1, min(len(end), self.memory_bytes) + 1):
            found += [self.index.starting_with(rest) for rest in self._rests.get(end[-length:], ())]
        return np.concatenate(found)


def spellings(word: str) -> set[str]:
    """The word as it is, in small letters, in capitals, and with its first letter as either."""
    word = word.strip()
    first, rest = word[:1], word[1:]
    return {word, word.lower(), word.upper(), word.capitalize(), first.upper() + rest, first.lower() + rest}
