"""Applies a directive to a request: the messages, sampling and limits that the engine gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.limits import MAX_STOP_STRINGS
from router.directives.levels import Directive, Placement


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a directive makes of a request."""

    turns: tuple[Turn, ...]
    max_output_tokens: int
    """0 leaves it to the engine."""
    stop: tuple[str, ...]
    suppressed_words: tuple[str, ...]


def apply(
    directive: Directive,
    turns: Sequence[Turn],
    max_output_tokens: int = 0,
    stop: Sequence[str] = (),
    suppressed_words: Sequence[str] = (),
) -> Compiled:
    """Places the text, truncates history, and tightens (never loosens) the request's own limits.

    The text stands on a line of its own after the last user message, byte for byte the same for every request, so that
    all before it is a prefix which a cache may hold. A conversation without a user message gets it as one.
    """
    placed = _place(directive, _truncate(directive, turns))
    caps = [cap for cap in (max_output_tokens, directive.max_output_tokens) if cap > 0]
    return Compiled(
        turns=tuple(placed),
        max_output_tokens=min(caps, default=0),
        # The request's own come first, so that what does not fit is the directive's.
        stop=_union(stop, directive.stop)[:MAX_STOP_STRINGS],
        suppressed_words=_union(suppressed_words, directive.suppressed_words),
    )


def _truncate(directive: Directive, turns: Sequence[Turn]) -> list[Turn]:
    system = [turn for turn in turns if turn.role == "system"]
    rest = [turn for turn in turns if turn.role != "system"]
    if directive.history_messages and len(rest) > directive.history_messages:
        return system + rest[-directive.history_messages :]
    return list(turns)


def _place(directive: Directive, turns: list[Turn]) -> list[Turn]:
    if not directive.text:
        return turns
    role = "system" if directive.placement is Placement.SYSTEM else "user"
    for index in reversed(range(len(turns))):
        if turns[index].role == role:
            turns[index] = Turn(role, f"{turns[index].content}\n{directive.text}")
            return turns
    added = Turn(role, directive.text)
    return [added, *turns] if role == "system" else [*turns, added]


def _union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
