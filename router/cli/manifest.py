"""Directives and policies as YAML: what `apply`, `edit`, `simulate` and `policy check` read.

Its keys are the fields of the contract. What a scalar means follows from the field that it stands for, not from YAML's
guess: `mode: on` is the word, `tenant: 0815` is text.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pith.router.v1.directives_pb2 import Directive
from pith.router.v1.policies_pb2 import Policy

from router.cli.document import number, words

OUTPUT_ONLY = ("revision", "etag", "updated_at", "updated_by")
_TYPES: Mapping[str, type[Message]] = {"directives": Directive, "policies": Policy}
_WHOLE = re.compile(r"[0-9]{1,20}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a line (the first is 1) of a manifest."""

    line: int
    description: str


class ManifestError(ValueError):
    """The text is no manifest. `faults` has all that was found, in order of line."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"line {fault.line}: {fault.description}" for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest names. `lines` tells where: by path as the router's faults name it, e.g. "policies[0].floor"."""

    directives: Sequence[Directive] = ()
    policies: Sequence[Policy] = ()
    lines: Mapping[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int | None:
        """The line of a field, or of what it is part of."""
        while path not in self.lines and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path)


def parse(text: str) -> Manifest:
    """Raises ManifestError with every fault: not YAML, a key that is unknown or given twice, a value of no use."""
    reader = _Reader()
    root = _compose(text)
    found: dict[str, list[Any]] = {"directives": [], "policies": []}
    if root is not None and reader.expect(root, yaml.MappingNode, "a mapping with directives, policies or both"):
        for key, value in reader.items(root, found):
            reader.lines[key] = _line(value)
            if not _is_null(value) and reader.expect(value, yaml.SequenceNode, f"a list of {key}"):
                found[key] = [
                    reader.resource(item, key, f"{key}[{index}]", found[key]) for index, item in enumerate(value.value)
                ]
                reader.once(value, found[key])
    reader.raise_if_any()
    return Manifest(found["directives"], found["policies"], reader.lines)


def assign(resource: Message, path: str, text: str) -> None:
    """Sets one field, e.g. "latency.seconds", to what `text` says in YAML; "null" makes it absent.

    Raises:
        ManifestError: there is no such field, or it cannot be that.
    """
    reader = _Reader()
    node = _compose(text) or _compose("null")
    *outer, last = path.split(".")
    for name in outer:
        known = resource.DESCRIPTOR.fields_by_name.get(name)
        if known is None or known.message_type is None or known.is_repeated:
            raise ManifestError([Fault(1, _unknown(name, resource))])
        resource = getattr(resource, name)
    if last not in resource.DESCRIPTOR.fields_by_name or last in OUTPUT_ONLY:
        raise ManifestError([Fault(1, _unknown(last, resource))])
    resource.ClearField(last)
    reader.field(resource, last, node, path)
    reader.raise_if_any()


def variable(text: str) -> bool | float | str:
    """A template variable's value as somebody types it: true, false and numbers are such; quotes make them text."""
    try:
        node = _compose(text)
    except ManifestError:
        node = None
    return text if not isinstance(node, yaml.ScalarNode) else _variable(node)


