"""The outbox: an append-only file that holds records while they cannot go where they belong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

Record = TypeVar("Record")

log = structlog.get_logger("outbox")


class Outbox(Generic[Record]):
    """JSON lines, one a record, on disk before `append` returns. Blocks: to be used off the event loop.

    Args:
        record_type: A dataclass, whose fields' types are what the lines are checked against.
    """

    def __init__(self, path: Path, record_type: type[Record]) -> None:
        self.path = path
        self._adapter: TypeAdapter[Record] = TypeAdapter(record_type)

    def append(self, records: Sequence[Record]) -> None:
        """Raises OSError where the disk is full or the file cannot be written; then none of the records is in it."""
        lines = b"".join(self._adapter.dump_json(record) + b"\n" for record in records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                # A write that was cut short, by a full disk or a crash, must not run into the next record.
                view = memoryview(lines)
                while view:
                    view = view[file.write(view) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise

    def read(self, count: int) -> Iterator[list[Record]]:
        """All records, at most `count` at a time, the oldest first. What is no record is logged and kept aside."""
        if not self.path.exists():
            return
        batch: list[Record] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    batch.append(self._adapter.validate_json(line))
                except ValidationError:
                    log.error("line is no record", path=str(self.path), line=number, bytes=len(line))
                    self._set_aside(line)
                if len(batch) == count:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def clear(self) -> None:
        """All records are where they belong."""
        self.path.unlink(missing_ok=True)

    def _set_aside(self, line: bytes) -> None:
        with self.path.with_suffix(".unreadable").open("ab") as file:
            file.write(line.rstrip(b"\n") + b"\n")
