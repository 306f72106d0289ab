"""How a command is declared: it gets a `Session` made from the options that every command takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from router.cli.failures import CallError, LocalError, print_failure

if TYPE_CHECKING:
    from common.client_tls import ClientTls
    from router.cli.connection import Connection

UNARY_SECONDS = 30.0
# As long as services let a call last by default.
STREAM_SECONDS = 600.0
DEFAULT_ROUTER = "127.0.0.1:7400"
DEFAULT_EVALUATOR = "127.0.0.1:7600"

# The options before the command have the defaults; those after it only win over them.
_SHARED: Mapping[str, tuple[Any, Any]] = {
    "router": (Annotated[str | None, typer.Option("--router", metavar="ADDRESS", help="Address of the router.")], None),
    "evaluator": (
        Annotated[str | None, typer.Option("--evaluator", metavar="ADDRESS", help="Address of the evaluator.")],
        None,
    ),
    "token": (Annotated[str | None, typer.Option("--token", metavar="TOKEN", help="Bearer token.")], None),
    "ca": (
        Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Certificates to trust (PEM); asks for TLS.")],
        None,
    ),
    "certificate": (
        Annotated[
            Path | None, typer.Option("--certificate", metavar="FILE", help="Certificate to show (PEM), for mTLS.")
        ],
        None,
    ),
    "key": (Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Its private key (PEM).")], None),
    "timeout": (
        Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Deadline of a call.")],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print JSON; errors too, on stderr.")], False),
}


@dataclass(frozen=True, slots=True)
class Session:
    """Whom to talk to, as whom, and how to print."""

    router_address: str
    evaluator_address: str
    token: str | None
    timeout_seconds: float | None
    as_json: bool
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def router(self) -> Connection:
        return self._connect("router", self.router_address)

    def evaluator(self) -> Connection:
        return self._connect("evaluator", self.evaluator_address)

    def _connect(self, service: str, address: str) -> Connection:
        # Imported here: gRPC is most of a start-up that --help can do without.
        from router.cli.connection import Connection

        tls = self._tls()
        try:
            return Connection(
                service,
                address,
                token=self.token,
                unary_seconds=self.timeout_seconds or UNARY_SECONDS,
                stream_seconds=self.timeout_seconds or STREAM_SECONDS,
                tls=tls,
            )
        # Of a certificate's file; importing its class takes longer than all the rest.
        except ValueError as error:
            if tls is None:
                raise
            raise typer.BadParameter(str(error), param_hint="--ca, --certificate, --key") from None

    def _tls(self) -> ClientTls | None:
        if self.ca is None:
            if self.certificate or self.key:
                raise typer.BadParameter("is needed with --certificate and --key", param_hint="--ca")
            return None
        if (self.certificate is None) != (self.key is None):
            raise typer.BadParameter("must be given together", param_hint="--certificate, --key")
        from common.client_tls import ClientTls

        return ClientTls(self.ca, self.certificate, self.key)


def group_with_default(name: str) -> type[TyperGroup]:
    """A group of commands that is also a command: that of this name, where the line names none of them."""

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            named = bool(args) and (args[0] in self.commands or args[0] == "--help")
            return super().parse_args(ctx, args if named else [name, *args])

    return Group


def command(
    app: typer.Typer,
    name: str,
    *,
    fields: Mapping[str, Any] | None = None,
    words: str | None = None,
    hidden: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command of `app`.

    Its first parameter, `session`, is made from the options that stand before the command (see `router.cli.main`) and
    the same ones after it, which win; the others are the command's own, as in Typer.

    Args:
        app: where the command belongs.
        name: what it is called by.
        fields: options (annotations as Typer takes them) by the field of the resource that they set ("latency__share"
            for share of latency), shared by the commands that write it. They reach the function as one dict, `given`;
            None stands for "not given".
        words: its help, where that is not the function's docstring.
        hidden: whether the help leaves it out.
    """
    settable = fields or {}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **given: Any) -> None:
            session = session_of(ctx)
            own: dict[str, Any] = {name: value for name, value in given.items() if name not in _SHARED}
            if settable:
                own["given"] = {field: own.pop(field) for field in settable}
            try:
                function(session, **own)
            except (CallError, LocalError) as failure:
                options = {
                    p.name.replace("__", "."): p.opts[0]
                    for p in ctx.command.params
                    if p.name and p.opts[0].startswith("-")
                }
                print_failure(failure, as_json=session.as_json, options=options)
                raise typer.Exit(failure.exit_code) from None

        keyword = inspect.Parameter.KEYWORD_ONLY
        _, *own_parameters = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [
            *(inspect.Parameter(field, keyword, annotation=o, default=None) for field, o in settable.items()),
            *(p.replace(kind=keyword) for p in own_parameters if p.name != "given"),
            *(inspect.Parameter(key, keyword, annotation=o, default=d) for key, (o, d) in _SHARED.items()),
            inspect.Parameter("ctx", keyword, annotation=typer.Context),
        ]
        # Typer reads what a command takes from these two.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, help=words, hidden=hidden)(run)
        return function

    return register


def session_of(ctx: typer.Context, *, timeout_seconds: float | None = None) -> Session:
    """What the options before and after the command say; those after it win. Also while the shell completes a line.

    Args:
        timeout_seconds: instead of what they say.
    """
    outer, inner = ctx.find_root().params, ctx.params
    chosen = {name: inner.get(name) or outer.get(name) for name in _SHARED}
    return Session(
        router_address=chosen["router"] or DEFAULT_ROUTER,
        evaluator_address=chosen["evaluator"] or DEFAULT_EVALUATOR,
        token=checked_token(inner.get("token")) or checked_token(outer.get("token")),
        timeout_seconds=timeout_seconds or chosen["timeout"],
        as_json=bool(chosen["as_json"]),
        ca=_path(chosen["ca"]),
        certificate=_path(chosen["certificate"]),
        key=_path(chosen["key"]),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def checked_token(token: str | None) -> str | None:
    """The token, refused as a usage error where it could not travel as metadata."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise typer.BadParameter("must be printable ASCII without spaces around it", param_hint="--token")
    return token
