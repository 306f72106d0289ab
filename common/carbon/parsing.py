"""What files and configuration say of intensities, read into values; what is wrong is named with its field."""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime
from pathlib import Path

from common.carbon.intensity import Scope, check_g_per_kwh


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, plain or .gz. Raises OSError where it cannot be read, ValueError where it is no text."""
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        # Exports often begin with a byte-order mark, which would become part of the first column's name.
        return content.decode("utf-8-sig").splitlines()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: must be UTF-8 text, plain or .gz, got {error}") from None


def parse_time(text: str, field: str) -> datetime:
    """ISO 8601, UTC where no offset is given. Raises ValueError that names the field."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{field} must be an ISO 8601 date and time, got {text!r}") from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed


def parse_g_per_kwh(text: str, field: str) -> float:
    """Raises ValueError that names the field."""
    try:
        return check_g_per_kwh(float(text))
    except ValueError:
        raise ValueError(f"{field} must be a finite number of at least 0, got {text!r}") from None


def parse_scope(text: str, field: str) -> Scope:
    """Raises ValueError that names the field."""
    try:
        return Scope[text.upper()]
    except KeyError:
        raise ValueError(f"{field} must be direct or lifecycle, got {text!r}") from None
