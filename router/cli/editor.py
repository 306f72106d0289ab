"""`edit`: a resource as YAML in the person's own editor, sent back with the etag that it was read with."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from router.cli.change import Reason, Yes, confirm
from router.cli.command import Session, command
from router.cli.differences import painted, unified
from router.cli.failures import CallError, ExitCode, LocalError
from router.cli.output import console, printable
from router.cli.resource import Kind, Name, print_changed, print_resource

if TYPE_CHECKING:
    from router.cli.connection import Connection
    from router.cli.manifest import Manifest

_EDITORS = ("VISUAL", "EDITOR")
_DEFAULT_EDITOR = "vi"
_UNCHANGED = "Nothing was changed."


def register(app: typer.Typer, kind: Kind) -> None:
    """Adds edit."""

    @command(
        app,
        "edit",
        words=f"Opens a {kind.noun} in $VISUAL or $EDITOR as YAML, shows what was changed, and asks before it sends "
        "that. What was typed is kept in a file if it cannot be sent.",
    )
    def edit(session: Session, name: Name, yes: Yes = False, reason: Reason = "") -> None:
        with session.router() as router:
            present = kind.get(router, name)
            begun = _text(kind, present)
            path = _new_file(kind, name, begun)
            try:
                wish = _typed(session, kind, present, path, begun, yes)
                while wish is not None:
                    try:
                        updated = _send(kind, router, wish, reason)
                        break
                    except LocalError as fault:
                        if not _again(fault):
                            raise
                        wish = _typed(session, kind, present, path, begun, yes)
            except CallError as failure:
                failure.advice = _kept(path)
                if failure.error.reason == "ETAG_MISMATCH":
                    failure.advice = (
                        f"what you typed is in {path}; to apply it as it is would undo the other change: see that "
                        f"with: pithctl {kind.noun} diff {name}, and edit the {kind.noun} again"
                    )
                raise
            # Ctrl-C or the end of the input, where a question was asked.
            except (typer.Abort, KeyboardInterrupt):
                raise LocalError([_UNCHANGED], next_step=_kept(path), exit_code=ExitCode.OTHER) from None
            path.unlink()
            if wish is not None:
                print_changed(session, kind, router, updated, kind.once_changed)
                return
        if session.as_json:
            print_resource(session, kind, present)
        else:
            console().print(_UNCHANGED)


def _typed(session: Session, kind: Kind, present: Any, path: Path, begun: str, yes: bool) -> _Wish | None:
    """What somebody has typed, seen again and agreed to; None where that changes nothing. Raises LocalError, Abort."""
    while True:
        _open_editor(path)
        try:
            wish = _read(kind, present, path, begun)
        except LocalError as fault:
            if not _again(fault):
                raise
            continue
        if wish is not None:
            if not (yes and session.as_json):
                _show(session, kind, present, wish.resource)
            confirm("Send this change?", yes=yes)
        return wish


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was typed: the resource with the etag that was read, the fields that differ, and where each is."""

    resource: Any
    changed: Sequence[str]
    manifest: Manifest
    path: Path


def _text(kind: Kind, present: Any) -> str:
    """What the editor opens with: every field, and above them what they mean."""
    from router.cli.document import moment
    from router.cli.manifest_text import text_of

    about = [
        f"{kind.title} {present.name}: revision {present.revision}, {moment(present, 'updated_at')} by "
        f"{present.updated_by or 'unknown'}, etag {present.etag}.",
        "Save and leave the editor, and you are shown the change and asked. Unchanged or empty, it changes nothing.",
        "",
        *(f"{field}: {meaning}" for field, meaning in kind.meanings.items()),
    ]
    header = "".join(f"# {line}".rstrip() + "\n" for line in about)
    item = text_of(present, every_field=True).splitlines()
    body = "".join(f"{'  - ' if index == 0 else '    '}{line}\n" for index, line in enumerate(item))
    return f"{header}{kind.plural}:\n{body}{''.join(_absent(present))}"


def _absent(present: Any) -> Iterator[str]:
    """Commented lines for the parts that are not there, to be made true."""
    for field in present.DESCRIPTOR.fields:
        if field.message_type is not None and field.has_presence and not present.HasField(field.name):
            if field.name == "template_variables":
                yield "    # template_variables:\n    #   enable_thinking: false\n"
            elif field.message_type.full_name.startswith("pith."):
                yield f"    # {field.name}:\n"
                yield from (f"    #   {part.name}:\n" for part in field.message_type.fields)


