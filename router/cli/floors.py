"""What quality policies keep: of the mean, and of every directive."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pith.router.v1.feedback_pb2 import QualityBound
    from pith.router.v1.policies_pb2 import Policy


def opening_floor(policy: Policy) -> float:
    """What a directive's bound must clear for the directive to be open."""
    return policy.quality_budget.directive_floor if policy.HasField("quality_budget") else policy.floor


def clears(bound: QualityBound, policy: Policy) -> bool:
    """Whether the number opens the directive; whether it counts is another question."""
    from pith.router.v1.policies_pb2 import FLOOR_KIND_ABSOLUTE

    absolute = policy.floor_kind == FLOOR_KIND_ABSOLUTE
    return (bound.absolute_lower if absolute else bound.lower) >= opening_floor(policy)


def floor_words(policy: Policy) -> str:
    """E.g. "0.95 relative", or "0.95 relative, mean of each task; each directive 0.85"."""
    from router.cli.document import word

    words, budget = f"{policy.floor:g} {word(policy, 'floor_kind')}", policy.quality_budget
    if not policy.HasField("quality_budget"):
        return words
    return f"{words}, mean of each {word(budget, 'scope')}; each directive {budget.directive_floor:g}"
