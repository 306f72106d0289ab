"""For which tenant a caller speaks."""

from __future__ import annotations

import grpc

from common.auth import Principal, Role
from common.errors import PithError

_FOR_OTHERS = (Role.ADMIN, Role.EVALUATOR)


def tenant_of(asked: str, principal: Principal) -> str:
    """The tenant that a request is for: `asked`, or the caller's own where that is empty.

    Raises:
        PithError: PERMISSION_DENIED where the caller's token may not speak for `asked`.
    """
    if asked in ("", principal.tenant) or principal.role in _FOR_OTHERS:
        return asked or principal.tenant
    raise PithError(
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_NOT_ALLOWED",
        f"tenant: is {asked!r}; a {principal.role}'s token speaks for its own tenant only, {principal.tenant!r}",
        metadata={"role": principal.role, "needed": ", ".join(_FOR_OTHERS)},
    )
