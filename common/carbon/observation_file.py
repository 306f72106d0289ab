"""The last good observations on disk, so that who restarts in an outage of the grid's API still has them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from common.carbon.observations import Observation, Observations
from common.carbon.source import Source, readable_g_per_kwh, readable_time

MAX_FILE_BYTES = 4 << 20
"""A year of hours is 0.5 MB."""

log = structlog.get_logger("carbon")


class ObservationFile:
    """A JSON file of one source's observations. Both methods block, and neither raises: the file is a convenience.

    Args:
        source: Of another source, zone or signal, nothing is read.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self._path = path
        self._of = {"source": source.name, "zone": source.zone, "signal": str(source.signal)}
        self._failing = False

    def read(self) -> Sequence[Observation]:
        """What the file holds; nothing where there is none, or none of this source."""
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
            content = json.loads(self._path.read_bytes())
            if content["of"] != self._of:
                return ()
            return [_observation(*row) for row in content["observations"]]
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("kept intensities cannot be read", path=str(self._path), fault=_of(error))
            return ()

    def write(self, observations: Observations) -> None:
        """Puts these in the file's place, whole or not at all."""
        rows = [[one.start.isoformat(), one.g_per_kwh, one.estimated] for one in observations]
        # Routers may share a folder, and so this file.
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("w", encoding="utf-8") as file:
                json.dump({"of": self._of, "observations": rows}, file, separators=(",", ":"))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("intensities cannot be kept on disk", path=str(self._path), fault=_of(error))
            self._failing = True
            with contextlib.suppress(OSError):
                draft.unlink()


def _observation(start: object, g_per_kwh: object, estimated: object) -> Observation:
    moment, value = readable_time(start), readable_g_per_kwh(g_per_kwh)
    if moment is None or value is None:
        raise ValueError("holds what is no observation")
    return Observation(moment, value, bool(estimated))


def _of(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
