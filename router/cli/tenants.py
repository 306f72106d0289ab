"""`pithctl tenant`: how much a tenant may ask, and the erasure of what it said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.change import Yes, confirm
from router.cli.clock import router_clock, set_time
from router.cli.command import Session, command
from router.cli.completion import complete_tenant
from router.cli.output import console, print_document, table
from router.cli.units import count

if TYPE_CHECKING:
    from pith.router.v1.access_pb2 import TenantLimits

    from router.cli.connection import Connection

app = typer.Typer(help="Limits of tenants, and the erasure of what they said.")
limits = typer.Typer(help="How much tenants may ask, where it is not the router's default.")
app.add_typer(limits, name="limits")

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Whose.", autocompletion=complete_tenant)]


@limits.callback()
def _limits() -> None:
    """How much tenants may ask, where it is not the router's default."""


@command(limits, "list")
def list_(session: Session) -> None:
    """Lists the tenants that have limits of their own."""
    from router.cli.document import as_document

    with session.router() as router:
        found = _all(router)
    if session.as_json:
        print_document({"limits": [as_document(tenant) for tenant in found]})
    elif found:
        _print(found)
    else:
        console().print("No tenant has limits of its own.")


@command(limits, "set")
def set_(
    session: Session,
    tenant: Tenant,
    requests_per_minute: Annotated[
        int | None,
        typer.Option("--requests-per-minute", min=0, max=2**32 - 1, metavar="COUNT", help="0 is the router's default."),
    ] = None,
    concurrent_requests: Annotated[
        int | None,
        typer.Option(
            "--concurrent-requests", min=0, max=2**32 - 1, metavar="COUNT", help="In flight; 0 is the router's default."
        ),
    ] = None,
) -> None:
    """Sets a tenant's limits, each for each router. What is not given stays as it is."""
    from pith.router.v1.access_pb2 import SetTenantLimitsRequest, TenantLimits

    from router.cli.document import as_document

    if requests_per_minute is None and concurrent_requests is None:
        raise typer.BadParameter("nothing to set was given")
    with session.router() as router:
        wish = next((found for found in _all(router) if found.tenant == tenant), TenantLimits(tenant=tenant))
        if requests_per_minute is not None:
            wish.requests_per_minute = requests_per_minute
        if concurrent_requests is not None:
            wish.concurrent_requests = concurrent_requests
        reply = router.call(router.access.SetTenantLimits, SetTenantLimitsRequest(limits=wish))
    if session.as_json:
        print_document(as_document(reply))
    else:
        _print([reply])


@command(app, "erase")
def erase(
    session: Session,
    tenant: Tenant,
    before: Annotated[
        str | None,
        typer.Option("--before", metavar="TIME", help="Only of requests before; ISO 8601 or e.g. -30d; default: now."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Erases the text of a tenant's samples and its comments on answers. Scores and the ledger, without text, stay."""
    from pith.router.v1.access_pb2 import EraseTenantTextRequest

    from router.cli.document import as_document

    request = EraseTenantTextRequest(tenant=tenant)
    with session.router() as router:
        set_time(request.before, before, "--before", router_clock(router))
        until = f" of requests before {before}" if before else ""
        confirm(
            f"Erase the text of all samples and comments of tenant {tenant}{until}? It cannot be had back.", yes=yes
        )
        reply = router.call(router.access.EraseTenantText, request)
    if session.as_json:
        print_document(as_document(reply))
    else:
        console().print(f"Erased: {count(reply.samples)} samples and {count(reply.comments)} comments of {tenant}.")


def _all(router: Connection) -> list[TenantLimits]:
    from pith.router.v1.access_pb2 import ListTenantLimitsRequest

    pages = router.pages(router.access.ListTenantLimits, ListTenantLimitsRequest(page_size=500))
    return [found for page in pages for found in page.limits]


def _print(found: list[TenantLimits]) -> None:
    from router.cli.document import moment

    rows = [
        (
            tenant.tenant,
            count(tenant.requests_per_minute) if tenant.requests_per_minute else "default",
            count(tenant.concurrent_requests) if tenant.concurrent_requests else "default",
            f"{moment(tenant, 'updated_at')} by {tenant.updated_by or '-'}",
        )
        for tenant in found
    ]
    headings = ("TENANT", "REQUESTS A MINUTE", "IN FLIGHT", "SET")
    console().print(table(headings, rows, right=headings[1:3]))
