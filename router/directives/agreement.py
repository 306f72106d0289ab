"""Whether two answers to a prompt say the same: where two brief ones do, a long one is seldom any better."""

from __future__ import annotations

import re
from typing import Final

from common.quality.graders.choice import chosen
from common.quality.graders.normalisation import words
from common.quality.graders.options import options_of

LEAST_SHARED: Final = 1 / 3
"""Of the words of the shorter answer, those that neither the prompt holds nor every answer."""
_COMMON: Final = frozenset(
    re.findall(
        "[a-z]+",
        """
        a an the of in on at to for is was are were be been by with and or as it its that this from his her their he
        she they you i my me we our not no yes so if then than which who what when where how there here has have had do
        does did can could would will may might about into also sure answer brief very s
        """,
    )
)


def agree(answer: str, other: str, prompt: str) -> bool:
    """Whether both name the same of the prompt's options, or else share words that tell something."""
    if options := options_of(prompt):
        letter = chosen(answer, options)
        return letter is not None and letter == chosen(other, options)
    asked = _COMMON.union(words(prompt))
    told, also = set(words(answer)) - asked, set(words(other)) - asked
    fewest = min(len(told), len(also))
    return fewest > 0 and len(told & also) >= LEAST_SHARED * fewest
