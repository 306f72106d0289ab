"""What the versioned resources, directives and policies, share: etags, and the stamp of who changed them and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from common.auth import current_request
from common.errors import Violations, aborted, not_found
from router import limits
from router.directives.levels import Directive
from router.directives.policy import Policy

OUTPUT_ONLY = ("revision", "etag", "updated_at", "updated_by")
FIXED = ("name", *OUTPUT_ONLY)
"""Fields that no update changes."""
BEFORE_ALL = 0
"""Where a list of revisions begins."""

Resource = TypeVar("Resource", Directive, Policy)


def name_of(resource: Directive | Policy) -> str:
    return resource.name


def existing(kind: str, name: str, found: Resource | None) -> Resource:
    """Raises PithError NOT_FOUND where there is none."""
    if found is None:
        raise not_found(kind, name)
    return found


def unchanged(kind: str, name: str, found: Resource | None, etag: str) -> Resource:
    """What the caller has read, if that is still the newest. Raises PithError NOT_FOUND, ABORTED (ETAG_MISMATCH)."""
    current = existing(kind, name, found)
    if current.etag != etag:
        raise aborted(
            "ETAG_MISMATCH",
            f"{kind} {name} has changed since it was read; read it again",
            {"resource": kind, "name": name, "etag": current.etag},
        )
    return current


def check_change(prefix: str, name: str, etag: str, reason: str) -> None:
    """What every change of a resource must carry. Raises PithError INVALID_ARGUMENT."""
    faults = Violations()
    limits.check_name(faults, f"{prefix}name", name)
    faults.require(etag != "", f"{prefix}etag", "is empty; must be the etag of the resource as it was read")
    limits.check_text(faults, "reason", reason)
    faults.raise_if_any()


def stamped(resource: Resource, revision: int, now: datetime) -> Resource:
    """The resource as that revision, by the caller of the request in hand."""
    caller = current_request()
    return replace(resource, revision=revision, updated_at=now, updated_by=caller.principal.name if caller else "")
