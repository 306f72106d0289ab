"""What a quality history is told from, in the order in which it happened."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from router.store.directives import DirectiveRevision
from router.store.policies import PolicyRevision
from router.store.quality import BoundRecord
from router.store.revisions import RevisionKey

BEGINNING = datetime.min.replace(tzinfo=UTC)

Occurred = tuple[str, "int | RevisionKey", datetime, "BoundRecord | DirectiveRevision | PolicyRevision"]
"""(kind, id or key, time, record)."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a history has been told.

    bound, directive, policy: The last of each kind that was read.
    at: The latest time so far; None before the first.
    told: Steps that have been told of what comes next.
    """

    bound: int = 0
    directive: RevisionKey | None = None
    policy: RevisionKey | None = None
    at: datetime | None = None
    told: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """The newest records and revisions as of a cursor; withdrawals and deletions are among them."""

    bounds: Sequence[BoundRecord] = ()
    directives: Sequence[DirectiveRevision] = ()
    policies: Sequence[PolicyRevision] = ()


@dataclass(frozen=True, slots=True)
class Records:
    """What comes after a cursor: bounds with their ids in order of these, revisions in order of their keys.

    cut: The kinds ("bound", "directive", "policy") of which there is more than is here.
    """

    bounds: Sequence[tuple[int, BoundRecord]] = ()
    directives: Sequence[DirectiveRevision] = ()
    policies: Sequence[PolicyRevision] = ()
    cut: frozenset[str] = frozenset()


def merged(records: Records) -> Iterator[Occurred]:
    """(kind, key, time, record), up to where a kind that is cut ends."""
    of_kind: dict[str, list[Occurred | None]] = {
        # In this order where times are equal: what a bound speaks of was there before it.
        "directive": [("directive", r.key, r.directive.updated_at, r) for r in records.directives],
        "policy": [("policy", r.key, r.policy.updated_at, r) for r in records.policies],
        "bound": [("bound", number, record.reported_at, record) for number, record in records.bounds],
    }
    for kind in records.cut:
        of_kind[kind].append(None)
    # None comes next, whatever else is there.
    for occurred in heapq.merge(*of_kind.values(), key=lambda occurred: BEGINNING if occurred is None else occurred[2]):
        if occurred is None:
            return
        yield occurred
