"""Messages of the contract as JSON documents and as words, in the forms that the command line also accepts."""

from __future__ import annotations

import math
import re
from typing import Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp


def as_document(message: Message) -> dict[str, Any]:
    """The message with every field by its name in the .proto file.

    Unlike protobuf's own JSON: what is absent is null, 64-bit integers are numbers, enum values are the words that
    pithctl's options take ("shadow", not "MODE_SHADOW"), and no float is NaN or infinite (null instead). A Struct is
    taken to hold no list and no other Struct.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def value(message: Message, field: str) -> Any:
    """The field's value; None where the message, which can tell, says that it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def word(message: Message, field: str) -> str:
    """The value of an enum field without the enum's prefix, in lower case; "-" where it is unspecified."""
    return _word(_enum(message, field), getattr(message, field)) or "-"


def number(message: Message, field: str, name: str) -> Any:
    """What to set an enum field to, given a `word`."""
    enum = _enum(message, field)
    return enum.values_by_name[_prefix(enum) + name.upper()].number


def words(message: Message, field: str) -> list[str]:
    """What `number` takes, in the order of the .proto file."""
    return [word for number, word in words_of(message.DESCRIPTOR.fields_by_name[field]).items() if number]


def words_of(field: Any) -> dict[int, str]:
    """The words for an enum field's values, by number."""
    enum = field.enum_type
    return {value.number: value.name.removeprefix(_prefix(enum)).lower() for value in enum.values}


def signal_words(message: Message) -> str:
    """What grams count, of a message that has kind and scope, e.g. "average, lifecycle"."""
    return f"{word(message, 'kind')}, {word(message, 'scope')}"


def moment(message: Message, field: str) -> str:
    """A Timestamp field for people, in UTC to the second; "-" where it is absent."""
    if not message.HasField(field):
        return "-"
    return str(getattr(message, field).ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ"))


# Descriptors have no one type: that of their Python class differs from that of the compiled one behind it.
def _enum(message: Message, field: str) -> Any:
    return message.DESCRIPTOR.fields_by_name[field].enum_type


def _prefix(enum: Any) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"


def _word(enum: Any, number: int) -> str | None:
    """None for unspecified; the number itself for a value that this version does not know."""
    if number == 0:
        return None
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(enum)).lower()


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            return {str(key): _value(item, entry) for key, item in value.items()}
        return [_value(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Struct):
        return {name: value[name] for name in sorted(value)}
    if field.message_type is not None:
        return as_document(value)
    if field.enum_type is not None:
        return _word(field.enum_type, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
