"""Exceptions as a log may hold them: what was raised and where, without what the text of it might quote."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from common.errors import PithError

_LINKS = {True: "which is the cause of", False: "during the handling of which was raised"}


def safe_traceback(error: BaseException) -> str:
    """Type, frames (file, line, function, source) and causes, oldest first.

    The message only where it is ours to know what is in it: of PithError, and of OSError what the system says. Any
    other may hold a prompt, as one of a JSON parser, a tokenizer or a database does.
    """
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in seen:
        yield from _lines(earlier, seen)
        yield f"\n{_LINKS[error.__cause__ is not None]}\n"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    module = "" if type(error).__module__ == "builtins" else f"{type(error).__module__}."
    yield f"{module}{type(error).__qualname__}: {_message(error)}"
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, 1):
            if id(member) not in seen:
                yield f"\nof which {number}:\n"
                yield from _lines(member, seen)


def _message(error: BaseException) -> str:
    if isinstance(error, PithError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"[Errno {error.errno}] {error.strerror}"
    return "(message withheld)"
