"""`pithctl task`: which task a request is of that names none, learnt from labelled prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.change import Reason, Yes, confirm
from router.cli.command import Session, command
from router.cli.failures import CallError, LocalError
from router.cli.files import STDIO
from router.cli.output import console, details, print_document, table
from router.cli.units import count, percent

if TYPE_CHECKING:
    from pith.router.v1.tasks_pb2 import TaskClassifier, TaskExample

app = typer.Typer(help="Tasks told from the text, by labelled prompts.")

NO_TASK = "(none)"
_SHOWN_FAULTS = 20


@command(app, "set")
def set_(
    session: Session,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help='JSON lines {"task": ..., "text": ...}; "-" is stdin. An empty task: of none.'
        ),
    ],
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Replaces all labelled prompts by those of a file, and shows how well tasks are told by them."""
    from pith.router.v1.tasks_pb2 import SetTaskExamplesRequest

    from router.cli.document import as_document

    lines, examples = _read(file)
    if not examples:
        raise LocalError(
            [f"{_named(file)} has no prompts"], next_step="forget those that there are: pithctl task forget"
        )
    request = SetTaskExamplesRequest(examples=examples, reason=reason)
    with session.router() as router:
        confirm(f"Replace all labelled prompts by the {count(len(examples))} of {_named(file)}?", yes=yes)
        try:
            card = router.call(router.tasks.SetTaskExamples, request)
        except CallError as failure:
            raise _located(failure, file, lines) from None
    if session.as_json:
        print_document(as_document(card))
    else:
        _print(card)


@command(app, "show")
def show(session: Session) -> None:
    """Shows how well tasks are told; each labelled prompt is judged as if it were new."""
    from pith.router.v1.tasks_pb2 import GetTaskClassifierRequest

    from router.cli.document import as_document

    with session.router() as router:
        card = router.call(router.tasks.GetTaskClassifier, GetTaskClassifierRequest())
    if session.as_json:
        print_document(as_document(card))
    else:
        _print(card)


@command(app, "tell")
def tell(
    session: Session, text: Annotated[str, typer.Argument(metavar="TEXT", help='A prompt; "-" is stdin.')]
) -> None:
    """Tells the task of a prompt, as if it were a request that names none."""
    from pith.router.v1.tasks_pb2 import TellTaskRequest

    from router.cli.document import as_document

    asked = sys.stdin.read() if text == STDIO else text
    with session.router() as router:
        reply = router.call(router.tasks.TellTask, TellTaskRequest(text=asked))
    if session.as_json:
        print_document(as_document(reply))
    elif not reply.likeliest:
        console().print("No tasks are told: there are no labelled prompts.")
    else:
        rows = [(one.task or NO_TASK, percent(one.likelihood)) for one in reply.likeliest]
        console().print(table(("TASK", "LIKELIHOOD"), rows, right=("LIKELIHOOD",)))
        console().print(f"Told: {reply.told}." if reply.told else "None would be told.")


@command(app, "forget")
def forget(session: Session, reason: Reason = "", yes: Yes = False) -> None:
    """Forgets all labelled prompts; requests that name no task have none from then on."""
    from pith.router.v1.tasks_pb2 import SetTaskExamplesRequest

    from router.cli.document import as_document

    with session.router() as router:
        confirm("Forget all labelled prompts?", yes=yes)
        card = router.call(router.tasks.SetTaskExamples, SetTaskExamplesRequest(reason=reason))
    if session.as_json:
        print_document(as_document(card))
    else:
        console().print("Forgotten: no task is told any more.")


def _read(file: str) -> tuple[list[int], list[TaskExample]]:
    """The prompts, and the line that each stands in. Raises LocalError."""
    from pith.router.v1.tasks_pb2 import TaskExample

    try:
        text = sys.stdin.read() if file == STDIO else Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LocalError([f"{file} cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise LocalError([f"{_named(file)} is not UTF-8"]) from None
    lines, examples, faults = [], [], []
    # Not splitlines, which would cut at characters that JSON allows within a text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            examples.append(TaskExample(**dict(_fields(given))))
            lines.append(number)
        except (ValueError, TypeError, RecursionError) as error:
            fault = "is no JSON" if isinstance(error, (json.JSONDecodeError, RecursionError)) else str(error)
            faults.append(f"{_named(file)}:{number}: {fault}")
    if faults:
        more = [f"and {count(len(faults) - _SHOWN_FAULTS)} more"] if len(faults) > _SHOWN_FAULTS else []
        raise LocalError([*faults[:_SHOWN_FAULTS], *more])
    return lines, examples


def _fields(given: Any) -> Iterator[tuple[str, str]]:
    """Raises ValueError, which says what is wrong."""
    if not isinstance(given, dict) or set(given) != {"task", "text"}:
        raise ValueError('must be an object with "task" and "text", and nothing else')
    for name, value in given.items():
        if not isinstance(value, str):
            raise ValueError(f'"{name}" must be a string')
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f'"{name}" has half of a character (a lone surrogate)') from None
        yield name, value


def _located(failure: CallError, file: str, lines: list[int]) -> CallError | LocalError:
    """The failure with the lines of the prompts that are at fault, where it is about any."""
    if not failure.error.violations:
        return failure
    faults = []
    for violation in failure.error.violations[:_SHOWN_FAULTS]:
        place, _, field = violation.field.partition("].")
        where = _named(file)
        if field and place.startswith("examples["):
            where = f"{where}:{lines[int(place.removeprefix('examples['))]}"
        faults.append(f"{where}: {field or violation.field} {violation.description}")
    return LocalError(faults)


def _print(card: TaskClassifier) -> None:
    from router.cli.document import moment, value

    if not card.revision:
        console().print("No tasks are told: there are no labelled prompts.")
        return
    rows = [
        (
            one.task or NO_TASK,
            count(one.examples),
            *(percent(value(one, field)) for field in ("told_right", "told_wrong", "untold")),
        )
        for one in card.tasks
    ]
    headings = ("TASK", "EXAMPLES", "TOLD RIGHT", "TOLD WRONG", "UNTOLD")
    if rows:
        console().print(table(headings, rows, right=headings[1:]))
    else:
        console().print("No tasks are told: the labelled prompts were forgotten.")
    about = [("set", f"{moment(card, 'updated_at')} by {card.updated_by or '-'}")]
    if card.reason:
        about.append(("reason", card.reason))
    if rows:
        about.append(("told from", f"a likelihood of {percent(card.least_likelihood)}"))
    if card.HasField("macro_f1"):
        about.append(("macro-F1", f"{card.macro_f1:.3f}, held out"))
    if not card.trained:
        about.append(("this router", "has not learnt them yet"))
    console().print(details(about))


def _named(file: str) -> str:
    return "stdin" if file == STDIO else file
