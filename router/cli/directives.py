"""`pithctl directive`: the texts, and more, that steer how answers are generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from router.cli.command import Session, command
from router.cli.edit import Etag, Reason, Yes, confirm, require_given, set_given
from router.cli.output import console, details, print_document, table

if TYPE_CHECKING:
    from pith.router.v1.directives_pb2 import Directive

app = typer.Typer(help="The directives: texts, and more, that steer how answers are generated.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the directive.")]
_FIELDS = {
    "text": Annotated[str | None, typer.Option("--text", metavar="TEXT", help="What the model is told.")],
    "placement": Annotated[
        Literal["tail", "system"] | None,
        typer.Option(
            "--placement", help="End of the last user message (keeps prefix caches working), or system.  [new: tail]"
        ),
    ],
    "max_output_tokens": Annotated[
        int | None, typer.Option("--max-output-tokens", min=0, metavar="TOKENS", help="Cap on the answer; 0 is none.")
    ],
    "stop": Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="Ends the answer; repeatable, an empty one clears the list."),
    ],
    "suppressed_words": Annotated[
        list[str] | None,
        typer.Option(
            "--suppressed-word", metavar="WORD", help="Not to appear; repeatable, an empty one clears the list."
        ),
    ],
    "history_messages": Annotated[
        int | None,
        typer.Option("--history-messages", min=0, metavar="COUNT", help="Newest messages to keep; 0 is all."),
    ],
}


@command(app, "list")
def list_(session: Session) -> None:
    """Lists the directives."""
    from pith.router.v1.directives_pb2 import ListDirectivesRequest

    from router.cli.document import as_document, word

    with session.router() as router:
        pages = router.pages(router.directives.ListDirectives, ListDirectivesRequest(page_size=500))
        found = [directive for page in pages for directive in page.directives]
    if session.as_json:
        print_document({"directives": [as_document(directive) for directive in found]})
        return
    rows = [
        (
            d.name,
            d.text or "(no text)",
            word(d, "placement"),
            str(d.max_output_tokens or "-"),
            str(d.revision),
        )
        for d in found
    ]
    headings = ("NAME", "TEXT", "PLACEMENT", "MAX TOKENS", "REVISION")
    console().print(table(headings, rows, right=("MAX TOKENS", "REVISION")))


@command(app, "show")
def show(session: Session, name: Name) -> None:
    """Shows a directive."""
    from pith.router.v1.directives_pb2 import GetDirectiveRequest

    with session.router() as router:
        found = router.call(router.directives.GetDirective, GetDirectiveRequest(name=name))
    _print(session, found)


@command(app, "create", fields=_FIELDS)
def create(session: Session, given: dict[str, Any], name: Name, reason: Reason = "") -> None:
    """Creates a directive. It is served once a policy allows it and the evaluator has judged it."""
    from pith.router.v1.directives_pb2 import CreateDirectiveRequest, Directive

    directive = Directive(name=name)
    set_given(directive, given)
    with session.router() as router:
        request = CreateDirectiveRequest(directive=directive, reason=reason)
        created = router.call(router.directives.CreateDirective, request)
    _print(session, created)


@command(app, "update", fields=_FIELDS)
def update(session: Session, given: dict[str, Any], name: Name, etag: Etag = None, reason: Reason = "") -> None:
    """Changes what is given of a directive. With another text it is closed until the evaluator has judged that."""
    from google.protobuf.field_mask_pb2 import FieldMask
    from pith.router.v1.directives_pb2 import GetDirectiveRequest, UpdateDirectiveRequest

    require_given(given)
    with session.router() as router:
        directive = router.call(router.directives.GetDirective, GetDirectiveRequest(name=name))
        changed = set_given(directive, given)
        if changed:
            directive.etag = etag or directive.etag
            request = UpdateDirectiveRequest(directive=directive, update_mask=FieldMask(paths=changed), reason=reason)
            directive = router.call(router.directives.UpdateDirective, request)
    _print(session, directive, "" if changed else "It is so already: nothing was changed.")


@command(app, "delete")
def delete(session: Session, name: Name, yes: Yes = False, etag: Etag = None, reason: Reason = "") -> None:
    """Deletes a directive that no policy allows."""
    from pith.router.v1.directives_pb2 import DeleteDirectiveRequest, GetDirectiveRequest

    with session.router() as router:
        found = router.call(router.directives.GetDirective, GetDirectiveRequest(name=name))
        confirm(f"Delete directive {name} (revision {found.revision})?", yes=yes)
        request = DeleteDirectiveRequest(name=name, etag=etag or found.etag, reason=reason)
        router.call(router.directives.DeleteDirective, request)
    if session.as_json:
        print_document({"deleted": name})
    else:
        console().print(f"Directive {name} is deleted.")


def _print(session: Session, directive: Directive, remark: str = "") -> None:
    from router.cli.document import as_document, moment, word

    if session.as_json:
        print_document(as_document(directive))
        return
    out = console()
    if remark:
        out.print(remark)
    out.print(
        details(
            [
                ("name", directive.name),
                ("text", directive.text or "(no text)"),
                ("placement", word(directive, "placement")),
                ("max output tokens", str(directive.max_output_tokens or "no cap")),
                ("stop", ", ".join(map(repr, directive.stop)) or "-"),
                ("suppressed words", ", ".join(directive.suppressed_words) or "-"),
                ("history messages", str(directive.history_messages or "all")),
                ("revision", str(directive.revision)),
                ("updated", f"{moment(directive, 'updated_at')} by {directive.updated_by or 'unknown'}"),
                ("etag", directive.etag),
            ]
        )
    )
