"""Graders: the quality of an answer, in [0, 1], against a reference.

Where an answer has a line "Answer:" (in any case, in some other languages too), what follows the last one is graded: an
answer that shows its steps gets the grade of one that does not. References are read the same way.

Work is linear in the answer for each line of the reference: an answer of 100 kB is as welcome as any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from common.quality.graders.aliases import alias
from common.quality.graders.choice import choice
from common.quality.graders.exact import exact
from common.quality.graders.items import item_set, required_items
from common.quality.graders.numeric import numeric
from common.quality.graders.token_f1 import token_f1

__all__ = ["GRADERS", "Grader", "Rules", "grade", "grader_of", "judge_name"]

_PREFIX = "grader:"


class Grader(Protocol):
    """Returns the quality of answer, in [0, 1]; raises ValueError for a reference that it cannot use.

    The prompt matters to `choice` alone, for which it lists the options.
    """

    def __call__(self, answer: str, reference: str, prompt: str = "") -> float: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What a grader gives, and for what."""

    grader: Grader
    revision: int
    """Counts up whenever some answer gets another grade than before: those are the scores of another judge."""


GRADERS: Mapping[str, Rules] = MappingProxyType(
    {
        "alias": Rules(alias, revision=1),
        "choice": Rules(choice, revision=1),
        "exact": Rules(exact, revision=1),
        "item_set": Rules(item_set, revision=1),
        "numeric": Rules(numeric, revision=2),
        "required_items": Rules(required_items, revision=1),
        "token_f1": Rules(token_f1, revision=1),
    }
)


def grade(name: str, answer: str, reference: str, prompt: str = "") -> float:
    """Quality of answer by the grader of that name.

    Raises ValueError for an unknown name or a reference that the grader cannot use.
    """
    rules = GRADERS.get(name)
    if rules is None:
        raise ValueError(f"grader must be one of {', '.join(sorted(GRADERS))}, got {name!r}")
    return rules.grader(answer, reference, prompt)


def judge_name(name: str) -> str:
    """Name of the judge that scores by a grader are kept under, such as "grader:numeric@2"; of an unknown one without
    revision."""
    rules = GRADERS.get(name)
    return f"{_PREFIX}{name}" if rules is None else f"{_PREFIX}{name}@{rules.revision}"


def grader_of(judge: str) -> str:
    """The grader, as policies name it, of a judge: "numeric" of "grader:numeric@2", "pairwise" of "pairwise:..."."""
    if judge.startswith(_PREFIX):
        return judge.removeprefix(_PREFIX).partition("@")[0]
    return judge.partition(":")[0]
