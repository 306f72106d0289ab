"""A step of a quality history: what happened, and for which policies a directive was open before and after."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from common.quality.bound import Cell
from router.directives.policy import Policy
from router.store.directives import DirectiveRevision
from router.store.policies import PolicyRevision
from router.store.quality import BoundRecord


class Cause(Enum):
    """What made a step."""

    BOUND = "bound"
    WITHDRAWAL = "withdrawal"
    DIRECTIVE = "directive"
    POLICY = "policy"
    AGE = "age"
    """A bound outlived a policy's bound_max_age_seconds, and nothing else happened."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Whether a directive was open for a policy, and is; the policy as it is after the step, or last was."""

    policy: Policy
    was_open: bool
    is_open: bool
    why: str
    """Of `is_open`, in words."""


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """A revision, and what was in force under its name before; None where nothing was."""

    revision: PolicyRevision
    before: Policy | None


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to one cell; what concerns several cells is a step of each.

    cell: With a tenant, as that tenant's requests have it.
    record: The newest of the cell itself, else of all tenants together. Of a withdrawal, that.
    change: Of a directive or a policy, where that is the cause.
    """

    at: datetime
    cell: Cell
    cause: Cause
    record: BoundRecord | None
    change: DirectiveRevision | PolicyChange | None
    openings: tuple[Opening, ...]

    @property
    def changes_something(self) -> bool:
        """Whether the directive opened or closed for some policy."""
        return any(one.was_open != one.is_open for one in self.openings)
