"""The outbox: files that hold records while they cannot go where they belong."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

SEGMENT_RECORDS = 500
SEGMENT_BYTES = 4 * 2**20
"""At either of which a file is full: so much is repeated where a router dies while it writes out."""

Record = TypeVar("Record")

log = structlog.get_logger("outbox")


class OutboxShared(OSError):  # noqa: N818
    """Two routers were given one outbox: each would delete what the other has yet to write out."""


@dataclass(frozen=True, slots=True)
class Segment(Generic[Record]):
    """One file of the outbox."""

    path: Path
    records: tuple[Record, ...]
    unreadable: tuple[bytes, ...]
    """Lines that are no records."""


class Outbox(Generic[Record]):
    """Files of JSON lines, one a record, numbered in order: PATH `box.jsonl` stands for `box.00000001.jsonl` and so on,
    and for `box.jsonl` itself, which is older than all of them.

    A file goes as a whole once its records are where they belong, so that a router that dies while it writes out begins
    again at most a file back. Each process begins files of its own: a line that a crash has cut off stays the last of
    its file. Blocks: to be used off the event loop, from any thread.

    Args:
        adapter: Of the records' type, whose fields' types are what the lines are checked against.
    """

    def __init__(self, path: Path, adapter: TypeAdapter[Record]) -> None:
        self.path = path
        self._adapter = adapter
        self._lock = threading.Lock()
        self._claimed: BinaryIO | None = None
        self._filling: Path | None = None
        self._filled = 0
        # Cannot be read or deleted: left for the next start, and for a person.
        self._faulty: set[Path] = set()
        self._sizes_bytes = {path: _size_bytes(path) for path in self._paths()}
        self.in_use = bool(self._sizes_bytes)
        """Records lie here, perhaps those that an earlier process has left."""

    def claim(self) -> None:
        """Keeps other processes from the same files, until `release` or the end of this one.

        Raises:
            OutboxShared: Another process has them.
        """
        try:
            self._make_folder()
            self._claimed = open(self.path.with_suffix(".lock"), "ab", opener=_private)  # noqa: SIM115
            fcntl.flock(self._claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise OutboxShared(
                f"{self.path} is another router's outbox; each needs an outbox_path of its own"
            ) from None
        except OSError as error:
            # What cannot be locked cannot be written either, and that is dealt with where it happens.
            log.error("outbox cannot be claimed", path=str(self.path), fault=str(error))

    def release(self) -> None:
        if self._claimed is not None:
            self._claimed.close()
            self._claimed = None

    @property
    def files(self) -> int:
        return len(self._sizes_bytes)

    @property
    def bytes(self) -> int:
        """Of all files. As known here, from any thread: does no I/O."""
        return sum(tuple(self._sizes_bytes.values()))

    def append(self, records: Sequence[Record]) -> None:
        """On disk before it returns. Raises OSError where the disk does not take them; then none of them is there."""
        lines = b"".join(self._adapter.dump_json(record) + b"\n" for record in records)
        with self._lock:
            path, self._filling = self._filling or self._next(), None
            size = self._sizes_bytes[path] = append_whole(path, lines)
            self.in_use = True
            self._filled += len(records)
            if self._filled < SEGMENT_RECORDS and size < SEGMENT_BYTES:
                self._filling = path

    def oldest(self) -> Segment[Record] | None:
        """What has waited longest; None where there is nothing. Nothing is added to that file any more."""
        with self._lock:
            for path in self._paths():
                if path == self._filling:
                    self._filling = None
                try:
                    return self._read(path)
                except OSError as error:
                    self._give_up(path, error)
            self.in_use = False
            return None

    def remove(self, segment: Segment[Record]) -> None:
        """Its records are where they belong. What is no record is kept aside, beside the outbox, as `.unreadable`."""
        with self._lock:
            try:
                if segment.unreadable:
                    log.error("lines are no records", path=str(segment.path), lines=len(segment.unreadable))
                    append_whole(self.path.with_suffix(".unreadable"), b"\n".join((*segment.unreadable, b"")))
                segment.path.unlink()
                self._sizes_bytes.pop(segment.path, None)
            except OSError as error:
                self._give_up(segment.path, error)

    def _read(self, path: Path) -> Segment[Record]:
        records, unreadable = [], []
        for line in path.read_bytes().split(b"\n"):
            try:
                if line:
                    records.append(self._adapter.validate_json(line))
            except ValidationError:
                unreadable.append(line)
        return Segment(path, tuple(records), tuple(unreadable))

    def _next(self) -> Path:
        self._make_folder()
        last = max((_number(path) for path in self._paths()), default=0)
        self._filled = 0
        return self.path.with_name(f"{self.path.stem}.{last + 1:08}{self.path.suffix}")

    def _make_folder(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _paths(self) -> list[Path]:
        """Oldest first, those at fault apart."""
        try:
            beside = list(self.path.parent.iterdir())
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                log.error("outbox cannot be read", path=str(self.path), fault=str(error))
            return []
        ours = [path for path in beside if path == self.path or self._is_segment(path)]
        return sorted((path for path in ours if path not in self._faulty), key=_number)

    def _is_segment(self, path: Path) -> bool:
        stem, _, number = path.stem.rpartition(".")
        return stem == self.path.stem and path.suffix == self.path.suffix and number.isdecimal()

    def _give_up(self, path: Path, error: OSError) -> None:
        log.error("outbox file left as it is", path=str(path), fault=str(error))
        self._faulty.add(path)


def append_whole(path: Path, content: bytes) -> int:
    """To a file, on disk before it returns: the file's size. Raises OSError; then the file is as it was.

    A file that this makes is its owner's alone.
    """
    new = not path.exists()
    with open(path, "ab", buffering=0, opener=_private) as file:
        before = file.tell()
        try:
            view = memoryview(content)
            while view:
                view = view[file.write(view) or 0 :]
            os.fsync(file.fileno())
            if new:
                _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink() if new else file.truncate(before)
            raise
        return file.tell()


def _private(path: str, flags: int) -> int:
    # What users and models said is in these files.
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    # Or else a file outlives a power cut, but not its name.
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _number(path: Path) -> int:
    number = path.stem.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0
