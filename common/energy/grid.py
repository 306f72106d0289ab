"""Measured energies of requests over a grid of lengths, and the files that hold them."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.energy.reading import EnergySource

MAX_ROWS = 5_000
"""A fit leaves each out once."""
MAX_BYTES = 16 << 20
"""Of a file, decompressed."""
MAX_TOKENS = 100_000_000
MIN_JOULES, MAX_JOULES = 1e-30, 1e12
MAX_BATCH = 1_000_000
_MAX_FAULTS = 10

_Check = tuple[Callable[[float], bool], str]
_CHECKS: Mapping[str, _Check] = {
    "input_tokens": (lambda v: 0 <= v <= MAX_TOKENS, f"must be from 0 to {MAX_TOKENS:,}"),
    "output_tokens": (lambda v: 0 < v <= MAX_TOKENS, f"must be above 0 and at most {MAX_TOKENS:,}"),
    "gpu_energy_j": (lambda v: MIN_JOULES <= v <= MAX_JOULES, f"must be from {MIN_JOULES:g} to {MAX_JOULES:g} J"),
    "batch": (lambda v: 1 <= v <= MAX_BATCH, f"must be from 1 to {MAX_BATCH:,}"),
}


class GridError(ValueError):
    """A file of measurements that cannot be used. `faults` name file, line, field and limit, one each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a request, or the mean request of a run, took.

    Raises ValueError, naming the field, where a figure is not finite or out of its range.
    """

    input_tokens: float | None
    """None where the source does not say."""
    output_tokens: float
    joules: float
    batch: float = 1.0
    """Sequences that decoded together."""
    source: EnergySource | None = None
    """None where it is not told."""

    def __post_init__(self) -> None:
        given = {"output_tokens": self.output_tokens, "gpu_energy_j": self.joules, "batch": self.batch}
        if self.input_tokens is not None:
            given["input_tokens"] = self.input_tokens
        for name, value in given.items():
            if fault := _fault(name, value):
                raise ValueError(f"{name.replace('gpu_energy_j', 'joules')} {fault}")


def read(path: Path, *, keep_first_row: bool = False) -> tuple[Measurement, ...]:
    """The measurements of a CSV file, which may be compressed with gzip.

    Columns: `output_tokens`, `gpu_energy_j` (joules a request), and where known `input_tokens`, `batch` (1 where the
    column is absent) and `source` (what is no EnergySource tells none). Others are ignored. The first row is left out
    unless `keep_first_row`: what runs first pays for loading kernels and allocating memory.

    Raises GridError, naming file, line, field and limit, and OSError where the file cannot be read.
    """
    rows = _rows(path, _text(path))
    _, names = next(rows, (1, []))
    header = [name.strip() for name in names]
    places = _places(path, header)
    source = header.index("source") if "source" in header else None
    if not keep_first_row:
        next(rows, None)
    found: list[Measurement] = []
    faults: list[str] = []
    for line, row in rows:
        if len(found) == MAX_ROWS:
            raise GridError([f"{path}:{line}: has over {MAX_ROWS:,} rows, the limit"])
        if len(row) != len(header):
            faults.append(f"{path}:{line}: has {len(row)} fields, the header {len(header)}")
        else:
            values, wrong = _values({name: row[place].strip() for name, place in places.items()})
            faults.extend(f"{path}:{line}: {fault}" for fault in wrong)
            if not wrong:
                found.append(_measurement(values, "" if source is None else row[source].strip()))
        if len(faults) >= _MAX_FAULTS:
            raise GridError([*faults[:_MAX_FAULTS], f"{path}: and perhaps more"])
    if not faults and not found:
        faults.append(f"{path}: has no row of measurements{'' if keep_first_row else ' after the first, the warm-up'}")
    if len({measurement.input_tokens is None for measurement in found}) > 1:
        faults.append(f"{path}: input_tokens must be given in every row or in none")
    if faults:
        raise GridError(faults)
    return tuple(found)


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line that it ends in."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise GridError([f"{path}:{reader.line_num}: is not CSV: {error}"]) from None


def _text(path: Path) -> str:
    # A file that is gzip by its first bytes is read as such, whatever it is called.
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise GridError([f"{path}: is not whole as gzip: {error}"]) from None
    if len(content) > MAX_BYTES:
        raise GridError([f"{path}: has over {MAX_BYTES >> 20} MiB, the limit"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise GridError([f"{path}: is not UTF-8"]) from None


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Where in a row each field stands."""
    missing = [name for name in ("output_tokens", "gpu_energy_j") if name not in header]
    if missing:
        known = "input_tokens, output_tokens, gpu_energy_j[, batch]"
        raise GridError([f"{path}:1: has no column {' and no column '.join(missing)}; a grid has {known}"])
    doubled = [name for name in _CHECKS if header.count(name) > 1]
    if doubled:
        raise GridError([f"{path}:1: has more than one column {doubled[0]}"])
    return {name: header.index(name) for name in _CHECKS if name in header}


def _measurement(values: Mapping[str, float], source: str) -> Measurement:
    return Measurement(
        input_tokens=values.get("input_tokens"),
        output_tokens=values["output_tokens"],
        joules=values["gpu_energy_j"],
        batch=values.get("batch", 1.0),
        source=EnergySource(source) if source in set(EnergySource) else None,
    )


def _values(cells: Mapping[str, str]) -> tuple[dict[str, float], list[str]]:
    """What a row says, and what is wrong with it."""
    values: dict[str, float] = {}
    faults: list[str] = []
    for name, text in cells.items():
        if not text and name == "input_tokens":
            continue
        try:
            values[name] = float(text)
        except ValueError:
            faults.append(f"{name} must be a number, got {text[:40]!r}")
            continue
        if fault := _fault(name, values[name]):
            faults.append(f"{name} {fault}")
    return values, faults


def _fault(name: str, value: float) -> str | None:
    holds, limit = _CHECKS[name]
    # No comparison holds for a NaN.
    return None if math.isfinite(value) and holds(value) else f"{limit}, got {value:g}"
