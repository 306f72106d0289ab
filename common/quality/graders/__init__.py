"""Graders: the quality of an answer, in [0, 1], against a reference.

Where an answer has a line "Answer:" (in any case, in some other languages too), what follows the last one is graded: an
answer that shows its steps gets the grade of one that does not. References are read the same way.

Work is linear in the answer for each line of the reference: an answer of 100 kB is as welcome as any.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from common.quality.graders.aliases import alias
from common.quality.graders.choice import choice
from common.quality.graders.exact import exact
from common.quality.graders.items import item_set, required_items
from common.quality.graders.numeric import numeric
from common.quality.graders.token_f1 import token_f1

__all__ = ["GRADERS", "Grader", "grade"]


class Grader(Protocol):
    """Returns the quality of answer, in [0, 1]; raises ValueError for a reference that it cannot use.

    The prompt matters to `choice` alone, for which it lists the options.
    """

    def __call__(self, answer: str, reference: str, prompt: str = "") -> float: ...


GRADERS: Mapping[str, Grader] = MappingProxyType(
    {grader.__name__: grader for grader in (alias, choice, exact, item_set, numeric, required_items, token_f1)}
)


def grade(name: str, answer: str, reference: str, prompt: str = "") -> float:
    """Quality of answer by the grader of that name.

    Raises ValueError for an unknown name or a reference that the grader cannot use.
    """
    grader = GRADERS.get(name)
    if grader is None:
        raise ValueError(f"grader must be one of {', '.join(sorted(GRADERS))}, got {name!r}")
    return grader(answer, reference, prompt)
