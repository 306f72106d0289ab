"""`pithctl token`: who may call the router, and as what."""

from __future__ import annotations

import os
import sys
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from router.cli.change import Yes, confirm
from router.cli.clock import router_clock
from router.cli.command import Session, command
from router.cli.completion import complete_tenant, complete_token
from router.cli.failures import ExitCode, LocalError
from router.cli.output import coloured, console, print_document, table
from router.cli.times import parse_span, parse_time

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from pith.router.v1.access_pb2 import Token
    from rich.text import Text

    from router.cli.connection import Connection

app = typer.Typer(help="Who may call the router, and as what.")

# As the router's own tokens begin, so that scanners for leaked secrets find these too.
_PREFIX = "pith_"

Role = Literal["client", "evaluator", "engine", "admin"]

_TOKENS_FILES: dict[Role, str] = {
    "client": "PITH_ROUTER_TOKENS_FILE names (for calls to the evaluator: PITH_EVALUATOR_TOKENS_FILE)",
    "evaluator": "PITH_ROUTER_TOKENS_FILE names",
    "engine": "PITH_ENGINE_TOKENS_FILE names",
    "admin": "PITH_ROUTER_TOKENS_FILE names (for calls to engines or the evaluator: PITH_ENGINE_TOKENS_FILE, "
    "PITH_EVALUATOR_TOKENS_FILE)",
}
"""Where a token of a role is needed: an evaluator shows its own to the router, the router its own to engines."""


@command(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the token, in logs and histories.")],
    role: Annotated[Role, typer.Option("--role", help="What it may do; an admin may do everything.")] = "client",
    tenant: Annotated[
        str,
        typer.Option(
            "--tenant",
            metavar="TENANT",
            help="Whom its calls are billed to.  [new: default]",
            autocompletion=complete_tenant,
        ),
    ] = "",
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="SPAN|TIME", help="E.g. 90d, or ISO 8601.  [default: never]")
    ] = None,
) -> None:
    """Makes a token and prints it, this once. It is alone on stdout; all else is said on stderr."""
    from pith.router.v1.access_pb2 import CreateTokenRequest

    from router.cli.document import as_document, number

    request = CreateTokenRequest(name=name, tenant=tenant)
    request.role = number(request, "role", role)
    with session.router() as router:
        if expires is not None:
            _set_expiry(request.expires_at, expires, router)
        reply = router.call(router.access.CreateToken, request)
    if session.as_json:
        print_document(as_document(reply))
        return
    print(reply.secret)
    print(f"Token {_sentence(reply.token)}. It is not shown again.", file=sys.stderr)


@command(app, "list")
def list_(session: Session) -> None:
    """Lists the tokens, revoked ones too. What they are, nobody knows any more."""
    from pith.router.v1.access_pb2 import ListTokensRequest

    from router.cli.document import as_document, moment, word

    with session.router() as router:
        now = router_clock(router)
        pages = router.pages(router.access.ListTokens, ListTokensRequest(page_size=500))
        found = [token for page in pages for token in page.tokens]
        if session.as_json:
            print_document({"tokens": [as_document(token) for token in found]})
            return
        ending = [token for token in found if token.HasField("expires_at")]
        expired = {token.name for token in ending if token.expires_at.ToDatetime(tzinfo=UTC) <= now()}
    rows: list[tuple[str | Text, ...]] = [
        (
            token.name,
            word(token, "role"),
            token.tenant,
            _state(token, token.name in expired),
            f"{moment(token, 'created_at')} by {token.created_by or '-'}",
            moment(token, "expires_at") if token.HasField("expires_at") else "never",
        )
        for token in found
    ]
    console().print(table(("NAME", "ROLE", "TENANT", "STATE", "CREATED", "EXPIRES"), rows))


@command(app, "revoke")
def revoke(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the token.", autocompletion=complete_token)],
    yes: Yes = False,
) -> None:
    """Revokes a token. Calls with it fail on every router within 5 s; there is no way back."""
    from pith.router.v1.access_pb2 import RevokeTokenRequest

    from router.cli.document import as_document, moment

    with session.router() as router:
        confirm(f"Revoke token {name}?", yes=yes)
        token = router.call(router.access.RevokeToken, RevokeTokenRequest(name=name))
    if session.as_json:
        print_document(as_document(token))
    else:
        console().print(f"Token {name} is revoked since {moment(token, 'revoked_at')}, by {token.revoked_by or '-'}.")


@command(app, "bootstrap")
def bootstrap(
    session: Session,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="In logs and histories.")],
    role: Annotated[Role, typer.Option("--role", help="What it may do; an admin may do everything.")] = "admin",
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="Whom its calls are billed to.")
    ] = "default",
    append_to: Annotated[
        Path | None, typer.Option("--append-to", metavar="FILE", help="Add the entry to this tokens file (TOML).")
    ] = None,
) -> None:
    """Makes a token without a router, as for the first admin. It is alone on stdout; its entry for a tokens
    file, which has only its hash, is on stderr."""
    import hashlib
    import json
    import secrets

    if not (name.isprintable() and name and tenant.isprintable() and tenant):
        raise typer.BadParameter("must be printable and not empty", param_hint="--name, --tenant")
    secret = _PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    fields = {"name": name, "role": role, "tenant": tenant, "sha256": digest}
    # A JSON string of printable characters is a TOML string too.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    entry = "\n".join(["[[tokens]]", *lines, ""])
    if append_to is not None:
        _append(append_to, entry)
    if session.as_json:
        print_document({"secret": secret, "entry": fields})
        return
    print(secret)
    where = f"Its entry is added to {append_to}" if append_to else f"For the file that {_TOKENS_FILES[role]}"
    print(f"{where}:\n\n{entry}", file=sys.stderr)


def _append(file: Path, entry: str) -> None:
    """Raises LocalError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as appending:
            appending.write(f"\n{entry}" if appending.tell() else entry)
    except OSError as error:
        raise LocalError([f"{file} cannot be written: {error.strerror}"], exit_code=ExitCode.OTHER) from None


def _set_expiry(timestamp: Timestamp, text: str, router: Connection) -> None:
    """A span counts from the router's time. Raises BadParameter."""
    now = router_clock(router)
    try:
        try:
            span: timedelta | None = parse_span(text)
        except ValueError:
            span = None
        timestamp.FromDatetime(now() + span if span is not None else parse_time(text, now))
    except (ValueError, OverflowError):
        fault = f"{text!r} is neither a span such as 90d nor a time in ISO 8601"
        raise typer.BadParameter(fault, param_hint="--expires") from None


def _sentence(token: Token) -> str:
    from router.cli.document import moment, word

    until = f" until {moment(token, 'expires_at')}" if token.HasField("expires_at") else ", without end"
    return f"{token.name}: role {word(token, 'role')}, tenant {token.tenant}{until}"


def _state(token: Token, expired: bool) -> str | Text:
    if token.HasField("revoked_at"):
        return coloured("revoked", "red")
    return coloured("expired", "yellow") if expired else coloured("valid", "green")
