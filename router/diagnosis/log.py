"""A request log in a file: how long prompts and answers were, of which task, and what they cost.

CSV with a header, or JSON lines, plain or .gz. Other columns are passed over:

    input_tokens, output_tokens    required; also as the Azure LLM inference traces name them, ContextTokens and
                                   GeneratedTokens
    task                           text; blank is unknown
    energy_joules                  of the request; blank is unknown
    timestamp                      ISO 8601, UTC where no offset is given, or blank; also TIMESTAMP or started_at
"""

from __future__ import annotations

import csv
import math
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, overload

from router.diagnosis.lines import MOST_FAULTS, file_kind, json_objects, opened
from router.diagnosis.lines import LogError as LogError

MOST_REQUESTS: Final = 10_000_000
"""That a log may hold: 36 bytes of memory each, without their task's name."""
MOST_TOKENS: Final = 100_000_000
"""That one prompt or one answer may have; more is a mistake in the file."""
MOST_JOULES: Final = 1e9
MOST_TASKS: Final = 1_000
MOST_TASK_CHARACTERS: Final = 200

_NAMES: Final[Mapping[str, str]] = {
    "input_tokens": "input_tokens",
    "ContextTokens": "input_tokens",
    "output_tokens": "output_tokens",
    "GeneratedTokens": "output_tokens",
    "task": "task",
    "energy_joules": "energy_joules",
    "timestamp": "timestamp",
    "TIMESTAMP": "timestamp",
    "started_at": "timestamp",
}
_REQUIRED: Final = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One served request. A request that ended before its first token has 0 output tokens."""

    input_tokens: int
    output_tokens: int
    task: str = ""
    """Blank where it is not known."""
    started_at: datetime | None = None
    energy_joules: float | None = None


class Log(Sequence[LoggedRequest]):
    """The requests of one file, in its order; kept by column, as a log may have millions.

    Attributes:
        input_tokens, output_tokens: array('q'), an entry a request.
        energy_joules: array('d'); not a number where it is not known.
        tasks: The tasks that occur, in the order of their first request.
        task_index: array('I') of places in `tasks`.
    """

    def __init__(self, requests: Sequence[LoggedRequest] = ()) -> None:
        self.input_tokens = array("q")
        self.output_tokens = array("q")
        self.energy_joules = array("d")
        self.task_index = array("I")
        self._started_seconds = array("d")
        self._places: dict[str, int] = {}
        for request in requests:
            self.append(request)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._places)

    def append(self, request: LoggedRequest) -> None:
        started, joules = request.started_at, request.energy_joules
        self.input_tokens.append(request.input_tokens)
        self.output_tokens.append(request.output_tokens)
        self.energy_joules.append(math.nan if joules is None else joules)
        self.task_index.append(self._places.setdefault(request.task, len(self._places)))
        self._started_seconds.append(math.nan if started is None else started.timestamp())

    def __len__(self) -> int:
        return len(self.input_tokens)

    @overload
    def __getitem__(self, index: int) -> LoggedRequest: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LoggedRequest]: ...

    def __getitem__(self, index: int | slice) -> LoggedRequest | Sequence[LoggedRequest]:
        if isinstance(index, slice):
            return [self._request(i) for i in range(*index.indices(len(self)))]
        return self._request(index)

    def __iter__(self) -> Iterator[LoggedRequest]:
        # Sequence's own would look up the tasks' names anew for every request.
        names = self.tasks
        return (self._request(i, names) for i in range(len(self)))

    def _request(self, index: int, names: Sequence[str] | None = None) -> LoggedRequest:
        seconds, joules = self._started_seconds[index], self.energy_joules[index]
        return LoggedRequest(
            self.input_tokens[index],
            self.output_tokens[index],
            (names or self.tasks)[self.task_index[index]],
            None if math.isnan(seconds) else datetime.fromtimestamp(seconds, UTC),
            None if math.isnan(joules) else joules,
        )


def read_log(path: str | Path) -> Log:
    """Reads a whole log, whose name ends in .csv, .csv.gz, .jsonl or .jsonl.gz.

    Raises LogError where the file cannot be read, has no request, or has faults: nothing is left out silently.
    """
    path = Path(path)
    kind = file_kind(path, ".csv", ".jsonl")
    with opened(path) as lines:
        return _collect(path, _csv_rows(path, lines) if kind == ".csv" else _json_rows(path, lines))


Row = tuple[int, Mapping[str, Any]]
"""A row's line in the file, and its values by the names of `LoggedRequest`, "timestamp" as `started_at`."""