class _Reader:
    """Fills messages from nodes and collects faults."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self.lines: dict[str, int] = {}

    def fault(self, node: Any, description: str) -> None:
        self._faults.append(Fault(_line(node), description))

    def raise_if_any(self) -> None:
        if self._faults:
            raise ManifestError(sorted(self._faults, key=lambda fault: fault.line))

    def expect(self, node: Any, kind: type[Any], what: str) -> bool:
        if not isinstance(node, kind):
            self.fault(node, f"must be {what}")
            return False
        return True

    def items(self, node: Any, known: Collection[str]) -> Iterable[tuple[str, Any]]:
        """The keys and values of a mapping; unknown and repeated keys are faults and left out."""
        seen: set[str] = set()
        for key_node, value in node.value:
            key = str(key_node.value)
            if key in seen:
                self.fault(key_node, f"{key} is given twice")
            elif key in known:
                yield key, value
            elif key in OUTPUT_ONLY:
                self.fault(key_node, f"{key} is the router's to set; leave it out")
            else:
                near = difflib.get_close_matches(key, known, n=1)
                meant = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}"
                self.fault(key_node, f"{key!r} is unknown; {meant}")
            seen.add(key)

    def resource(self, node: Any, kind: str, path: str, before: Sequence[Any]) -> Any:
        resource = _TYPES[kind]()
        self.lines[path] = _line(node)
        if self.expect(node, yaml.MappingNode, "a mapping with name and more"):
            known = len(self._faults)
            self.message(resource, node, path)
            if not resource.name:  # type: ignore[attr-defined]
                self.fault(node, "has no name")
            # To the router it would be 0. Among other faults it may be there, but misspelt.
            floorless = all(key.value != "floor" or _is_null(value) for key, value in node.value)
            if kind == "policies" and floorless and len(self._faults) == known:
                self.fault(node, "floor: is missing; must be above 0 and at most 1, e.g. 0.95")
        return resource

    def once(self, node: Any, resources: Sequence[Any]) -> None:
        names = [resource.name for resource in resources]
        for index, name in enumerate(names):
            if name and name in names[:index]:
                self.fault(node.value[index], f"{name} is given twice")

    def message(self, message: Message, node: Any, path: str) -> None:
        known = [f.name for f in message.DESCRIPTOR.fields if f.name == "etag" or f.name not in OUTPUT_ONLY]
        for key, value in self.items(node, known):
            self.lines[f"{path}.{key}"] = _line(value)
            self.field(message, key, value, f"{path}.{key}")

    def field(self, message: Message, name: str, node: Any, path: str) -> None:
        """Sets the field; null leaves it as it is."""
        known: Any = message.DESCRIPTOR.fields_by_name[name]
        if _is_null(node):
            return
        if known.is_repeated:
            if self.expect(node, yaml.SequenceNode, f"a list, e.g. [{known.name.rstrip('s')}]"):
                for index, item in enumerate(node.value):
                    self.lines[f"{path}[{index}]"] = _line(item)
                    value = self.scalar(message, known, item)
                    if value is not None:
                        getattr(message, name).append(value)
        elif isinstance(getattr(message, name), Struct):
            if self.expect(node, yaml.MappingNode, "a mapping of names to values"):
                self.variables(getattr(message, name), node)
        elif known.message_type is not None:
            if self.expect(node, yaml.MappingNode, f"a mapping with {_names(known.message_type)}"):
                getattr(message, name).SetInParent()
                self.message(getattr(message, name), node, path)
        else:
            value = self.scalar(message, known, node)
            if value is not None:
                setattr(message, name, value)

    def variables(self, struct: Struct, node: Any) -> None:
        for key, value in self.items(node, _Everything()):
            if self.expect(value, yaml.ScalarNode, "true, false, a number or text"):
                struct.update({key: _variable(value)})

    def scalar(self, message: Message, known: Any, node: Any) -> Any:
        """The value for a field; None where it is none, which is a fault."""
        if not self.expect(node, yaml.ScalarNode, "one value"):
            return None
        text = str(node.value)
        if known.enum_type is not None:
            choices = words(message, known.name)
            if text.lower() not in choices:
                self.fault(node, f"{known.name} is {text!r}; must be one of {', '.join(choices)}")
                return None
            return number(message, known.name, text)
        if known.cpp_type == known.CPPTYPE_STRING:
            return text
        if known.cpp_type in (known.CPPTYPE_DOUBLE, known.CPPTYPE_FLOAT):
            if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
                self.fault(node, f"{known.name} is {text!r}; must be a number")
                return None
            return float(text)
        most = 2**32 - 1 if known.cpp_type == known.CPPTYPE_UINT32 else 2**64 - 1
        if not _WHOLE.fullmatch(text) or int(text) > most:
            self.fault(node, f"{known.name} is {text!r}; must be a whole number of at most {most:,}")
            return None
        return int(text)


class _Everything(Sequence[str]):
    """The keys of a mapping that may have any."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, index: Any) -> Any:
        raise IndexError

    def __len__(self) -> int:
        return 0


def _compose(text: str) -> Any:
    """The root node; None for a text of comments alone. Raises ManifestError."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ManifestError([Fault(mark.line + 1 if mark else 1, f"is not YAML: {what}")]) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        character = text[error.position]
        raise ManifestError([Fault(line, f"has the character U+{ord(character):04X}; {error.reason}")]) from None


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _names(descriptor: Any) -> str:
    return ", ".join(f.name for f in descriptor.fields)


def _unknown(name: str, message: Message) -> str:
    known = [f.name for f in message.DESCRIPTOR.fields if f.name not in OUTPUT_ONLY]
    return f"{name!r} is no field; must be one of {', '.join(known)}"


def _variable(node: Any) -> bool | float | str:
    text = str(node.value)
    if node.style is not None or not is_variable_word(text):
        return text
    return text.lower() == "true" if text.lower() in ("true", "false") else float(text)


def is_variable_word(text: str) -> bool:
    """Whether a template variable that is written so, without quotes, is no text but a boolean or a number."""
    return text.lower() in ("true", "false") or (_NUMBER.fullmatch(text) is not None and math.isfinite(float(text)))
