"""How a command is declared: it gets a `Session` made from the options that every command takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.failures import CallError, print_failure

if TYPE_CHECKING:
    from router.cli.connection import Connection

UNARY_SECONDS = 30.0
# As long as services let a call last by default.
STREAM_SECONDS = 600.0

# The options before the command have the defaults; those after it only win over them.
_SHARED: Mapping[str, tuple[Any, Any]] = {
    "router": (Annotated[str | None, typer.Option("--router", metavar="ADDRESS", help="Address of the router.")], None),
    "evaluator": (
        Annotated[str | None, typer.Option("--evaluator", metavar="ADDRESS", help="Address of the evaluator.")],
        None,
    ),
    "token": (Annotated[str | None, typer.Option("--token", metavar="TOKEN", help="Bearer token.")], None),
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

    def router(self) -> Connection:
        return self._connect("router", self.router_address)

    def evaluator(self) -> Connection:
        return self._connect("evaluator", self.evaluator_address)

    def _connect(self, service: str, address: str) -> Connection:
        # Imported here: gRPC is most of a start-up that --help can do without.
        from router.cli.connection import Connection

        return Connection(
            service,
            address,
            token=self.token,
            unary_seconds=self.timeout_seconds or UNARY_SECONDS,
            stream_seconds=self.timeout_seconds or STREAM_SECONDS,
        )


def command(
    app: typer.Typer, name: str, *, fields: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command of `app`.

    Its first parameter, `session`, is made from the options that stand before the command (see `router.cli.main`) and
    the same ones after it, which win; the others are the command's own, as in Typer.

    Args:
        app: where the command belongs.
        name: what it is called by.
        fields: options (annotations as Typer takes them) by the field of the resource that they set, shared by the
            commands that write it. They reach the function as one dict, `given`; None stands for "not given".
    """
    settable = fields or {}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            ctx: typer.Context,
            router: str | None,
            evaluator: str | None,
            token: str | None,
            timeout: float | None,
            as_json: bool,
            **own: Any,
        ) -> None:
            outer: Session = ctx.find_root().obj
            session = Session(
                router or outer.router_address,
                evaluator or outer.evaluator_address,
                checked_token(token) or outer.token,
                timeout or outer.timeout_seconds,
                as_json or outer.as_json,
            )
            if settable:
                own["given"] = {field: own.pop(field) for field in settable}
            try:
                function(session, **own)
            except CallError as failure:
                options = {p.name: p.opts[0] for p in ctx.command.params if p.name and p.opts[0].startswith("-")}
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
        app.command(name)(run)
        return function

    return register


def checked_token(token: str | None) -> str | None:
    """The token, refused as a usage error where it could not travel as metadata."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise typer.BadParameter("must be printable ASCII without spaces around it", param_hint="--token")
    return token
