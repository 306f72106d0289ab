"""Partial updates (AIP-134): which fields of a resource a request changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from common.errors import FieldViolation, invalid_argument

Resource = TypeVar("Resource", bound=Message)


def merge(current: Resource, given: Resource, mask: FieldMask, fixed: Collection[str]) -> Resource:
    """`current` with the fields that `mask` names taken from `given`; one that is absent there loses its value.

    Args:
        mask: Empty means every field that is set, "*" every field.
        fixed: Fields that an update cannot change: named, they are left as they are, as AIP-203 has it.

    Raises:
        PithError: INVALID_ARGUMENT for a path that is no field.
    """
    fields = [field.name for field in current.DESCRIPTOR.fields if field.name not in fixed]
    unknown = [path for path in mask.paths if path != "*" and path not in fields and path not in fixed]
    if unknown:
        fault = f"must name fields of {current.DESCRIPTOR.name}: {', '.join(fields)}"
        raise invalid_argument([FieldViolation("update_mask", f"has {path[:64]!r}; {fault}") for path in unknown])
    named = list(mask.paths) or [field.name for field, _ in given.ListFields()]
    # A message that holds only the fields to take; merging then leaves all others as they are.
    taken, merged = type(current)(), type(current)()
    taken.CopyFrom(given)
    merged.CopyFrom(current)
    for field in current.DESCRIPTOR.fields:
        if field.name not in fixed and ("*" in named or field.name in named):
            merged.ClearField(field.name)
        else:
            taken.ClearField(field.name)
    merged.MergeFrom(taken)
    return merged
