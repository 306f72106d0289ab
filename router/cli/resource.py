"""What directives and policies have in common: the RPCs that list, read and change them, and commands for these."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.change import Etag, Reason, Yes, confirm, require_given, set_given
from router.cli.command import Session, command
from router.cli.completion import complete_resource
from router.cli.findings import print_findings
from router.cli.output import console, details, print_document, table

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import Finding
    from rich.text import Text

    from router.cli.connection import Connection


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the versioned resources, and how it is shown.

    Its RPCs and messages are named as AIP-131 to 135 have it (GetPolicy, GetPolicyRequest), so that the noun tells all
    of them.

    Attributes:
        noun: e.g. "policy".
        plural: its service, and the list in replies.
        options: annotations of the options that set its fields, as `router.cli.command` takes them.
        meanings: what each field of its YAML says, for who edits it.
        headings, right: of the table, and which of them are aligned right.
        row: cells of one in the table.
        facts: names and values of one, but for revision and etag.
        in_force, once_deleted: sentences for the help: what a change and a deletion come to.
        once_changed: said when a change of one that was there before is made.
        findings: what is probably not meant about one that was just made or changed.
    """

    noun: str
    plural: str
    options: Mapping[str, Any]
    meanings: Mapping[str, str]
    headings: Sequence[str]
    right: Sequence[str]
    row: Callable[[Any], Sequence[str | Text]]
    facts: Callable[[Any], Iterable[tuple[str, str | Text]]]
    in_force: str
    once_deleted: str
    once_changed: str = ""
    findings: Callable[[Connection, Any], Sequence[Finding]] = lambda router, resource: ()

    @property
    def title(self) -> str:
        return self.noun.title()

    def new(self, **fields: Any) -> Any:
        return getattr(self._messages(), self.title)(**fields)

    def call(self, router: Connection, verb: str, **fields: Any) -> Any:
        """E.g. call(router, "Update", policy=..., update_mask=...). Raises CallError."""
        method = getattr(getattr(router, self.plural), f"{verb}{self.title}")
        return router.call(method, getattr(self._messages(), f"{verb}{self.title}Request")(**fields))

    def get(self, router: Connection, name: str) -> Any:
        return self.call(router, "Get", name=name)

    def update(self, router: Connection, resource: Any, fields: Sequence[str], reason: str) -> Any:
        """Changes these fields of the one with the resource's name and etag; returns what it is then."""
        from google.protobuf.field_mask_pb2 import FieldMask

        mask = FieldMask(paths=fields)
        return self.call(router, "Update", **{self.noun: resource}, update_mask=mask, reason=reason)

    def all(self, router: Connection) -> list[Any]:
        """In order of name."""
        plural = self.plural.title()
        method = getattr(getattr(router, self.plural), f"List{plural}")
        request = getattr(self._messages(), f"List{plural}Request")(page_size=500)
        return [found for page in router.pages(method, request) for found in getattr(page, self.plural)]

    def revisions(self, router: Connection, name: str) -> list[Any]:
        """Newest first."""
        method = getattr(getattr(router, self.plural), f"List{self.title}Revisions")
        request = getattr(self._messages(), f"List{self.title}RevisionsRequest")(name=name, page_size=500)
        return [found for page in router.pages(method, request) for found in page.revisions]

    def _messages(self) -> Any:
        return importlib.import_module(f"pith.router.v1.{self.plural}_pb2")


def print_resource(session: Session, kind: Kind, resource: Any, remark: str = "") -> None:
    """The resource as a JSON document, or the remark and the resource's facts."""
    from router.cli.document import as_document, moment

    if session.as_json:
        print_document(as_document(resource))
        return
    out = console()
    if remark:
        out.print(remark)
    out.print(
        details(
            [
                *kind.facts(resource),
                ("revision", str(resource.revision)),
                ("updated", f"{moment(resource, 'updated_at')} by {resource.updated_by or 'unknown'}"),
                ("etag", resource.etag),
            ]
        )
    )


def print_changed(session: Session, kind: Kind, router: Connection, resource: Any, remark: str = "") -> None:
    """As `print_resource`; then, for people and not among the result, what is probably not meant about it."""
    print_resource(session, kind, resource, remark)
    if not session.as_json and (findings := kind.findings(router, resource)):
        print_findings(findings, console(stderr=True))


Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name.", autocompletion=complete_resource)]


def register(app: typer.Typer, kind: Kind) -> None:
    """Adds list, show, create, update and delete."""

    @command(app, "list", words=f"Lists the {kind.plural}.")
    def list_(session: Session) -> None:
        from router.cli.document import as_document

        with session.router() as router:
            found = kind.all(router)
        if session.as_json:
            print_document({kind.plural: [as_document(resource) for resource in found]})
        else:
            console().print(table(kind.headings, map(kind.row, found), right=kind.right))

    @command(app, "show", words=f"Shows a {kind.noun}.")
    def show(session: Session, name: Name) -> None:
        with session.router() as router:
            found = kind.get(router, name)
        print_resource(session, kind, found)

    @command(app, "create", fields=kind.options, words=f"Creates a {kind.noun}. {kind.in_force}")
    def create(session: Session, given: dict[str, Any], name: Name, reason: Reason = "") -> None:
        resource = kind.new(name=name)
        set_given(resource, given)
        with session.router() as router:
            created = kind.call(router, "Create", **{kind.noun: resource}, reason=reason)
            print_changed(session, kind, router, created)

    @command(app, "update", fields=kind.options, words=f"Changes what is given of a {kind.noun}. {kind.in_force}")
    def update(session: Session, given: dict[str, Any], name: Name, etag: Etag = None, reason: Reason = "") -> None:
        require_given(given)
        with session.router() as router:
            resource = kind.get(router, name)
            changed = set_given(resource, given)
            if changed:
                resource.etag = etag or resource.etag
                resource = kind.update(router, resource, changed, reason)
            remark = kind.once_changed if changed else "It is so already: nothing was changed."
            print_changed(session, kind, router, resource, remark)

    @command(app, "delete", words=f"Deletes a {kind.noun}. {kind.once_deleted}")
    def delete(session: Session, name: Name, yes: Yes = False, etag: Etag = None, reason: Reason = "") -> None:
        with session.router() as router:
            found = kind.get(router, name)
            confirm(f"Delete {kind.noun} {name} (revision {found.revision})?", yes=yes)
            kind.call(router, "Delete", name=name, etag=etag or found.etag, reason=reason)
        if session.as_json:
            print_document({"deleted": name})
        else:
            console().print(f"{kind.title} {name} is deleted.")
