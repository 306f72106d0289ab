"""Page sizes and opaque page tokens (AIP-158)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from common.errors import FieldViolation, invalid_argument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_POSITION = 2**31 - 1
"""In a list that is counted: as much as a database holds."""

Item = TypeVar("Item")
Key = TypeVar("Key", str, int, tuple[str, ...])


def page_size(asked: int, default: int = DEFAULT_PAGE_SIZE, most: int = MAX_PAGE_SIZE) -> int:
    """How many to return: the default for 0, and never more than `most`, which is no error."""
    return min(asked or default, most)


def write_token(kind: str, after: str | int | tuple[str, ...]) -> str:
    """A token that goes on after `after`, and is valid only in lists of the same kind."""
    return base64.urlsafe_b64encode(json.dumps([kind, after]).encode()).decode().rstrip("=")


def read_token(kind: str, token: str, start: Key, field: str = "page_token") -> Key:
    """After what to go on: `start` for the first page, whose token is empty. `field` is where the token stood.

    Raises:
        PithError: INVALID_ARGUMENT, not a token of this list.
    """
    if not token:
        return start
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        _, after = json.loads(text)
        after = tuple(after) if isinstance(start, tuple) else after
        # Half a pair of surrogates is no text that a database takes.
        json.dumps(after, ensure_ascii=False).encode()
        if (
            type(after) is type(start)
            and (not isinstance(after, tuple) or (len(after) == len(start) and all(type(a) is str for a in after)))
            and token == write_token(kind, after)
            and (not isinstance(after, int) or 0 <= after <= MAX_POSITION)
        ):
            return after
    except (ValueError, TypeError, RecursionError):
        pass
    fault = f"is not a token of this list; must be the next_page_token of a page of {kind}, or empty"
    raise invalid_argument([FieldViolation(field, fault)])


def page(
    kind: str, items: Sequence[Item], key: Callable[[Item], Key], start: Key, asked: int, token: str
) -> tuple[Sequence[Item], str]:
    """One page of items in memory, and the token of the next.

    Args:
        items: In order of `key`, which tells them apart.
        start: Before every key.
        asked, token: page_size and page_token of the request.
    """
    after, size = read_token(kind, token, start), page_size(asked)
    rest = [item for item in items if key(item) > after]
    return rest[:size], write_token(kind, key(rest[size - 1])) if len(rest) > size else ""
