"""Manifests in files: read with faults that name file and line, written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from router.cli.failures import CallError, ExitCode, LocalError

if TYPE_CHECKING:
    from router.cli.manifest import Manifest

STDIO = "-"


def read_manifest(file: str) -> Manifest:
    """Of a file, or of stdin where that is "-". Raises LocalError."""
    from router.cli.manifest import ManifestError, parse

    try:
        text = sys.stdin.read() if file == STDIO else Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LocalError([f"{file} cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise LocalError([f"{file} is not UTF-8"]) from None
    try:
        return parse(text)
    except ManifestError as error:
        raise LocalError(
            [f"{_named(file)}:{fault.line}: {fault.description}" for fault in error.faults],
            next_step="see what there is, in the form that is read: pithctl export",
        ) from None


def located(
    failure: CallError, file: str, manifest: Manifest, places: Mapping[str, str] = MappingProxyType({})
) -> CallError | LocalError:
    """The failure with the lines that its fields stand in, where it is about fields of the manifest.

    Args:
        places: what a field's first word stands for in the manifest, e.g. {"policy": "policies[2]"}.
    """
    if not any(manifest.lines) or not failure.error.violations:
        return failure
    faults = []
    for violation in failure.error.violations:
        first, dot, rest = violation.field.partition(".")
        line = manifest.line(places.get(first, first) + dot + rest)
        where = f"{_named(file)}:{line}: " if line else ""
        faults.append(f"{where}{violation.field} {violation.description}")
    return LocalError(faults)


def write_whole(file: str, text: str) -> None:
    """Replaces the file in one step, so that who reads it meanwhile sees it before or after. Raises LocalError."""
    path = Path(file)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        new = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as writing:
                writing.write(text)
            # What a plain open would have given it.
            mask = os.umask(0)
            os.umask(mask)
            new.chmod(0o666 & ~mask)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LocalError([f"{file} cannot be written: {error.strerror}"], exit_code=ExitCode.OTHER) from None


def _named(file: str) -> str:
    return "stdin" if file == STDIO else file
