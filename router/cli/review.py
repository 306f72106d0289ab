"""`pithctl review`: pairs of answers on the terminal, blind, and what a person thinks of them."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from router.cli.command import Session, command
from router.cli.completion import complete_task
from router.cli.failures import LocalError
from router.cli.output import console, dim, print_line, printable
from router.cli.units import count as counted

if TYPE_CHECKING:
    from pith.router.v1.reviews_pb2 import Review

    from router.cli.keys import Keys

# Of a text; of a longer one the first and the last half of so many, until all is asked for.
_SHOWN_CHARACTERS = 4_000
_CHOICES = {"1": "CHOICE_FIRST", "2": "CHOICE_SECOND", "t": "CHOICE_TIE"}
_SKIP, _QUIT, _ALL = "s", "q", "a"
_END = ("", "\x04")
_BAR = "│ "
_A_WHILE_SECONDS = 60.0


class _Input(Protocol):
    def read(self) -> str:
        """The next key, in small letters; empty at the end of input."""

    def forget(self) -> None:
        """Drops what was pressed before there was a question, and the rest of a key that sends several characters."""


def register(app: typer.Typer) -> None:
    command(app, "review")(review)


def review(
    session: Session,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="Default: every task.", autocompletion=complete_task)
    ] = None,
    rater: Annotated[str, typer.Option("--rater", metavar="NAME", help="Who compares.  [default: your login]")] = "",
    count: Annotated[int, typer.Option("--count", metavar="COUNT", min=1, max=50, help="How many pairs.")] = 10,
) -> None:
    """Shows pairs of answers, and asks which is better. Neither says which is L0. What was skipped or left comes again.

    Keys: 1, 2, t (tie), s (skip), q (quit). In a pipe, a line each; with --json, a pair is a line too.
    """
    from pith.evaluator.v1.evaluation_pb2 import ListPendingReviewsRequest, SubmitRatingRequest
    from pith.router.v1.reviews_pb2 import Choice

    name = rater or _login()
    with session.evaluator() as evaluator:
        asked = ListPendingReviewsRequest(rater=name, task=task, count=count)
        reviews = evaluator.call(evaluator.evaluation.ListPendingReviews, asked).reviews
        compared = skipped = 0
        with _until_interrupted(as_json=session.as_json), _input(as_json=session.as_json) as given:
            for number, one in enumerate(reviews, start=1):
                answer = _ask(session, given, one, f"Pair {number} of {len(reviews)}")
                if answer == _QUIT:
                    break
                if answer == _SKIP:
                    skipped += 1
                    continue
                choice = Choice.Value(_CHOICES[answer])
                submitted = SubmitRatingRequest(review_id=one.review_id, rater=name, choice=choice)
                evaluator.call(evaluator.evaluation.SubmitRating, submitted)
                compared += 1
    if session.as_json:
        print_line({"rater": name, "compared": compared, "skipped": skipped, "left": len(reviews) - compared})
        return
    out = console()
    if not reviews:
        of_task = f" of task {printable(task)}" if task else ""
        out.print(f"Nothing to compare for {printable(name)}: no answers{of_task} are scored that are new to you.")
        return
    left = len(reviews) - compared
    comes_again = f"; {counted(left)} left, which come again" if left else ""
    out.print(f"{counted(compared)} compared by {printable(name)}{comes_again}.")


@contextmanager
def _until_interrupted(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        # The cursor stands behind the question.
        if not as_json:
            print()


def _login() -> str:
    try:
        return getpass.getuser()
    # What it raises where nobody is logged in has changed between Python's versions.
    except (OSError, KeyError, ImportError):
        raise LocalError(["--rater: who compares is not known"], next_step="name yourself with --rater") from None


def _ask(session: Session, given: _Input, one: Review, heading: str) -> str:
    """Shows the pair until it is answered: a key of `_CHOICES`, `_SKIP` or `_QUIT`."""
    from router.cli.document import as_document

    if session.as_json:
        print_line(as_document(one))
        is_cut = False
    else:
        is_cut = _show(one, heading, whole=False)
    while True:
        given.forget()
        if not session.as_json:
            more = ", a (show all)" if is_cut else ""
            print(f"Which is better? 1, 2, t (tie), s (skip), q (quit){more}: ", end="", flush=True)
        key = given.read()
        if not session.as_json:
            print(printable(key[:1]) if key not in _END else "")
        if key in _END:
            return _QUIT
        if key in (*_CHOICES, _SKIP, _QUIT):
            return key
        if key == _ALL and is_cut:
            is_cut = _show(one, heading, whole=True)
        elif not session.as_json:
            print("That is none of the keys.", file=sys.stderr)
        else:
            print_line({"error": "must be 1, 2, t, s or q"})


def _show(one: Review, heading: str, *, whole: bool) -> bool:
    """Whether something was left out."""
    from pith.common.v1.text_pb2 import Role
    from rich.text import Text

    out = console()
    conversation = "\n\n".join(
        f"[{Role.Name(message.role).removeprefix('ROLE_').lower()}] {message.content}" for message in one.messages
    )
    out.print()
    out.print(dim(f"{heading}, task {one.task}" if one.task else heading))
    is_cut = False
    for title, text in (("Asked", conversation), ("Answer 1", one.first), ("Answer 2", one.second)):
        shown = text if whole else _cut(text)
        is_cut |= shown != text
        out.print(f"{title}:", style="bold")
        # Every line behind a bar, folded ones too: an answer that looks like what pithctl prints is told from it.
        for line in Text(printable(shown)).wrap(out, out.width - len(_BAR), tab_size=4):
            out.print(Text(_BAR).append_text(line), soft_wrap=True)
    out.print()
    return is_cut


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    left_out = counted(len(text) - 2 * half)
    return f"{text[:half]}\n[… {left_out} characters are not shown …]\n{text[-half:]}"


@contextmanager
def _input(*, as_json: bool) -> Iterator[_Input]:
    if as_json or not sys.stdin.isatty():
        yield _Lines()
        return
    # Imported here: not every system has terminals of this kind.
    from router.cli.keys import Keys

    with Keys() as keys:
        yield _Pressed(keys)


class _Lines:
    def read(self) -> str:
        while True:
            try:
                line = sys.stdin.readline()
            except UnicodeDecodeError:
                return "?"
            if not line or line.strip():
                return line.strip().lower()

    def forget(self) -> None:
        pass


class _Pressed:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def read(self) -> str:
        while not (key := self._keys.wait(_A_WHILE_SECONDS)):
            pass
        return key.lower()

    def forget(self) -> None:
        while self._keys.wait(0):
            pass
