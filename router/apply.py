"""Brings directives and policies to a wished state: checked as a whole, then worked out, then written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic

from pith.router.v1 import policies_pb2

from common.errors import Violations, aborted, failed_precondition
from router import limits, policy_messages
from router.directives.levels import Directive
from router.directives.policy import Policy
from router.revision import Resource, name_of, stamped
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action

MAX_RESOURCES = 1_000
"""Of each kind in one request."""


@dataclass(frozen=True, slots=True)
class Change(Generic[Resource]):
    """What becomes of one resource."""

    before: Resource | None
    """None for a creation."""
    written: Resource
    """The new revision; of a deletion, the one that says so."""
    action: Action

    @property
    def after(self) -> Resource | None:
        """None for a deletion."""
        return None if self.action is Action.DELETE else self.written


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a wish comes to."""

    changes: tuple[Change[Directive] | Change[Policy], ...]
    """In the order in which they are made: at no point does a policy allow a directive that is not there."""
    directives: tuple[Directive, ...]
    """All that are there then, by name; L0 is none of them."""
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class _Wish(Generic[Resource]):
    resource: Resource
    etag: str
    """Of what must be there now; empty where that does not matter."""


async def work_out(
    request: policies_pb2.ApplyRequest, directives: DirectiveRepository, policies: PolicyRepository, now: datetime
) -> Outcome:
    """What the request would change. Writes nothing.

    Raises:
        PithError: INVALID_ARGUMENT (fields, by their place in the request), ABORTED (an etag is not the present one),
            FAILED_PRECONDITION (a directive that would be pruned is allowed by a policy that stays).
    """
    old_directives = {directive.name: directive for directive in await directives.all()}
    old_policies = {policy.name: policy for policy in await policies.all()}
    # Checking a thousand texts takes long enough to be felt by requests.
    wished_directives, wished_policies = await asyncio.to_thread(_read, request, old_directives)
    used = await directives.last_revisions()
    changed_directives = _changes("directive", old_directives, wished_directives, used, now)
    used = await policies.last_revisions()
    changed_policies = _changes("policy", old_policies, wished_policies, used, now)
    pruned_directives = _pruned(old_directives, wished_directives, now) if request.prune else []
    pruned_policies = _pruned(old_policies, wished_policies, now) if request.prune else []
    new_policies = _result(old_policies, [*changed_policies, *pruned_policies])
    _check_unused([change.written.name for change in pruned_directives], new_policies)
    return Outcome(
        changes=(*changed_directives, *changed_policies, *pruned_policies, *pruned_directives),
        directives=_result(old_directives, [*changed_directives, *pruned_directives]),
        policies=new_policies,
    )


async def write(outcome: Outcome, directives: DirectiveRepository, policies: PolicyRepository, reason: str) -> None:
    """Makes the changes; within the transaction, `Database.changing`, in which they were worked out."""
    of_directives = [(c.written, c.action) for c in outcome.changes if isinstance(c.written, Directive)]
    of_policies = [(c.written, c.action) for c in outcome.changes if isinstance(c.written, Policy)]
    await directives.add_many(of_directives, reason)
    await policies.add_many(of_policies, reason)


def _read(
    request: policies_pb2.ApplyRequest, present: Mapping[str, Directive]
) -> tuple[list[_Wish[Directive]], list[_Wish[Policy]]]:
    faults = Violations()
    limits.check_text(faults, "reason", request.reason)
    check_names(faults, "directives", [directive.name for directive in request.directives])
    check_names(faults, "policies", [policy.name for policy in request.policies])
    faults.raise_if_any()
    # One that is there but would be pruned is no unknown directive: that is told apart below.
    known = {*present, *(directive.name for directive in request.directives)}
    for index, directive in enumerate(request.directives):
        limits.check_directive(faults, directive, f"directives[{index}]")
    for index, policy in enumerate(request.policies):
        limits.check_policy(faults, policy, known, f"policies[{index}]")
    faults.raise_if_any()
    return (
        [_Wish(policy_messages.to_directive(directive), directive.etag) for directive in request.directives],
        [_Wish(policy_messages.to_policy(policy), policy.etag) for policy in request.policies],
    )


def check_names(faults: Violations, field: str, names: Sequence[str]) -> None:
    """There are not too many resources, and each has a name of its own."""
    if not faults.require(len(names) <= MAX_RESOURCES, field, f"has {len(names):,} entries; at most {MAX_RESOURCES:,}"):
        return
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        before = first.setdefault(name, index)
        faults.require(
            before == index, f"{field}[{index}].name", f"is the name of {field}[{before}] too; each may be given once"
        )


def _changes(
    kind: str,
    present: Mapping[str, Resource],
    wished: Sequence[_Wish[Resource]],
    used: Mapping[str, int],
    now: datetime,
) -> list[Change[Resource]]:
    changes: list[Change[Resource]] = []
    for wish in wished:
        name = wish.resource.name
        current = present.get(name)
        if wish.etag and (current is None or current.etag != wish.etag):
            what = "been deleted" if current is None else "changed"
            raise aborted(
                "ETAG_MISMATCH",
                f"{kind} {name} has {what} since it was read; read it again",
                {"resource": kind, "name": name, "etag": "" if current is None else current.etag},
            )
        if current is None:
            # A name that is used again goes on counting: its former revisions stay.
            created = stamped(wish.resource, used.get(name, 0) + 1, now)
            changes.append(Change(None, created, Action.CREATE))
        elif replace(wish.resource, revision=current.revision) != current:
            updated = stamped(wish.resource, current.revision + 1, now)
            changes.append(Change(current, updated, Action.UPDATE))
    return changes


def _pruned(
    present: Mapping[str, Resource], wished: Sequence[_Wish[Resource]], now: datetime
) -> list[Change[Resource]]:
    named = {wish.resource.name for wish in wished}
    unnamed = [resource for name, resource in present.items() if name not in named]
    return [Change(old, stamped(old, old.revision + 1, now), Action.DELETE) for old in unnamed]


def _result(present: Mapping[str, Resource], changes: Sequence[Change[Resource]]) -> tuple[Resource, ...]:
    result = dict(present)
    for change in changes:
        if change.action is Action.DELETE:
            del result[change.written.name]
        else:
            result[change.written.name] = change.written
    return tuple(sorted(result.values(), key=name_of))


def _check_unused(pruned: Sequence[str], policies: Sequence[Policy]) -> None:
    for name in pruned:
        users = [policy.name for policy in policies if name in policy.directives]
        if users:
            by = ", ".join(users)
            raise failed_precondition(
                "IN_USE", f"{name} would be pruned, but is allowed by policies: {by}", {"used_by": by, "name": name}
            )
