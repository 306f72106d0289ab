"""The result file: what was measured so far, kept after every piece, so that a run can stop and another go on."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = 1
FOLDER = Path(__file__).parents[1] / "results"


class ResultsError(Exception):
    """A result file that cannot be gone on with; the message names it and says why in one line."""


def default_file(name: str, folder: Path = FOLDER) -> Path:
    """Of today, by the device's name and what it was used for."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / f"{words}-{datetime.now(UTC).date().isoformat()}.json"


class Results:
    """Pieces by name; every change is written at once, whole or not at all."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self._file, self._values = file, values

    @classmethod
    def open(
        cls, file: Path, benchmark: str, settings: Mapping[str, Any], command: str, machine: Mapping[str, Any]
    ) -> "Results":
        """Goes on with `file`, or begins it.

        Args:
            settings: what has to be the same in every run that adds to a file.

        Raises ResultsError where it is damaged, or was measured with other settings.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            values = {"format": FORMAT, "benchmark": benchmark, **settings, "runs": [], "pieces": {}}
        except OSError as error:
            raise ResultsError(f"{file} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ResultsError(f"{file} is damaged: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("benchmark") != benchmark:
            raise ResultsError(f"{file} is no result file of {benchmark}, format {FORMAT}")
        for name, value in settings.items():
            if values.get(name) != value:
                raise ResultsError(f"{file} was measured with {name} {values.get(name)!r}, not {value!r}: name another")
        values["runs"].append({"command": command, "began": _now(), "machine": dict(machine)})
        return cls(file, values)

    @property
    def values(self) -> Mapping[str, Any]:
        """As the file holds them."""
        return self._values

    @property
    def pieces(self) -> Mapping[str, Mapping[str, Any]]:
        return self._values["pieces"]  # type: ignore[no-any-return]

    def finished(self, piece: str, *, retry_failed: bool = False) -> bool:
        """Whether a piece was measured, or found not to fit; a failed one too, unless it is to be tried again."""
        found = self.pieces.get(piece)
        return found is not None and not (retry_failed and "failed" in found)

    def add(self, piece: str, result: Mapping[str, Any], seconds: float) -> None:
        """Raises ResultsError where the file cannot be written; the one before is left as it was."""
        run = len(self._values["runs"]) - 1
        self._values["pieces"][piece] = {**result, "run": run, "took_seconds": round(seconds, 1), "ended": _now()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=self._file.parent, prefix=self._file.name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    json.dump(self._values, stream, indent=1)
                    stream.write("\n")
                Path(draft).chmod(0o644)  # a temporary file is its owner's alone
                Path(draft).replace(self._file)
            except OSError:
                Path(draft).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ResultsError(f"{self._file} cannot be written: {error.strerror or error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
