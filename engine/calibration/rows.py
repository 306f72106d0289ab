"""What a calibration has measured, in a CSV file that another run goes on with and `pithctl energy fit` reads."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from common.clock import Clock
from common.energy.grid import Measurement
from common.energy.reading import EnergySource
from engine.cache_file import write_whole
from engine.calibration.grid import Cell


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the grid's file; the names are its columns, those of `common.energy.grid` among them."""

    input_tokens: int
    output_tokens: int
    gpu_energy_j: float
    """Joules a request, whatever the device."""
    batch: int
    seconds: float
    """That the window took."""
    measured_at: str
    """Its end, as ISO 8601 writes it."""
    source: str
    device: str
    model_digest: str

    @property
    def cell(self) -> Cell:
        return Cell(self.batch, self.input_tokens, self.output_tokens)


_COLUMNS = [field.name for field in fields(Row)]
_TYPES = {field.name: field.type for field in fields(Row)}


class GridFileError(Exception):
    """A file is no grid of this model and device, or cannot be written; the message names file and line."""


class GridFile:
    """What has been measured, kept in a CSV file as it comes. Its first row is the warm-up, which no fit uses."""

    def __init__(self, path: Path | None, source: EnergySource, device: str, model_digest: str, clock: Clock) -> None:
        """Reads the file, where there is one; without a path the rows are kept in memory only.

        Raises GridFileError where it is damaged, or of another source, device or model.
        """
        self.path = path
        self._clock = clock
        self._identity = {"source": source.value, "device": device, "model_digest": model_digest}
        self.rows: list[Row] = []
        if path is not None:
            self.rows = self._read(path)

    def add(self, cell: Cell, joules: float, seconds: float) -> None:
        """Keeps a measurement; the file has it whole or not at all. Raises GridFileError where it cannot be written."""
        row = Row(
            input_tokens=cell.input_tokens,
            output_tokens=cell.output_tokens,
            gpu_energy_j=joules,
            batch=cell.batch,
            seconds=round(seconds, 3),
            measured_at=self._clock.now().isoformat(timespec="seconds"),
            **self._identity,
        )
        if self.path is not None:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows([_COLUMNS, *map(astuple, [*self.rows, row])])
            try:
                write_whole(self.path, text.getvalue())
            except OSError as error:
                raise GridFileError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.rows.append(row)

    def measurements(self) -> dict[Cell, Measurement]:
        """The mean of every cell over its windows, without the warm-up."""
        joules: dict[Cell, list[float]] = {}
        for row in self.rows[1:]:
            joules.setdefault(row.cell, []).append(row.gpu_energy_j)
        return {
            cell: Measurement(cell.input_tokens, cell.output_tokens, math.fsum(all_of_it) / len(all_of_it), cell.batch)
            for cell, all_of_it in joules.items()
        }

    def measured_at(self) -> datetime:
        """The end of the latest window. Raises ValueError where there is none."""
        return max(datetime.fromisoformat(row.measured_at) for row in self.rows)

    def windows(self, cell: Cell) -> int:
        """How often a cell has been measured."""
        return sum(row.cell == cell for row in self.rows[1:])

    def _read(self, path: Path) -> list[Row]:
        try:
            lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise GridFileError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise GridFileError(f"{path}: is not CSV in UTF-8: {error}") from None
        if lines[:1] != [_COLUMNS]:
            raise GridFileError(f"{path}:1: must be the line {','.join(_COLUMNS)}")
        return [self._row(f"{path}:{number}", line) for number, line in enumerate(lines[1:], start=2)]

    def _row(self, place: str, line: Sequence[str]) -> Row:
        if len(line) != len(_COLUMNS):
            raise GridFileError(f"{place}: must have {len(_COLUMNS)} fields, got {len(line)}")
        values = dict(zip(_COLUMNS, line, strict=True))
        for name, mine in self._identity.items():
            if values[name] != mine:
                raise GridFileError(
                    f"{place}: {name} is {values[name]!r}, of this engine {mine!r}; give another file to --grid"
                )
        numbers: dict[str, float] = {}
        for name in ("input_tokens", "output_tokens", "batch", "gpu_energy_j", "seconds"):
            whole = _TYPES[name] is int
            try:
                numbers[name] = int(values[name]) if whole else float(values[name])
                if not (math.isfinite(numbers[name]) and numbers[name] >= (0 if name == "seconds" else 1e-300)):
                    raise ValueError
            except ValueError:
                kind = "a whole number" if whole else "a number"
                raise GridFileError(f"{place}: {name} must be {kind} above 0, got {values[name]!r}") from None
        try:
            Measurement(numbers["input_tokens"], numbers["output_tokens"], numbers["gpu_energy_j"], numbers["batch"])
        except (ValueError, OverflowError) as fault:
            raise GridFileError(f"{place}: {fault}") from None
        return Row(
            input_tokens=int(numbers["input_tokens"]),
            output_tokens=int(numbers["output_tokens"]),
            gpu_energy_j=numbers["gpu_energy_j"],
            batch=int(numbers["batch"]),
            seconds=numbers["seconds"],
            measured_at=_time(place, values["measured_at"]).isoformat(),
            **self._identity,
        )


def _time(place: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        time.astimezone(UTC)
    except (ValueError, OverflowError):
        time = None
    if time is None or time.tzinfo is None:
        raise GridFileError(f"{place}: measured_at must be a time with its zone, as ISO 8601 writes it, got {text!r}")
    return time
