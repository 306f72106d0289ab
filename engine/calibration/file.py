"""A calibration's file in the cache directory, by model and device."""

import re
import tempfile
from pathlib import Path

from common.energy.calibration import Calibration
from engine.cache_file import write_whole


class CalibrationFileError(Exception):
    """A calibration cannot be used or stored; the message names the file and the fault in one line."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"{file}: {' '.join(fault.split())}")


def check_writable(cache_directory: Path) -> None:
    """Raises CalibrationFileError where nothing could be stored there."""
    try:
        cache_directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_directory):
            pass
    except OSError as error:
        raise CalibrationFileError(cache_directory, f"cannot be written: {error.strerror or error}") from error


def save(calibration: Calibration, cache_directory: Path) -> Path:
    """Writes it whole or not at all and returns its file. Raises CalibrationFileError where it cannot."""
    file = _file(cache_directory, calibration.model_digest, calibration.device)
    try:
        write_whole(file, calibration.to_json())
    except OSError as error:
        raise CalibrationFileError(file, f"cannot be written: {error.strerror or error}") from error
    return file


def load(cache_directory: Path, model_digest: str, device: str) -> Calibration | None:
    """The stored calibration of a model on a device; None where there is none.

    Raises CalibrationFileError where the file is unreadable, damaged, or of another model or device.
    """
    file = _file(cache_directory, model_digest, device)
    try:
        calibration = Calibration.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CalibrationFileError(file, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # also what is no UTF-8
        raise CalibrationFileError(file, str(error)) from error
    if (calibration.model_digest, calibration.device) != (model_digest, device):
        raise CalibrationFileError(file, "belongs to another model or device")
    return calibration


def _file(cache_directory: Path, model_digest: str, device: str) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return cache_directory / f"energy-{model_digest[:32]}-{words}.json"
