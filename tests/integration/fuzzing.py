"""Messages that nobody would send: random ones of a type, mutations of valid ones, and bytes that are no message.

A seeded generator instead of a property-testing library: a case costs tens of microseconds rather than milliseconds, so
that thousands for each RPC fit into every run, and a case is named by its number.
"""

from __future__ import annotations

import math
import struct
from random import Random
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

KNOWN = ("", "L0", "L1", "L2", "default", "counting", "arithmetic", "numeric", "exact", "fuzz", "*", "0", "l1", " ")
"""Names that exist, so that a message gets past its first check, and near misses."""

_DEPTH = 4
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (0.0, -0.0, 0.5, 1.0, 1.0000001, -1.0, 1e-320, 1e30, math.inf, -math.inf, math.nan)
_TEXTS = (
    "\x00",
    "a" * 65,
    "a" * 1_001,
    "é" * 129,
    "🌍" * 5_000,
    "\u202e\u200b\ufeff",
    "<|im_start|>system\n",
    "{{ 7 * 7 }}{% for x in range(9) %}",
    "'; DROP TABLE policies; --",
    "../../etc/passwd",
    "%s%n%(x)s",
    "\ud7ff\ue000\uffff",
)
_REPEATS = (0, 1, 1, 2, 3, 17, 300)
_MAX_BYTES = 1 << 17


def case(rng: Random, valid: Message) -> bytes:
    """An encoded request of at most 128 KiB: a random message, a mutation of a valid one, or torn bytes."""
    while len(made := _case(rng, valid)) > _MAX_BYTES:
        pass
    return made


def _case(rng: Random, valid: Message) -> bytes:
    kind = rng.random()
    if kind < 0.3:
        return _random(rng, valid.DESCRIPTOR, _DEPTH).SerializeToString()
    if kind < 0.8:
        return _mutated(rng, valid).SerializeToString()
    return _torn(rng, valid.SerializeToString())


def _random(rng: Random, descriptor: Descriptor, depth: int) -> Message:
    message: Message = message_factory.GetMessageClass(descriptor)()
    share = rng.random()
    for field in descriptor.fields:
        # Small ones mostly: a message that holds everything is refused for its first part.
        if rng.random() < share and (depth or field.message_type is None):
            _put(rng, message, field, depth)
    return message


def _mutated(rng: Random, valid: Message) -> Message:
    """One to three fields, at any depth, are taken out or replaced."""
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(rng.randint(1, 3)):
        inner = message
        while inner.DESCRIPTOR.fields:
            field: FieldDescriptor = rng.choice(list(inner.DESCRIPTOR.fields))
            if field.message_type is not None and rng.random() < 0.7:
                if not field.is_repeated and inner.HasField(field.name):
                    inner = getattr(inner, field.name)
                    continue
                if field.is_repeated and not _is_map(field) and len(getattr(inner, field.name)):
                    inner = rng.choice(list(getattr(inner, field.name)))
                    continue
            if rng.random() < 0.3:
                inner.ClearField(field.name)
            else:
                _put(rng, inner, field, 2)
            break
    return message


def _put(rng: Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    message.ClearField(field.name)
    place = getattr(message, field.name)
    if _is_map(field):
        assert field.message_type is not None
        key, value = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        for _ in range(rng.choice(_REPEATS)):
            if value.message_type is not None:
                place[_value(rng, key, 0)].CopyFrom(_value(rng, value, max(depth - 1, 0)))
            else:
                place[_value(rng, key, 0)] = _value(rng, value, 0)
    elif field.is_repeated:
        # Many of one rather than many different ones: as good against a limit, and cheap to make.
        several = [_value(rng, field, max(depth - 1, 0)) for _ in range(rng.randint(1, 3))]
        place.extend(rng.choice(several) for _ in range(rng.choice(_REPEATS)))
    elif field.message_type is not None:
        place.CopyFrom(_value(rng, field, max(depth - 1, 0)))
    else:
        setattr(message, field.name, _value(rng, field, 0))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _value(rng: Random, field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        return _random(rng, field.message_type, depth)
    if field.enum_type is not None:
        return rng.choice((*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1))
    if field.type in _INTEGERS:
        least, most = _INTEGERS[field.type]
        return rng.choice((0, 1, 2, 7, 1_000_001, least, most, rng.randint(least, most)))
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        bits: float = struct.unpack("<d", rng.randbytes(8))[0]
        return rng.choice((*_FLOATS, rng.uniform(-2, 2), bits))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.randint(0, 64))
    if rng.random() < 0.6:
        return rng.choice(KNOWN)
    if rng.random() < 0.5:
        return rng.choice(_TEXTS)
    return "".join(chr(rng.choice((rng.randint(32, 126), rng.randint(0, 0xD7FF)))) for _ in range(rng.randint(0, 20)))


def _torn(rng: Random, valid: bytes) -> bytes:
    """Cut, repeated, overwritten or grown somewhere; or any bytes."""
    raw = bytearray(valid if rng.random() < 0.8 else rng.randbytes(rng.randint(0, 40)))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(raw))
        match rng.randint(0, 4):
            case 0:
                del raw[at:]
            case 1:
                raw[at:at] = rng.randbytes(rng.randint(1, 12))
            case 2:
                raw[at : at + 1] = rng.randbytes(1)
            case 3:
                raw += raw[at:]
            case _:
                del raw[at : at + rng.randint(1, 8)]
    return bytes(raw)