def _csv_rows(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    rows = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        fields = _fields(path, header)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                raise LogError(
                    [f"{path}:{rows.line_num}: must have {len(header)} columns as its header has, got {len(cells)}"]
                )
            yield rows.line_num, {field: cells[place].strip() for field, place in fields.items()}
    except csv.Error as error:
        raise LogError([f"{path}:{rows.line_num}: is not CSV: {error}"]) from None


def _fields(path: Path, header: Sequence[str]) -> dict[str, int]:
    fields: dict[str, int] = {}
    for place, name in enumerate(header):
        field = _NAMES.get(name)
        if field in fields:
            raise LogError([f"{path}:1: {name}: there are two columns of {field}"])
        if field is not None:
            fields[field] = place
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        has = ", ".join(header[:10]) or "nothing"
        raise LogError(
            [f"{path}:1: {' and '.join(missing)} must be a column (or ContextTokens, GeneratedTokens); it has {has}"]
        )
    return fields


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, found in json_objects(path, lines):
        row: dict[str, Any] = {}
        for name, value in found.items():
            field = _NAMES.get(name)
            if field in row:
                raise LogError([f"{path}:{number}: {name}: there are two values of {field}"])
            if field is not None:
                row[field] = value
        yield number, row


def _collect(path: Path, rows: Iterator[Row]) -> Log:
    log, faults = Log(), []
    for line, row in rows:
        try:
            request = _request(row)
        except ValueError as error:
            faults.append(f"{path}:{line}: {error}")
            if len(faults) == MOST_FAULTS:
                break
            continue
        log.append(request)
        if len(log) > MOST_REQUESTS:
            raise LogError([f"{path}:{line}: a log may hold at most {MOST_REQUESTS:,} requests"])
        if len(log.tasks) > MOST_TASKS:
            raise LogError(
                [f"{path}:{line}: task: a log may hold at most {MOST_TASKS:,} tasks; is it the task's name?"]
            )
    if faults:
        raise LogError(faults)
    if not log:
        raise LogError([f"{path}: holds no request"])
    return log


def _request(row: Mapping[str, Any]) -> LoggedRequest:
    return LoggedRequest(
        _tokens(row, "input_tokens"),
        _tokens(row, "output_tokens"),
        _task(row.get("task")),
        _time(row.get("timestamp")),
        _joules(row.get("energy_joules")),
    )


def _tokens(row: Mapping[str, Any], field: str) -> int:
    value = row.get(field)
    number = _number(value)
    if number is None or number != number // 1 or not 0 <= number <= MOST_TOKENS:
        raise ValueError(f"{field} must be a whole number from 0 to {MOST_TOKENS:,}, got {_shown(value)}")
    return int(number)


def _joules(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = _number(value)
    if number is None or not 0 <= number <= MOST_JOULES:
        raise ValueError(f"energy_joules must be a number from 0 to {MOST_JOULES:g} or blank, got {_shown(value)}")
    return number


def _number(value: Any) -> float | None:
    """None where it is none, or not finite. JSON's true is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _task(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MOST_TASK_CHARACTERS:
        raise ValueError(f"task must be text of at most {MOST_TASK_CHARACTERS} characters, got {_shown(value)}")
    return sys.intern(value.strip())


def _time(value: Any) -> datetime | None:
    if value is None or value == "":
        return None
    try:
        found = datetime.fromisoformat(value)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        # Years that no clock of ours can tell are refused here, and not where they are used.
        found.timestamp()
        return found.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"timestamp must be ISO 8601, such as 2026-11-21T18:00:00Z, or blank, got {_shown(value)}"
        ) from None


def _shown(value: Any) -> str:
    text = "nothing" if value is None or value == "" else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
