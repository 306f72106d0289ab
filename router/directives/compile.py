"""Applies a directive to a request: the messages, sampling and limits that the engine gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.limits import MAX_STOP_STRINGS
from router.directives.levels import Directive, Placement, TemplateValue


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
    template_variables: tuple[tuple[str, TemplateValue], ...] = ()
    """(name, value) for the model's chat template, beside its own."""


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
        template_variables=directive.template_variables if directive.placement is Placement.NATIVE else (),
    )


def _truncate(directive: Directive, turns: Sequence[Turn]) -> list[Turn]:
    """The newest messages and every system message, in their order.

    What is kept begins with a user message, even if that means one less: many chat templates refuse a conversation that
    an answer begins. The last user message is what is answered, so it stays, whatever follows it.
    """
    spoken = [index for index, turn in enumerate(turns) if turn.role != "system"]
    if not directive.history_messages or len(spoken) <= directive.history_messages:
        return list(turns)
    users = [index for index in spoken if turns[index].role == "user"]
    first = spoken[-directive.history_messages]
    if users:
        first = min((index for index in users if index >= first), default=users[-1])
    return [turn for index, turn in enumerate(turns) if turn.role == "system" or index >= first]


def _place(directive: Directive, turns: list[Turn]) -> list[Turn]:
    if not directive.text or directive.placement is Placement.NATIVE:
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