def _new_file(kind: Kind, name: str, text: str) -> Path:
    """Readable by this user alone."""
    handle, path = tempfile.mkstemp(prefix=f"pithctl-{kind.noun}-{name}-", suffix=".yaml")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def _open_editor(path: Path) -> None:
    """Raises LocalError where there is no such editor, or it failed; the file stays as it left it."""
    line = next((os.environ[name] for name in _EDITORS if os.environ.get(name)), _DEFAULT_EDITOR)
    try:
        # The editor belongs on the terminal, also where stdout is read by a program.
        command = [*shlex.split(line), str(path)]
        with _interrupts_left_to_editor():
            done = subprocess.run(command, stdout=None if sys.stdout.isatty() else 2, check=False)
    except (OSError, ValueError) as error:
        path.unlink()
        raise LocalError(
            [f"the editor {line!r} cannot be started: {error}"], next_step="set VISUAL or EDITOR"
        ) from None
    if done.returncode != 0:
        fault = f"the editor {line!r} ended with {done.returncode}: nothing was changed"
        raise LocalError([fault], next_step=_kept(path), exit_code=ExitCode.OTHER)


@contextmanager
def _interrupts_left_to_editor() -> Iterator[None]:
    """Ctrl-C reaches both processes, and to an editor it is one of its keys."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_empty(text: str) -> bool:
    return all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines())


def _read(kind: Kind, present: Any, path: Path, begun: str) -> _Wish | None:
    """What was typed; None where that changes nothing. Raises LocalError."""
    from router.cli.manifest import OUTPUT_ONLY, ManifestError, parse

    try:
        typed = path.read_text(encoding="utf-8")
        if typed == begun or _is_empty(typed):
            return None
        manifest = parse(typed)
    except UnicodeDecodeError:
        raise LocalError(["the text is not UTF-8"], next_step=_kept(path)) from None
    except ManifestError as error:
        faults = [f"line {fault.line}: {fault.description}" for fault in error.faults]
        raise LocalError(faults, next_step=_kept(path)) from None
    of_kind: Sequence[Any] = getattr(manifest, kind.plural)
    if len(of_kind) != 1 or len(manifest.directives) + len(manifest.policies) != 1:
        raise LocalError([f"there must be one {kind.noun} and nothing else"], next_step=_kept(path))
    edited = of_kind[0]
    if edited.name != present.name:
        fault = f"the name is {edited.name!r} and was {present.name!r}; it cannot change"
        raise LocalError([fault], next_step=f"create another {kind.noun} and delete this one. {_kept(path)}")
    changed = [
        field.name
        for field in present.DESCRIPTOR.fields
        if field.name not in OUTPUT_ONLY and _part(present, field) != _part(edited, field)
    ]
    edited.etag = present.etag
    return _Wish(edited, changed, manifest, path) if changed else None


def _part(message: Any, field: Any) -> tuple[bool, Any]:
    return (message.HasField(field.name) if field.has_presence else True, getattr(message, field.name))


def _show(session: Session, kind: Kind, present: Any, edited: Any) -> None:
    from router.cli.manifest_text import text_of

    out = console(stderr=session.as_json)
    lines = unified(
        text_of(present), text_of(edited), f"{kind.noun} {present.name}, revision {present.revision}", "edited"
    )
    for line in painted(lines):
        out.print(line, soft_wrap=True)


def _send(kind: Kind, router: Connection, wish: _Wish, reason: str) -> Any:
    """Raises LocalError for what the router finds wrong in the text, CallError for all else."""
    try:
        return kind.update(router, wish.resource, wish.changed, reason)
    except CallError as failure:
        if not failure.error.violations:
            raise
        faults = []
        for violation in failure.error.violations:
            field = violation.field.removeprefix(f"{kind.noun}.")
            line = wish.manifest.line(f"{kind.plural}[0].{field}")
            faults.append(f"{f'line {line}: ' if line else ''}{field} {violation.description}")
        raise LocalError(faults, next_step=_kept(wish.path)) from None


def _again(fault: LocalError) -> bool:
    """Asks, where there is somebody to ask."""
    if not sys.stdin.isatty():
        return False
    for line in fault.lines:
        print(f"Error: {printable(line)}", file=sys.stderr)
    return typer.confirm("Edit it again?", default=True, err=True)


def _kept(path: Path) -> str:
    return f"what you typed is in {path}; see what it would change with: pithctl apply {path} --dry-run"
