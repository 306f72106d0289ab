"""The options of a multiple-choice question, as its prompt lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from common.quality.graders.normalisation import composed, graded_text, normalised, words

Options = Mapping[str, str]
"""Text by letter, A first."""

# "(A): text", "(A) text", "A) text", "A. text", "A: text": a line each, else one after the other.
_LABELS = (
    re.compile(r"^[ \t]*\(?([A-Za-z])(?:\)[ \t]?:?|[.:])(?=\s)", re.MULTILINE),
    re.compile(r"(?<!\w)\(([A-Za-z])\):?"),
    re.compile(r"(?<![\w(])([A-Za-z])[).:](?=\s)"),
)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]*")
_LABELLED = re.compile(r"\(?([A-Za-z])[).:]+\s*(\S.*)", re.DOTALL)


def options_of(prompt: str) -> Options:
    """The last list in the prompt whose labels are A, B and so on; empty where there is none.

    A text goes on over line breaks to the next label or an empty line.
    """
    text = composed(prompt)
    for label in _LABELS:
        if chain := _last_chain(list(label.finditer(text))):
            ends = [match.start() for match in chain[1:]] + [len(text)]
            return {
                match[1].upper(): _PARAGRAPH_END.split(text[match.end() : end], maxsplit=1)[0].strip()
                for match, end in zip(chain, ends, strict=True)
            }
    return {}


def options_named(text: str, options: Options) -> list[str]:
    """The letters that a text names which is nothing but a letter, an option's text, or both.

    Without options any letter will do. More than one where options have the same text.
    """
    stated = graded_text(composed(text)).strip()
    letter = _LETTER.fullmatch(stated)
    if letter is not None and (not options or letter[1].upper() in options):
        return [letter[1].upper()]
    labelled = _LABELLED.fullmatch(stated)
    if labelled is None:
        return _fitting(stated, options, (_spaced, normalised, words))
    # "A. Milne" may be all of an option's text; by its words alone the label A would be lost, which is an article too.
    agreeing = [
        one for one in _fitting(labelled[2], options, (_spaced, normalised, words)) if one == labelled[1].upper()
    ]
    return agreeing or _fitting(stated, options, (_spaced, normalised))


def right_option(reference: str, options: Options) -> str:
    """The letter that the reference names (`options_named`).

    Raises ValueError where it names none, or several.
    """
    if not reference.strip("\0 \t\r\n"):
        raise ValueError("reference must be a letter or the text of an option, got a blank one")
    named = options_named(reference, options)
    if len(named) == 1:
        return named[0]
    if named:
        raise ValueError(f"reference must fit one option, not {' and '.join(named)}, got {reference!r}")
    if options:
        raise ValueError(
            f"reference must be one of the letters {', '.join(options)} or the text of one option, got {reference!r}"
        )
    raise ValueError(f"reference must be a letter where the prompt lists no options, got {reference!r}")


def _last_chain(labels: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    best: list[re.Match[str]] = []
    chain: list[re.Match[str]] = []
    for label in labels:
        position = ord(label[1].upper()) - ord("A")
        if position == 0:
            chain = [label]
        elif position == len(chain) and chain:
            chain.append(label)
        if len(chain) >= 2:
            best = chain
    return best


def _fitting(text: str, options: Options, forms: Sequence[Callable[[str], object]]) -> list[str]:
    """Letters of the options with this text in the first form in which there is one."""
    for form in forms:
        wanted = form(text)
        if fitting := [letter for letter, option in options.items() if form(option) == wanted]:
            return fitting
        # What follows the last option in the prompt may be an instruction.
        if fitting := [letter for letter, option in options.items() if form(option.partition("\n")[0]) == wanted]:
            return fitting
    return []


def _spaced(text: str) -> str:
    return " ".join(text.split())
