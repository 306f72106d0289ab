"""Directives and policies as YAML: what `export` writes, `edit` opens with and diffs compare; `manifest` reads it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import yaml
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pith.router.v1.directives_pb2 import Directive
from pith.router.v1.policies_pb2 import Policy

from router.cli.document import words_of
from router.cli.manifest import OUTPUT_ONLY, is_variable_word

_STRING = "tag:yaml.org,2002:str"


def write(directives: Iterable[Directive], policies: Iterable[Policy], *, with_etags: bool = False) -> str:
    """A manifest of these, each kind in order of name."""
    kept = ("etag",) if with_etags else ()
    sections = {
        kind: [_plain(resource, kept) for resource in sorted(resources, key=lambda r: r.name)]
        for kind, resources in (("directives", directives), ("policies", policies))
    }
    return _dump(sections)


def text_of(resource: Message, *, every_field: bool = False) -> str:
    """One resource, for people to compare or to edit.

    Args:
        every_field: Also those that say nothing, such as an empty list; not those that are absent.
    """
    return _dump(_plain(resource, (), every_field=every_field))


def _plain(message: Message, kept: Collection[str], *, every_field: bool = False) -> dict[str, Any]:
    """The message as YAML has it; without `every_field`, what is empty or 0 is left out, as it says nothing."""
    plain: dict[str, Any] = {}
    for known in message.DESCRIPTOR.fields:
        if known.name in OUTPUT_ONLY and known.name not in kept:
            continue
        value = getattr(message, known.name)
        present = message.HasField(known.name) if known.has_presence else every_field or bool(value)
        if not present:
            continue
        if known.is_repeated:
            plain[known.name] = [_word(known, item) for item in value]
        elif isinstance(value, Struct):
            plain[known.name] = {key: value[key] for key in sorted(value)}
        elif known.message_type is not None:
            plain[known.name] = _plain(value, (), every_field=True)
        elif known.enum_type is None or value:
            plain[known.name] = _word(known, value)
    return plain


def _word(known: Any, value: Any) -> Any:
    if known.enum_type is None:
        return value
    return words_of(known).get(value, str(value))


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, keeps lines whole, and has no aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    # Line ends other than \n would be read as such; between double quotes they are escaped.
    if any(character in text for character in "\r\x85\u2028\u2029"):
        style = '"'
    elif "\n" in text.strip("\n"):
        style = "|"
    elif is_variable_word(text):
        style = "'"
    return dumper.represent_scalar(_STRING, text, style=style)


_Dumper.add_representer(str, _text)


def _dump(plain: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    yaml.dump(plain, stream, _Dumper, sort_keys=False, allow_unicode=True, width=100_000, default_flow_style=False)
    return stream.getvalue()
