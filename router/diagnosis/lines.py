"""Lines of a file that somebody else wrote, plain or .gz: within limits, and every fault with file and line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

MOST_LINE_BYTES: Final = 1 << 20
MOST_FAULTS: Final = 5
"""Told of at once."""


class LogError(Exception):
    """A file cannot be used. `faults` are its first faults, each with file, line and column where it has one."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


def file_kind(path: Path, *kinds: str) -> str:
    """Which of `kinds` (".csv") the file is, by its name, .gz aside. Raises LogError for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next(iter(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]), "")
    if kind not in kinds:
        wanted = ", ".join(f"{known}, {known}.gz" for known in kinds)
        raise LogError([f"{path}: its name must end in one of {wanted}"])
    return kind


@contextmanager
def opened(path: Path) -> Iterator[Iterator[str]]:
    """The file's lines. Raises LogError where it cannot be read, is torn, is not UTF-8 or has an endless line."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield _lines(path, cast("io.RawIOBase", file))
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise LogError([f"{path} cannot be read: {said}"]) from None


def _lines(path: Path, file: io.RawIOBase) -> Iterator[str]:
    with io.BufferedReader(file) as reader:
        number = 0
        while line := reader.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(line) > MOST_LINE_BYTES:
                raise LogError([f"{path}:{number}: a line must have at most {MOST_LINE_BYTES:,} bytes"])
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise LogError([f"{path}:{number}: is not UTF-8"]) from None


def json_objects(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of every line that is not blank, with the line's number."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        # Nesting beyond the interpreter's limit is no JSON that a log would have.
        except (ValueError, RecursionError):
            raise LogError([f"{path}:{number}: is not JSON"]) from None
        if not isinstance(found, dict):
            raise LogError([f"{path}:{number}: must be a JSON object"])
        yield number, found
