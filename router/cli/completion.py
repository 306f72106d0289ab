"""What the shell offers on Tab: names that the router knows, or nothing where it does not answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from router.cli.connection import Connection

# Longer, and somebody who types would think that the shell hangs.
_SECONDS = 1.0


def complete_resource(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of policies or directives, whichever the command is about."""
    noun = ctx.parent.info_name if ctx.parent else ""
    return (complete_policy if noun == "policy" else complete_directive)(ctx, incomplete)


def complete_policy(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda router: (policy.name for policy in _policies(router)))


def complete_task(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tasks that policies name."""
    return _offered(ctx, incomplete, lambda router: (policy.task for policy in _policies(router)))


def complete_tenant(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tenants that policies name."""
    return _offered(ctx, incomplete, lambda router: (policy.tenant for policy in _policies(router)))


def complete_directive(ctx: typer.Context, incomplete: str) -> list[str]:
    from pith.router.v1.directives_pb2 import ListDirectivesRequest

    def names(router: Connection) -> Iterable[str]:
        pages = router.pages(router.directives.ListDirectives, ListDirectivesRequest(page_size=500))
        return (directive.name for page in pages for directive in page.directives)

    return _offered(ctx, incomplete, names)


def complete_token(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of tokens that are not revoked."""
    from pith.router.v1.access_pb2 import ListTokensRequest

    def names(router: Connection) -> Iterable[str]:
        pages = router.pages(router.access.ListTokens, ListTokensRequest(page_size=500))
        return (token.name for page in pages for token in page.tokens if not token.HasField("revoked_at"))

    return _offered(ctx, incomplete, names)


def _policies(router: Connection) -> Iterable[Any]:
    from pith.router.v1.policies_pb2 import ListPoliciesRequest

    pages = router.pages(router.policies.ListPolicies, ListPoliciesRequest(page_size=500))
    return (policy for page in pages for policy in page.policies)


def _offered(ctx: typer.Context, incomplete: str, names: Callable[[Connection], Iterable[str]]) -> list[str]:
    """Those that begin with what is typed, once each. Whatever goes wrong, nothing: a shell has no place for errors."""
    from router.cli.command import session_of

    try:
        with session_of(ctx, timeout_seconds=_SECONDS).router() as router:
            return sorted({name for name in names(router) if name and name.startswith(incomplete)})
    except Exception:
        return []
